"""Read and check the header of a safetensors file without reading a tensor.

Format: 8 bytes little-endian header length N, N bytes of JSON (``{"name": {"dtype", "shape",
"data_offsets": [start, end]}, "__metadata__": {str: str}}``), then the data, without holes.
The limit of 100 MB on N is the reference implementation's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.sniff import HEAD_BYTES, sniff, wrong_kind
from sla_ckpt.text import has_lone_surrogate

MAX_HEADER = 100_000_000
METADATA_KEY = "__metadata__"
_DENSE = 1 << 20

#: Bits per element; F4 and F6 types are packed.
_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
_DOWNLOAD = "download or save the file again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: Its key.
        dtype: The safetensors token, e.g. ``"BF16"``.
        shape: Sizes.
        start: First byte, counted from the file's beginning.
        end: One past its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header.

    Attributes:
        tensors: By name, in the header's order.
        metadata: The ``__metadata__`` strings.
        data_start: Where the tensors begin.
        file_size: Bytes of the file.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(
    read: Callable[[int, int], bytes], size: int, *, name: str, coerce_metadata: bool = False
) -> SafetensorsHeader:
    """Read a header through ranged reads: two of them, whatever the file's size.

    Args:
        read: ``read(start, length)`` returns those bytes, fewer where the file ends.
        size: The file's size in bytes.
        name: How messages name it.
        coerce_metadata: Take metadata values that are no strings as JSON text; for repairs.

    Raises:
        FormatError: Not a valid safetensors file. ``kind`` says what it is instead
            (``"lfs-pointer"``, ``"zip"``, …), or ``"truncated"``, ``"header"``.
    """
    head = read(0, HEAD_BYTES)
    length = _header_length(head, size, name)
    data_start = 8 + length
    raw = head[8:data_start] if data_start <= len(head) else read(8, length)
    if len(raw) != length:
        raise _fault(name, f"is truncated: its header needs {length:,} bytes", "truncated")
    entries = _parse(raw, name)
    metadata = _metadata(entries.pop(METADATA_KEY, None), name, coerce_metadata)
    tensors = {key: _tensor(key, entry, data_start, name) for key, entry in entries.items()}
    _check_layout(tensors.values(), data_start, size, name)
    return SafetensorsHeader(
        MappingProxyType(tensors), MappingProxyType(metadata), data_start, size
    )


def _fault(name: str, message: str, kind: str, hint: str = _DOWNLOAD) -> FormatError:
    return FormatError(f"{name} {message}", kind=kind, hint=hint, path=name)


def _header_length(head: bytes, size: int, name: str) -> int:
    kind = sniff(head, size)
    if kind not in ("safetensors", "unknown", "text", "zeros"):
        raise wrong_kind(kind, head, size, name=name, wanted="a safetensors file")
    if size < 10:
        raise _fault(name, f"has only {size} bytes, too short for a safetensors file", "truncated")
    length = int.from_bytes(head[:8], "little")
    if kind != "safetensors":
        if head[8:9] == b"{" and length > MAX_HEADER:
            raise _fault(
                name, f"declares a header of {length:,} bytes, over the limit of 100 MB", "header"
            )
        raise wrong_kind(kind, head, size, name=name, wanted="a safetensors file")
    if 8 + length > size:
        raise _fault(
            name,
            f"is truncated: its header needs {8 + length:,} bytes, the file has {size:,}",
            "truncated",
        )
    return length


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise _fault(name, f"has a header that names {key!r} twice", "header")
            result[key] = value
        return result

    # A tensor takes about 50 bytes of JSON. Nothing but brackets would take 30 times its size
    # in memory.
    if len(raw) > _DENSE and raw.count(b"[") + raw.count(b"{") > len(raw) // 8:
        raise _fault(name, "has a header of little but brackets", "header")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
        halved = has_lone_surrogate(raw, header)
    except UnicodeDecodeError as error:
        raise _fault(name, "has a header that is not UTF-8", "header") from error
    except (ValueError, RecursionError) as error:
        raise _fault(name, f"has a header that is not JSON: {error}", "header") from error
    if not isinstance(header, dict) or halved:
        what = "holds half a character" if halved else "is not a JSON object"
        raise _fault(name, f"has a header that {what}", "header")
    return header


def _metadata(value: object, name: str, coerce: bool) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fault(name, f"has a {METADATA_KEY} that is not an object", "metadata")
    if coerce:
        return {
            key: text if isinstance(text, str) else json.dumps(text) for key, text in value.items()
        }
    for key, text in value.items():
        if not isinstance(text, str):
            raise _fault(
                name,
                f"has {METADATA_KEY} entry {key!r} = {text!r:.80}, which must be a string",
                "metadata",
                "write it again with metadata values as strings (sla-ckpt migrate does)",
            )
    return value


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _tensor(key: str, entry: object, data_start: int, name: str) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fault(name, f"describes tensor {key!r} without dtype, shape and offsets", "header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _fault(name, f"gives tensor {key!r} the unknown dtype {dtype!r:.40}", "header")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_size, shape)):
        raise _fault(name, f"gives tensor {key!r} the shape {shape!r:.60}", "header")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _fault(name, f"gives tensor {key!r} the offsets {offsets!r:.60}", "header")
    start, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or end - start != bits // 8:
        raise _fault(
            name,
            f"gives tensor {key!r} {end - start:,} bytes; {dtype} {shape!r:.60} needs "
            f"{bits / 8:,.0f}",
            "header",
        )
    return TensorInfo(key, dtype, tuple(shape), data_start + start, data_start + end)


def _check_layout(tensors: Any, data_start: int, size: int, name: str) -> None:
    """The tensors must fill the rest of the file, without holes or overlap."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))
    position = data_start
    for tensor in ordered:
        if tensor.start != position:
            what = "overlaps its neighbour" if tensor.start < position else "follows a hole"
            raise _fault(name, f"has a header in which tensor {tensor.name!r} {what}", "header")
        position = tensor.end
    if position > size:
        raise _fault(
            name,
            f"is truncated: its header needs {position:,} bytes, the file has {size:,}",
            "truncated",
        )
    if position < size:
        raise _fault(
            name, f"has {size - position:,} bytes more than its header describes", "header"
        )
