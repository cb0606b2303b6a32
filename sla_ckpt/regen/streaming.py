"""Safetensors files straight into device memory, at the disk's speed and in flat memory.

A file is read in large chunks by a few threads into a ring of page-locked buffers; each chunk is
copied asynchronously to where its tensors live. Host memory stays at the ring's size whatever the
model's. On the CPU the threads read directly into the final tensors.

Source of the format: safetensors' README (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.safetensors_header import read_header

#: Large enough for full disk and PCIe rates; the ring is SLOTS times this.
CHUNK_BYTES = 32 << 20
SLOTS = 8

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class FileTensor:
    """Where one tensor lies: ``size`` bytes at absolute offset ``start`` of ``path``."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Placement:
    """Where a tensor goes, and as what. ``dtype`` None keeps the file's."""

    device: torch.device
    dtype: torch.dtype | None
    pinned: bool = False


def read_table(path: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file by name, from its header alone.

    Raises:
        FormatError: Not a safetensors file, truncated, or it holds a dtype torch does not have.
    """
    return read_table_and_metadata(path)[0]


def read_table_and_metadata(path: Path) -> tuple[dict[str, FileTensor], Mapping[str, str]]:
    """As :func:`read_table`, and the ``__metadata__`` strings."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:

            def read(start: int, length: int) -> bytes:
                handle.seek(start)
                return handle.read(length)

            header = read_header(read, size, name=str(path))
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    table: dict[str, FileTensor] = {}
    for name, info in header.tensors.items():
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise FormatError(
                f"{path}: tensor {name!r} has dtype {info.dtype}, which cannot be loaded",
                path=str(path),
            )
        table[name] = FileTensor(name, path, dtype, info.shape, info.start, info.end - info.start)
    return table, header.metadata


Accept = Callable[[str, Tensor], None]
Progress = Callable[[int], None]


def load_tensors(
    tensors: Iterable[FileTensor],
    place: Callable[[FileTensor], Placement],
    accept: Accept,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Progress | None = None,
) -> int:
    """Read tensors and hand each to ``accept(name, tensor)`` once its last byte is on its way.

    Copies to a card run on its current stream, so whatever is enqueued there later sees the
    values.

    Args:
        tensors: What to read, in any order; each file is read front to back.
        place: Device and dtype of each. Only floating-point tensors are cast.
        accept: Called on this thread, in file order.
        chunk_bytes: Length of one read.
        progress: Called with the number of bytes of each finished read.

    Returns:
        Bytes read.

    Raises:
        FormatError: A file ended early or could not be read.
    """
    ordered = sorted(tensors, key=lambda tensor: (str(tensor.path), tensor.start))
    report = progress or (lambda _: None)
    with ThreadPoolExecutor(_workers(), thread_name_prefix="sla-ckpt-read") as pool:
        ring: _Ring | None = None
        for path, group in groupby(ordered, key=lambda tensor: tensor.path):
            placed = [(tensor, place(tensor)) for tensor in group]
            on_card = [pair for pair in placed if pair[1].device.type == "cuda"]
            on_host = [pair for pair in placed if pair[1].device.type != "cuda"]
            if on_host:
                _read_to_host(pool, path, on_host, accept, chunk_bytes, report)
            if on_card:
                ring = ring or _Ring(pool, chunk_bytes)
                ring.copy(path, on_card, accept, report)
        if ring is not None:
            ring.wait()
    return sum(tensor.size for tensor in ordered)


def _workers() -> int:
    return max(2, min(SLOTS, os.cpu_count() or 1))


def _fill(path: Path, view: memoryview, offset: int) -> None:
    """Read exactly ``len(view)`` bytes at ``offset``."""
    done = 0
    try:
        with path.open("rb", buffering=0) as handle:
            handle.seek(offset)
            while done < len(view):
                count = handle.readinto(view[done:])
                if not count:
                    raise FormatError(
                        f"{path} ended at byte {offset + done:,} while it was read",
                        kind="truncated",
                        hint="is another process writing to it?",
                        path=str(path),
                    )
                done += count
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error


def _bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's memory as a flat uint8 tensor."""
    return tensor.reshape(-1).view(torch.uint8)


def _finish(raw: Tensor, placement: Placement) -> Tensor:
    if placement.dtype is None or placement.dtype == raw.dtype or not raw.is_floating_point():
        return raw
    return raw.to(placement.dtype)


def _read_to_host(
    pool: ThreadPoolExecutor,
    path: Path,
    placed: Sequence[tuple[FileTensor, Placement]],
    accept: Accept,
    chunk_bytes: int,
    report: Progress,
) -> None:
    """Threads read straight into the tensors; a bounded number of reads is in flight."""
    waiting: deque[tuple[FileTensor, Placement, Tensor, list[Future[None]]]] = deque()
    in_flight = 0

    def settle() -> int:
        source, placement, raw, reads = waiting.popleft()
        for read in reads:
            read.result()
        report(source.size)
        final = _finish(raw, placement)
        if placement.device.type not in ("cpu", "meta") and final.device != placement.device:
            final = final.to(placement.device)
        accept(source.name, final.pin_memory() if placement.pinned else final)
        return len(reads)

    for source, placement in placed:
        keeps = placement.dtype in (None, source.dtype) or not source.dtype.is_floating_point
        raw = torch.empty(source.shape, dtype=source.dtype, pin_memory=placement.pinned and keeps)
        reads: list[Future[None]] = []
        if source.size:
            view = _bytes_of(raw).numpy().data
            reads = [
                pool.submit(_fill, path, view[at : at + chunk_bytes], source.start + at)
                for at in range(0, source.size, chunk_bytes)
            ]
        waiting.append((source, placement, raw, reads))
        in_flight += len(reads)
        while waiting and in_flight > 4 * SLOTS:
            in_flight -= settle()
    while waiting:
        settle()


@dataclass(frozen=True)
class _Piece:
    """``length`` bytes of tensor ``index``, at ``at`` in the tensor and ``offset`` in the chunk."""

    index: int
    at: int
    offset: int
    length: int


@dataclass(frozen=True)
class _Chunk:
    start: int
    length: int
    pieces: tuple[_Piece, ...]


def plan_chunks(tensors: Sequence[FileTensor], chunk_bytes: int) -> Iterator[_Chunk]:
    """Cover tensors (ascending, one file) by reads of at most ``chunk_bytes``.

    A gap between tensors ends a chunk, so that what is not wanted is not read.
    """
    start = end = -1
    pieces: list[_Piece] = []
    for index, tensor in enumerate(tensors):
        at = 0
        while at < tensor.size:
            position = tensor.start + at
            if pieces and (position != end or end - start >= chunk_bytes):
                yield _Chunk(start, end - start, tuple(pieces))
                pieces = []
            if not pieces:
                start = end = position
            length = min(tensor.size - at, chunk_bytes - (end - start))
            pieces.append(_Piece(index, at, end - start, length))
            end += length
            at += length
    if pieces:
        yield _Chunk(start, end - start, tuple(pieces))


class _Ring:
    """Page-locked buffers between the reading threads and the cards."""

    def __init__(self, pool: ThreadPoolExecutor, chunk_bytes: int) -> None:
        self._pool = pool
        self._chunk_bytes = chunk_bytes
        self._buffers: list[Tensor] = []
        self._events: list[list[torch.cuda.Event]] = []

    def _slot(self, index: int) -> int:
        """Index of a buffer, allocated on first use so that small files stay cheap."""
        slot = index % SLOTS
        if slot == len(self._buffers):
            self._buffers.append(torch.empty(self._chunk_bytes, dtype=torch.uint8, pin_memory=True))
            self._events.append([])
        return slot

    def copy(
        self,
        path: Path,
        placed: Sequence[tuple[FileTensor, Placement]],
        accept: Accept,
        report: Progress,
    ) -> None:
        raws: dict[int, Tensor] = {}
        reads: deque[tuple[_Chunk, int, Future[None]]] = deque()

        def settle() -> None:
            chunk, slot, read = reads.popleft()
            read.result()
            self._to_cards(chunk, slot, placed, raws)
            report(chunk.length)
            for piece in chunk.pieces:
                source, placement = placed[piece.index]
                if piece.at + piece.length == source.size:
                    accept(source.name, _finish(raws.pop(piece.index), placement))

        for source, placement in placed:
            if not source.size:
                empty = torch.empty(source.shape, dtype=source.dtype, device=placement.device)
                accept(source.name, _finish(empty, placement))
        chunks = plan_chunks([source for source, _ in placed], self._chunk_bytes)
        for count, chunk in enumerate(chunks):
            if len(reads) == SLOTS:
                settle()
            slot = self._slot(count)
            reads.append((chunk, slot, self._pool.submit(self._read, path, chunk, slot)))
        while reads:
            settle()
        self.wait()

    def _read(self, path: Path, chunk: _Chunk, slot: int) -> None:
        for event in self._events[slot]:
            event.synchronize()
        _fill(path, self._buffers[slot].numpy().data[: chunk.length], chunk.start)

    def _to_cards(
        self,
        chunk: _Chunk,
        slot: int,
        placed: Sequence[tuple[FileTensor, Placement]],
        raws: dict[int, Tensor],
    ) -> None:
        buffer = self._buffers[slot]
        devices: set[torch.device] = set()
        for piece in chunk.pieces:
            source, placement = placed[piece.index]
            if piece.index not in raws:
                raws[piece.index] = torch.empty(
                    source.shape, dtype=source.dtype, device=placement.device
                )
            target = _bytes_of(raws[piece.index])[piece.at : piece.at + piece.length]
            target.copy_(buffer[piece.offset : piece.offset + piece.length], non_blocking=True)
            devices.add(target.device)
        self._events[slot] = []
        for device in devices:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._events[slot].append(event)

    def wait(self) -> None:
        """Until every buffer is free again."""
        for events in self._events:
            for event in events:
                event.synchronize()
