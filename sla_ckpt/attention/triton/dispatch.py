"""Launching kernels with little work on the CPU.

Triton's own launch path inspects every argument on every call, which at a few thousand tokens
costs more than the kernels run. Here each call site names what its kernel depends on (sizes,
strides, dtypes, alignment), and the kernel compiled for that is launched directly.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from sla_ckpt.attention.kernels import interpreting

_CACHE_LIMIT = 8192
# Before 3.3 a compiled kernel took its run-time arguments only.
_DIRECT = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
_compiled: dict[Hashable, tuple[Any, tuple[Any, ...]]] = {}


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    site: Hashable,
    args: tuple[Any, ...],
    constants: Mapping[str, Any],
    *,
    warps: int = 4,
    stages: int = 2,
) -> None:
    """Launch ``kernel``.

    Args:
        kernel: The jitted function.
        grid: Programs in three dimensions.
        site: Equal only between calls whose integers, strides, dtypes and pointer alignments
            are all equal; addresses and floats may differ.
        args: The run-time arguments, in order.
        constants: The compile-time arguments that follow, in order.
        warps: Warps per program.
        stages: Depth of the software pipeline.
    """
    if interpreting():
        kernel[grid](*args, **constants)
        return
    if not _DIRECT:
        kernel[grid](*args, **constants, num_warps=warps, num_stages=stages)
        return
    key = (kernel, site)
    found = _compiled.get(key)
    if found is None:
        compiled = kernel.warmup(*args, grid=grid, **constants, num_warps=warps, num_stages=stages)
        if len(_compiled) >= _CACHE_LIMIT:
            _compiled.clear()
        found = _compiled[key] = (compiled, tuple(constants.values()))
    compiled, values = found
    compiled[grid](*args, *values)


def layout(x: Tensor) -> Hashable:
    """What of a tensor decides how a kernel is compiled."""
    return (x.dtype, x.device.index, x.stride(), x.data_ptr() % 16)


def row_major(x: Tensor) -> Tensor:
    """The kernels take any strides but the last, which must be 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


@contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Triton launches on the current device; make that the tensor's."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def split(items: int, others: int, per_processor: int, device: torch.device) -> tuple[int, int]:
    """Parts to split a long sum into so that the device is full, and items per part.

    Args:
        items: Terms of the sum.
        others: Sums there are.
        per_processor: Programs that fit a multiprocessor at a time.
        device: Where they run.
    """
    parts = max(1, min(items, per_processor * _processors(device) // others))
    per_part = -(-items // parts)
    return -(-items // per_part), per_part


@lru_cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
