"""Reading JSON that somebody else wrote: bounded, and with one-line errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.source import Source
from sla_ckpt.errors import FormatError
from sla_ckpt.text import has_lone_surrogate

#: The largest index of a published model is about 1 MB.
MAX_JSON_BYTES = 64 * 1024 * 1024
#: Larger texts than this may not be of little but brackets: each takes up to 200 bytes in memory.
_DENSE = 1 << 20


def parse_json(data: bytes, *, name: str) -> Any:
    """Parse JSON text.

    Raises:
        FormatError: Empty, not UTF-8, not JSON, or nested too deeply.
    """
    if not data.strip():
        raise FormatError(f"{name} is empty", kind="empty", path=name)
    if len(data) > _DENSE and data.count(b"[") + data.count(b"{") > len(data) // 32:
        raise FormatError(f"{name} is {len(data):,} bytes of little but brackets", path=name)
    try:
        value = json.loads(data.decode("utf-8-sig"))
        halved = has_lone_surrogate(data, value)
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8 text: {error.reason}", path=name) from error
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{name} is not JSON: {error.msg} at line {error.lineno} column {error.colno}",
            path=name,
        ) from error
    except (RecursionError, ValueError) as error:
        raise FormatError(f"{name} is not usable JSON: {error}", path=name) from error
    if halved:
        raise FormatError(f"{name} holds text that is not Unicode: half a character", path=name)
    return value


def read_optional_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> Any:
    """A local JSON file that may be anything; None when it is absent, too large or no JSON.

    Args:
        path: The file.
        limit: Its size in bytes at most.
    """
    try:
        if path.stat().st_size > limit:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_json_object(source: Source, path: str) -> Mapping[str, Any]:
    """Read a JSON object from a source.

    Raises:
        FormatError: Not a JSON object, or too large.
        TargetNotFoundError: Absent or unreadable.
    """
    size = source.files().get(path, 0)
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{path} is too large for a JSON file ({size:,} bytes)", path=path)
    value = parse_json(source.read(path), name=path)
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds {type(value).__name__}, not an object", path=path)
    return value
