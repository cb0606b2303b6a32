"""A structure-aware fuzzer of everything that reads a stranger's file: ``python -m tools.fuzz``.

Inputs are a pure function of (seed, index), so a finding is two numbers. The same mutators make
the short runs of ``tests/fuzz``.
"""
