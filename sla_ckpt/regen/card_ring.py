"""Page-locked buffers between reading threads and cards: each byte is read once, copied once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sla_ckpt.regen.tensor_files import FileTensor, Placement, bytes_of, fill

#: Buffers in flight.
SLOTS = 8


@dataclass(frozen=True)
class Piece:
    """``length`` bytes of tensor ``index``, at ``at`` in the tensor and ``offset`` in the chunk."""

    index: int
    at: int
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    start: int
    length: int
    pieces: tuple[Piece, ...]


def plan_chunks(tensors: Sequence[FileTensor], chunk_bytes: int) -> Iterator[Chunk]:
    """Cover tensors (ascending, one file) by reads of at most ``chunk_bytes``.

    A gap between tensors ends a chunk, so that what is not wanted is not read.
    """
    start = end = -1
    pieces: list[Piece] = []
    for index, tensor in enumerate(tensors):
        at = 0
        while at < tensor.size:
            position = tensor.start + at
            if pieces and (position != end or end - start >= chunk_bytes):
                yield Chunk(start, end - start, tuple(pieces))
                pieces = []
            if not pieces:
                start = end = position
            length = min(tensor.size - at, chunk_bytes - (end - start))
            pieces.append(Piece(index, at, end - start, length))
            end += length
            at += length
    if pieces:
        yield Chunk(start, end - start, tuple(pieces))


class CardRing:
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
        accept: Callable[[str, Tensor], None],
        report: Callable[[int], None],
    ) -> None:
        raws: dict[int, Tensor] = {}
        reads: deque[tuple[Chunk, int, Future[None]]] = deque()

        def settle() -> None:
            chunk, slot, read = reads.popleft()
            read.result()
            self._to_cards(chunk, slot, placed, raws)
            report(chunk.length)
            for piece in chunk.pieces:
                source, placement = placed[piece.index]
                if piece.at + piece.length == source.size:
                    accept(source.name, _cast(raws.pop(piece.index), placement))

        for source, placement in placed:
            if not source.size:
                empty = torch.empty(source.shape, dtype=source.dtype, device=placement.device)
                accept(source.name, _cast(empty, placement))
        chunks = plan_chunks([source for source, _ in placed], self._chunk_bytes)
        for count, chunk in enumerate(chunks):
            if len(reads) == SLOTS:
                settle()
            slot = self._slot(count)
            reads.append((chunk, slot, self._pool.submit(self._read, path, chunk, slot)))
        while reads:
            settle()
        self.wait()

    def _read(self, path: Path, chunk: Chunk, slot: int) -> None:
        for event in self._events[slot]:
            event.synchronize()
        fill(path, self._buffers[slot].numpy().data[: chunk.length], chunk.start)

    def _to_cards(
        self,
        chunk: Chunk,
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
            target = bytes_of(raws[piece.index])[piece.at : piece.at + piece.length]
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


def _cast(raw: Tensor, placement: Placement) -> Tensor:
    return raw.to(placement.result_dtype(raw.dtype))
