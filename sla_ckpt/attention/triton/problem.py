"""Sizes and constants of one call, and the tensors that pass between the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from sla_ckpt.attention.reference import kept_blocks
from sla_ckpt.attention.triton.tiles import FEATURE_CODES
from sla_ckpt.attention.triton.tuning import Tuning, tuning_for
from sla_ckpt.state import SLASettings


# Compared and hashed by identity: problem_for() interns them, and they key the launch cache.
@dataclass(frozen=True, eq=False)
class Problem:
    """Sizes and constants of one call.

    Attributes:
        batch: B.
        heads: H.
        queries: L.
        keys: L_k.
        dim: D.
        padded_dim: D as the kernels see it: a power of two, at least 16.
        blkq: query block length.
        blkk: key block length.
        query_blocks: ceil(L / blkq).
        key_blocks: ceil(L_k / blkk).
        kept: key blocks kept per query block.
        feature: code of the feature map.
        tuning: launch parameters.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    dim: int
    padded_dim: int
    blkq: int
    blkk: int
    query_blocks: int
    key_blocks: int
    kept: int
    feature: int
    tuning: Tuning

    @property
    def planes(self) -> int:
        """B * H."""
        return self.batch * self.heads

    @property
    def softmax_scale(self) -> float:
        return float(self.dim**-0.5)

    @property
    def score_scale(self) -> float:
        """Softmax scale for scores in base 2."""
        return self.softmax_scale * math.log2(math.e)


def problem_for(q: Tensor, k: Tensor, settings: SLASettings, tuning: Tuning | None) -> Problem:
    """The problem that these queries and keys pose."""
    return _problem(tuple(q.shape), k.shape[2], settings, tuning)


@lru_cache(maxsize=1024)
def _problem(
    shape: tuple[int, ...], keys: int, settings: SLASettings, tuning: Tuning | None
) -> Problem:
    batch, heads, queries, dim = shape
    blkq, blkk = settings.blkq, settings.blkk
    key_blocks = -(-keys // blkk)
    padded_dim = padded(dim)
    return Problem(
        batch,
        heads,
        queries,
        keys,
        dim,
        padded_dim,
        blkq,
        blkk,
        -(-queries // blkq),
        key_blocks,
        kept_blocks(key_blocks, settings.topk),
        FEATURE_CODES[settings.feature_map],
        tuning or tuning_for(padded_dim, blkq, blkk),
    )


def padded(dim: int) -> int:
    """The next power of two, at least 16."""
    return max(16, power_of_two(dim))


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True, eq=False)
class BlockLists:
    """The block map as lists.

    Attributes:
        lut: int32 ``[B * H, query blocks, kept]``, key blocks of each query block, ascending.
        mask: int8 ``[B * H, key blocks, query blocks]``, or None without backward.
    """

    lut: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class LinearSums:
    """What the linear branch needs of the keys, per head.

    Attributes:
        k_sum: float32 ``[B * H, D]``, Σ φ(k).
        means: float32 ``[B * H, D, D]``, φ(k)ᵀ v over k_sum.
        folded: compute dtype ``[B * H, D, D]``, means times the projection.
    """

    k_sum: Tensor
    means: Tensor
    folded: Tensor


@dataclass(frozen=True, eq=False)
class ForwardResult:
    """Output of the forward kernel, and what the backward needs of it.

    Attributes:
        o: ``[B, H, L, D]``.
        o_sparse: the sparse branch alone, or None when nothing is saved.
        lse: float32 ``[B * H, L]``, base 2, or None.
    """

    o: Tensor
    o_sparse: Tensor | None
    lse: Tensor | None


@dataclass(frozen=True, eq=False)
class LinearGrads:
    """Gradients of what the linear branch knows of the keys, and of the projection, per head.

    Attributes:
        a: float32 ``[B * H, D, D]``, gradient of means times projection.
        d_means: compute dtype ``[B * H, D, D]``, divided by ``scale`` if that is set.
        scale: float32 ``[B * H]``, for float16 only.
        d_k_sum: float32 ``[B * H, D]``.
        d_bias: float32 ``[B * H, D]``.
    """

    a: Tensor
    d_means: Tensor
    scale: Tensor | None
    d_k_sum: Tensor
    d_bias: Tensor
