"""Reading every weight to look for NaN and Inf, at about the speed of the disk.

A floating-point value is NaN or Inf when its exponent bits are all ones. Shifting the sign out
of the bit pattern turns that into one unsigned comparison, so a chunk is clean when the maximum
of the shifted integers is below one bound: no float conversion, which numpy lacks for bfloat16
and float8 anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.errors import FormatError, TargetNotFoundError, UsageError

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

#: Small enough that chunk and scratch stay in a core's cache.
CHUNK_BYTES = 256 * 1024
#: One task of the pool: large enough to hide the hand-over, small enough to balance.
TASK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class FloatBits:
    """How to recognise non-finite values of one dtype by their bits.

    Attributes:
        integer: Unsigned numpy dtype of the same size.
        bound: Shifted patterns at or above it are NaN or Inf.
        infinity: The shifted pattern of Inf, None for formats without it.
    """

    integer: str
    bound: int
    infinity: int | None

    @property
    def size(self) -> int:
        return np.dtype(self.integer).itemsize


#: By safetensors dtype. F8_E4M3 has no Inf and one NaN pattern.
FLOAT_BITS = {
    "BF16": FloatBits("<u2", 0xFF00, 0xFF00),
    "F16": FloatBits("<u2", 0xF800, 0xF800),
    "F32": FloatBits("<u4", 0xFF000000, 0xFF000000),
    "F64": FloatBits("<u8", 0xFFE0000000000000, 0xFFE0000000000000),
    "F8_E5M2": FloatBits("u1", 0xF8, 0xF8),
    "F8_E4M3": FloatBits("u1", 0xFE, None),
}


@dataclass(frozen=True)
class NonFinite:
    """A tensor with NaN or Inf in it."""

    path: str
    tensor: str
    nan: int
    inf: int
    elements: int


@dataclass(frozen=True)
class _Span:
    """A stretch of one file in which every tensor has the same dtype."""

    path: str
    start: int
    end: int
    bits: FloatBits


def scan_weights(context: Context) -> Iterator[NonFinite]:
    """Scan every safetensors file of a local checkpoint with all cores.

    Yields:
        The tensors that hold NaN or Inf, by file and name.

    Raises:
        UsageError: The target is remote.
        TargetNotFoundError: A file vanished or shrank while it was read.
    """
    source = context.source
    if not isinstance(source, LocalSource):
        raise UsageError(
            "--deep reads every weight and works on local folders only",
            hint="pull the repository first",
        )
    headers = {
        path: header
        for path, header in context.headers.items()
        if not isinstance(header, FormatError)
    }
    spans = [span for path, header in headers.items() for span in _spans(path, header)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        clean = list(pool.map(lambda s: _is_clean(source.local_path(s.path), s), spans))
    suspects = [span for span, good in zip(spans, clean, strict=True) if not good]
    for path in dict.fromkeys(span.path for span in suspects):
        ranges = [(s.start, s.end) for s in suspects if s.path == path]
        yield from _locate(source.local_path(path), path, headers[path], ranges)


def _spans(path: str, header: SafetensorsHeader) -> Iterator[_Span]:
    """Merge neighbouring tensors of one dtype, then cut into tasks of even size."""
    pending: _Span | None = None
    for info in sorted(header.tensors.values(), key=lambda item: item.start):
        bits = FLOAT_BITS.get(info.dtype.removesuffix("FN"))
        if bits is None or info.start == info.end:
            continue
        start, end = info.start, info.end
        if pending is not None and pending.end == start and pending.bits == bits:
            pending = _Span(path, pending.start, end, bits)
            continue
        if pending is not None:
            yield from _cut(pending)
        pending = _Span(path, start, end, bits)
    if pending is not None:
        yield from _cut(pending)


def _cut(span: _Span) -> Iterator[_Span]:
    for start in range(span.start, span.end, TASK_BYTES):
        yield _Span(span.path, start, min(start + TASK_BYTES, span.end), span.bits)


def _is_clean(file: Path, span: _Span) -> bool:
    buffer = np.empty(CHUNK_BYTES, np.uint8)
    scratch = np.empty(CHUNK_BYTES // span.bits.size, span.bits.integer)
    for chunk in _chunks(file, span.start, span.end, buffer):
        values = chunk.view(span.bits.integer)
        shifted = np.left_shift(values, 1, out=scratch[: len(values)])
        if shifted.max() >= span.bits.bound:
            return False
    return True


def _chunks(
    file: Path, start: int, end: int, buffer: NDArray[np.uint8]
) -> Iterator[NDArray[np.uint8]]:
    view = buffer.data
    try:
        with file.open("rb", buffering=0) as handle:
            handle.seek(start)
            position = start
            while position < end:
                wanted = min(len(buffer), end - position)
                filled = 0
                while filled < wanted:
                    got = handle.readinto(view[filled:wanted])
                    if not got:
                        raise TargetNotFoundError(
                            f"{file} became shorter while it was read",
                            hint="is something still writing to it? run the command again",
                            path=str(file),
                        )
                    filled += got
                yield buffer[:wanted]
                position += wanted
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot read {file}: {error.strerror or error}", path=str(file)
        ) from error


def _locate(
    file: Path, path: str, header: SafetensorsHeader, ranges: list[tuple[int, int]]
) -> Iterator[NonFinite]:
    """Count, tensor by tensor, in what a suspect span touches."""
    for name, info in sorted(header.tensors.items()):
        bits = FLOAT_BITS.get(info.dtype.removesuffix("FN"))
        start, end = info.start, info.end
        if bits is None or not any(start < b and a < end for a, b in ranges):
            continue
        nan = inf = 0
        buffer = np.empty(CHUNK_BYTES, np.uint8)
        for chunk in _chunks(file, start, end, buffer):
            shifted: NDArray[Any] = np.left_shift(chunk.view(bits.integer), 1)
            bad = int(np.count_nonzero(shifted >= bits.bound))
            if bad:
                infinite = 0
                if bits.infinity is not None:
                    infinite = int(np.count_nonzero(shifted == bits.infinity))
                inf += infinite
                nan += bad - infinite
        if nan or inf:
            yield NonFinite(path, name, nan, inf, (end - start) // bits.size)
