"""Tile sizes and launch parameters by head_dim and block sizes, from sweeps on an H100.

A fixed table: the first call compiles one variant of each kernel and times nothing. The sweep that
chose them is ``benchmarks/attention.py --sweep``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Attributes:
        tile: Rows a program owns; divides its block.
        tile_in: Rows per step of its walk; divides the other side's block.
        warps: Warps per program.
        stages: Depth of the software pipeline.
    """

    tile: int
    tile_in: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tuning:
    """Launch parameters of the three walking kernels."""

    forward: Launch
    query_grad: Launch
    key_grad: Launch


@lru_cache
def tuning_for(padded_dim: int, blkq: int, blkk: int) -> Tuning:
    """The table.

    Args:
        padded_dim: head_dim rounded up to a power of two, at least 16.
        blkq: query block length in tokens.
        blkk: key block length in tokens.
    """
    if padded_dim > 128:
        return Tuning(Launch(64, 64, 8, 2), Launch(64, 64, 8, 2), Launch(64, 64, 8, 1))
    return Tuning(Launch(64, 64, 4, 3), Launch(64, 64, 4, 2), Launch(64, 64, 4, 2))
