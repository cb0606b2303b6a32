"""Compares shown output with real output, apart from what differs from run to run."""

from __future__ import annotations

import re

#: Alone on a line: any number of lines may stand here.
ANYTHING = "…"

_NORMAL = (
    (re.compile(r"\d{8}T\d{6}Z"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?Z?"), "<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"\bhf_\w+"), "<token>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}(?![\w.])…?"), "<hash>"),
    (re.compile(r"\b\d[\d,.]* ?(bytes|[kKMGT]?i?B|/s)(?!\w)"), "<size>"),
    (re.compile(r"\b\d+(\.\d+)? ?(s|ms|min|seconds)\b"), "<duration>"),
)
_NUMBER = re.compile(r"(?<![\w:])[-+−]?\d[\d,.]*(e[-+]?\d+)?")


def normal(text: str, *, numbers_vary: bool = False) -> str:
    """The text with times, sizes, hashes, ports and, if asked, all figures taken out."""
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    if numbers_vary:
        text = re.sub(r" +", " ", _NUMBER.sub("<n>", text))
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def matches(shown: str, real: str, *, numbers_vary: bool = False) -> bool:
    """Whether the shown output is the real one, ``…`` lines standing for anything."""
    shown = normal(shown, numbers_vary=numbers_vary)
    real = normal(real, numbers_vary=numbers_vary)
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == ANYTHING else re.escape(line) + r"\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, real + "\n") is not None
