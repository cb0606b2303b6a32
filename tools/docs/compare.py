"""Compares shown output with real output, apart from what differs from run to run."""

from __future__ import annotations

import re

#: Alone on a line: any number of lines may stand here. Within a line: anything.
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


def normal(text: str, *, numbers_vary: bool = False, varying_lines: str | None = None) -> str:
    """The text with times, sizes, hashes, ports and, if asked, all figures taken out."""
    lines = text.strip("\n").splitlines()
    if varying_lines is not None:
        lines = [line for line in lines if not re.search(varying_lines, line)]
    text = "\n".join(line.rstrip() for line in lines)
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return re.sub(r" +", " ", _NUMBER.sub("<n>", text)) if numbers_vary else text


def matches(
    shown: str, real: str, *, numbers_vary: bool = False, varying_lines: str | None = None
) -> bool:
    """Whether the shown output is the real one, ``…`` standing for anything."""
    shown = normal(shown, numbers_vary=numbers_vary, varying_lines=varying_lines)
    real = normal(real, numbers_vary=numbers_vary, varying_lines=varying_lines)
    pattern = "".join(
        r"(?:.*\n)*?"
        if line.strip() == ANYTHING
        else ".*".join(map(re.escape, line.split(ANYTHING))) + r"\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, real + "\n") is not None
