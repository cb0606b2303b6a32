"""Several processes on one regeneration: who does which batch, and the sums over all of them.

``torchrun`` starts one process per device. Every process loads the model and its share of the
batches; losses, gradients and normal equations are summed in float64, so that each process sees
the same numbers and takes the same decisions. Process 0 writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that share the work; the default is this one alone.

    Attributes:
        rank: Of this process.
        size: Number of processes.
        local_rank: Of this process on its machine; the index of its device.
        backend: ``"nccl"``, ``"gloo"``, or None when alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    backend: str | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """This process's items, with their positions in the whole."""
        return [(i, item) for i, item in enumerate(items) if i % self.size == self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same on each; float64."""
        value = tensor.double()
        if self.size == 1:
            return value
        import torch.distributed as dist

        device = torch.device("cuda", self.local_rank) if self.backend == "nccl" else "cpu"
        moved = value.detach().to(device, copy=True)
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return [item for item in values if item is not None]

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.any(False)


@contextlib.contextmanager
def process_group(device_type: str) -> Iterator[Group]:
    """Join the processes that ``torchrun`` started; alone if it did not.

    Raises:
        RegenError: The environment names several processes and they cannot be joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1:
        yield Group()
        return
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    backend = "nccl" if device_type == "cuda" else "gloo"
    if backend == "nccl":
        if local_rank >= torch.cuda.device_count():
            raise RegenError(
                f"process {local_rank} has no device: {torch.cuda.device_count()} visible",
                hint="start as many processes per node as there are devices",
            )
        torch.cuda.set_device(local_rank)
    own = not dist.is_initialized()
    if own:
        try:
            dist.init_process_group(backend)
        except (RuntimeError, ValueError) as error:
            raise RegenError(
                f"the {size} processes cannot be joined: {error}",
                hint="start them with torchrun, or run without it",
            ) from error
    try:
        yield Group(rank, size, local_rank, backend)
    finally:
        if own:
            dist.destroy_process_group()
