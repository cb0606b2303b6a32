"""Making text from files safe to print."""

from __future__ import annotations

import json
import os
import re
import shlex


def one_line(text: str, *, limit: int = 1000) -> str:
    """Collapse white space and escape what cannot be seen, so that no file can draw on a terminal.

    Control and formatting characters, and halves of surrogate pairs, which cannot be encoded.

    Args:
        text: Anything, for instance a key read from a file.
        limit: Longer text is cut in the middle.
    """
    flat = " ".join(text.split())
    if not flat.isprintable():
        flat = "".join(char if char.isprintable() else _escape(char) for char in flat)
    if len(flat) > limit:
        half = limit // 2
        flat = f"{flat[:half]}…{flat[-half:]}"
    return flat


def _escape(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


def has_lone_surrogate(data: bytes, value: object) -> bool:
    """Whether JSON holds an escape such as ``\\ud800`` that stands for no character.

    Python reads it, but such text can be neither encoded nor printed, and other readers refuse it.

    Args:
        data: The JSON text.
        value: What it was parsed to.
    """
    if b"\\ud" not in data and b"\\uD" not in data:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def short_repr(value: object, *, limit: int = 60) -> str:
    """``repr`` of a value from a file, bounded before it is built where that matters."""
    if isinstance(value, str | bytes) and len(value) > limit:
        return f"{value[:limit]!r}…"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``count(1, "pair")`` -> ``"1 pair"``; ``count(2, "pair")`` -> ``"2 pairs"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def join_some(items: list[str], *, limit: int = 5) -> str:
    """A comma-separated list that stays one line: the first few, then how many more."""
    head = ", ".join(items[:limit])
    return head if len(items) <= limit else f"{head} and {len(items) - limit:,} more"


def quoted(text: str) -> str:
    """A path or repository as it must be typed in a shell, in double quotes on Windows."""
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text) if re.search(r"[\s'\"\\$`*?;&|<>()!#~{}\[\]]", text) else text


def for_target(hint: str | None, target: str) -> str | None:
    """Name the checkpoint in a hint of a reader, which ends in a command but knows only a file."""
    if hint and hint.endswith(("sla-ckpt regen", "sla-ckpt migrate")):
        return f"{hint} {target}"
    return hint
