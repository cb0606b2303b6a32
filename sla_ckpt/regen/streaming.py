"""Safetensors files straight into device memory, at the disk's speed and in flat memory.

For a card, a few threads read a file in large chunks into a ring of page-locked buffers, and each
chunk is copied asynchronously to where its tensors live: host memory stays at the ring's size,
whatever the model's. On the host the threads read directly into the final tensors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from sla_ckpt.regen.card_ring import SLOTS, CardRing
from sla_ckpt.regen.tensor_files import FileTensor, Placement, bytes_of, fill

#: Large enough for full disk and PCIe rates; the ring is SLOTS times this.
CHUNK_BYTES = 32 << 20
#: Page-locked memory comes in powers of two, so tensors share blocks; later ones are larger.
_FIRST_BLOCK = 64 << 20
_LAST_BLOCK = 1 << 30
_ALIGNMENT = 256

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
        ring: CardRing | None = None
        pinned = _PinnedMemory()
        for path, group in groupby(ordered, key=lambda tensor: tensor.path):
            placed = [(tensor, place(tensor)) for tensor in group]
            on_card = [pair for pair in placed if pair[1].device.type == "cuda"]
            on_host = [pair for pair in placed if pair[1].device.type != "cuda"]
            if on_host:
                _read_to_host(pool, path, on_host, accept, chunk_bytes, report, pinned)
            if on_card:
                ring = ring or CardRing(pool, chunk_bytes)
                ring.copy(path, on_card, accept, report)
        if ring is not None:
            ring.wait()
    return sum(tensor.size for tensor in ordered)


def _workers() -> int:
    return max(2, min(SLOTS, os.cpu_count() or 1))


def _read_to_host(
    pool: ThreadPoolExecutor,
    path: Path,
    placed: Sequence[tuple[FileTensor, Placement]],
    accept: Accept,
    chunk_bytes: int,
    report: Progress,
    pinned: _PinnedMemory,
) -> None:
    """Threads read straight into the tensors; a bounded number of reads is in flight."""
    waiting: deque[tuple[FileTensor, Placement, Tensor, list[Future[None]]]] = deque()
    in_flight = 0

    def empty(shape: Sequence[int], dtype: torch.dtype, placement: Placement) -> Tensor:
        if placement.pinned:
            return pinned.empty(shape, dtype)
        return torch.empty(tuple(shape), dtype=dtype)

    def settle() -> int:
        source, placement, raw, reads = waiting.popleft()
        for read in reads:
            read.result()
        report(source.size)
        dtype = placement.result_dtype(source.dtype)
        final = raw
        if dtype != source.dtype:
            final = empty(source.shape, dtype, placement).copy_(raw)
        accept(source.name, final if placement.pinned else final.to(placement.device))
        return len(reads)

    for source, placement in placed:
        if placement.result_dtype(source.dtype) == source.dtype:
            raw = empty(source.shape, source.dtype, placement)
        else:
            raw = torch.empty(source.shape, dtype=source.dtype)
        reads: list[Future[None]] = []
        if source.size:
            view = bytes_of(raw).numpy().data
            reads = [
                pool.submit(fill, path, view[at : at + chunk_bytes], source.start + at)
                for at in range(0, source.size, chunk_bytes)
            ]
        waiting.append((source, placement, raw, reads))
        in_flight += len(reads)
        while waiting and in_flight > 4 * SLOTS:
            in_flight -= settle()
    while waiting:
        settle()


class _PinnedMemory:
    """Tensors in shared page-locked blocks."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._used = 0
        self._next = _FIRST_BLOCK

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        if size > _LAST_BLOCK // 4:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        if self._block is None or self._used + size > self._block.numel():
            while self._next < size:
                self._next *= 2
            self._block = torch.empty(self._next, dtype=torch.uint8, pin_memory=True)
            self._used = 0
            self._next = min(2 * self._next, _LAST_BLOCK)
        part = self._block[self._used : self._used + size]
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return part.view(dtype).view(tuple(shape))
