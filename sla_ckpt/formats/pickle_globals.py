"""Name the globals a pickle asks for, without executing anything.

Only for messages and reports: what may be *read* is decided by :mod:`.pickle_machine`, which
refuses whatever it does not know.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator

from sla_ckpt.quiet import without_warnings

_MAX_OPCODES = 300_000
_MAX_SCAN_BYTES = 16 << 20
_STRINGS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


def find_globals(data: bytes) -> tuple[str, ...]:
    """Every global a pickle names, as ``"module.name"``, in order and once each.

    The scan follows the opcodes, not the stack: a ``STACK_GLOBAL`` whose two strings are not the
    last ones pushed is reported as ``"?"``. A stream that breaks off gives what came before.
    """
    with without_warnings():  # of escapes in the text strings of protocol 0
        return tuple(dict.fromkeys(_scan(data)))


def _scan(data: bytes) -> Iterator[str]:
    recent: list[str] = []
    memo: dict[int, str] = {}
    memoized = 0
    for count, (name, argument) in enumerate(_opcodes(data)):
        if count >= _MAX_OPCODES:
            return
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            yield f"{module}.{attribute}"
        elif name == "STACK_GLOBAL":
            yield ".".join(recent[-2:]) if len(recent) >= 2 else "?"
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield f"extension registry {argument}"
        elif name in _STRINGS:
            recent = [*recent[-1:], str(argument)]
        elif name == "MEMOIZE":
            if recent:
                memo[memoized] = recent[-1]
            memoized += 1
        elif name in _PUTS and recent and isinstance(argument, int):
            memo[argument] = recent[-1]
        elif name in _GETS and isinstance(argument, int) and argument in memo:
            recent = [*recent[-1:], memo[argument]]


def _opcodes(data: bytes) -> Iterator[tuple[str, object]]:
    opcodes = pickletools.genops(data[:_MAX_SCAN_BYTES])
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except (StopIteration, ValueError, UnicodeDecodeError):
            return
        yield opcode.name, argument
