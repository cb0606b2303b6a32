"""Launching the kernels: block map, forward, backward; plain functions on tensors, no autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import log2

import torch
import triton
from torch import Tensor

from sla_ckpt.attention.reference import DENOMINATOR_EPS, kept_blocks
from sla_ckpt.attention.triton import blockmap_kernels, linear_kernels, sparse_kernels
from sla_ckpt.attention.triton.tiles import FEATURE_CODES
from sla_ckpt.attention.triton.tuning import Tuning, tuning_for
from sla_ckpt.state import SLASettings

#: Keeps φ(k) · min(L_k, this) / Σφ(k) inside float16.
_LINEAR_SCALE_LIMIT = 32768


@dataclass(frozen=True)
class Problem:
    """Sizes and constants of one call.

    Attributes:
        batch: B.
        heads: H.
        queries: L.
        keys: L_k.
        dim: D.
        blkq: query block length.
        blkk: key block length.
        kept: key blocks kept per query block.
        feature: code of the feature map.
        tuning: launch parameters.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    dim: int
    blkq: int
    blkk: int
    kept: int
    feature: int
    tuning: Tuning

    @classmethod
    def of(cls, q: Tensor, k: Tensor, settings: SLASettings, tuning: Tuning | None) -> Problem:
        batch, heads, queries, dim = q.shape
        blkq, blkk = settings.blkq, settings.blkk
        kept = kept_blocks(-(-k.shape[2] // blkk), settings.topk)
        if tuning is None:
            tuning = tuning_for(padded(dim), blkq, blkk)
        code = FEATURE_CODES[settings.feature_map]
        return cls(batch, heads, queries, k.shape[2], dim, blkq, blkk, kept, code, tuning)

    @property
    def planes(self) -> int:
        """B * H."""
        return self.batch * self.heads

    @property
    def query_blocks(self) -> int:
        return -(-self.queries // self.blkq)

    @property
    def key_blocks(self) -> int:
        return -(-self.keys // self.blkk)

    @property
    def padded_dim(self) -> int:
        return padded(self.dim)

    @property
    def score_scale(self) -> float:
        """Softmax scale for scores in base 2."""
        return self.dim**-0.5 * log2(2.718281828459045)


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


def padded(dim: int) -> int:
    """head_dim as the kernels see it: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(dim))  # type: ignore[no-any-return]


@contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Triton launches on the current device; make that the tensor's."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def row_major(x: Tensor) -> Tensor:
    """The kernels take any strides but the last, which must be 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


def pool(x: Tensor, block: int) -> Tensor:
    """Block means, float32 ``[B * H, blocks, D]``."""
    batch, heads, length, dim = x.shape
    blocks = -(-length // block)
    pooled = x.new_empty((batch * heads, blocks, dim), dtype=torch.float32)
    blockmap_kernels.pool_kernel[(blocks, batch * heads)](
        x,
        pooled,
        *x.stride()[:3],
        heads,
        length,
        blocks,
        D=dim,
        DP=padded(dim),
        BLOCK=block,
        EVEN=length % block == 0,
    )
    return pooled


def block_lists(p: Problem, pooled_q: Tensor, pooled_k: Tensor, *, with_mask: bool) -> BlockLists:
    """Scores of the pooled blocks and the top ``kept`` of each row."""
    nq, nk = p.query_blocks, p.key_blocks
    scores = pooled_q.new_empty((p.planes, nq, nk))
    tile = 64 if p.padded_dim <= 128 else 32
    blockmap_kernels.score_kernel[(-(-nq // tile), -(-nk // tile), p.planes)](
        pooled_q, pooled_k, scores, nq, nk, D=p.dim, DP=p.padded_dim, TILE=tile, num_stages=1
    )
    lut = torch.empty((p.planes, nq, p.kept), dtype=torch.int32, device=scores.device)
    mask = None
    if with_mask:
        mask = torch.empty((p.planes, nk, nq), dtype=torch.int8, device=scores.device)
    width = triton.next_power_of_2(nk)
    rows = 4 if width <= 1024 else 1
    blockmap_kernels.topk_kernel[(-(-nq // rows), p.planes)](
        scores,
        lut,
        mask,
        nq,
        nk,
        p.kept,
        ROWS=rows,
        WIDTH=width,
        WITH_MASK=with_mask,
        num_warps=4 if width <= 4096 else 16,
    )
    return BlockLists(lut, mask)


def lists_from_map(blocks: Tensor) -> BlockLists:
    """The lists of a given block map, bool ``[B, H, query blocks, key blocks]`` of equal rows."""
    flat = blocks.flatten(0, 1)
    kept = int(flat[0, 0].sum())
    order = flat.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    lut = order[..., :kept].to(torch.int32).contiguous()
    return BlockLists(lut, flat.transpose(1, 2).to(torch.int8).contiguous())


def sum_keys(p: Problem, k: Tensor, v: Tensor, weight: Tensor) -> tuple[Tensor, LinearSums]:
    """Block means of k, and the sums of the linear branch with the projection folded in."""
    dp = p.padded_dim
    tile_v = min(dp, 128) if dp <= 128 else 64
    columns = dp // tile_v
    parts, per_part = _split(p.key_blocks, p.planes * columns, k.device)
    new = torch.empty
    options = {"dtype": torch.float32, "device": k.device}
    pooled = new((p.planes, p.key_blocks, p.dim), **options)
    kv_parts = new((p.planes, parts, p.dim, p.dim), **options)
    k_sum_parts = new((p.planes, parts, p.dim), **options)
    linear_kernels.key_sums_kernel[(parts, p.planes, columns)](
        k,
        v,
        pooled,
        kv_parts,
        k_sum_parts,
        *k.stride()[:3],
        *v.stride()[:3],
        p.heads,
        p.keys,
        p.key_blocks,
        per_part,
        D=p.dim,
        DP=dp,
        BLOCK=p.blkk,
        TILE_V=tile_v,
        FEATURE=p.feature,
        EVEN=p.keys % p.blkk == 0,
        num_warps=4 if dp <= 64 else 8,
        num_stages=2,
    )
    means = new((p.planes, p.dim, p.dim), **options)
    k_sum = new((p.planes, p.dim), **options)
    folded = torch.empty_like(means, dtype=k.dtype)
    linear_kernels.fold_kernel[(-(-p.dim // 16), p.planes)](
        kv_parts,
        k_sum_parts,
        weight,
        means,
        k_sum,
        folded,
        parts,
        D=p.dim,
        DP=dp,
        ROWS=16,
        CHUNK=min(dp, 32),
        num_stages=1,
    )
    return pooled, LinearSums(k_sum, means, folded)


@dataclass(frozen=True, eq=False)
class Forward:
    """Output of the forward kernel, and what the backward needs of it.

    Attributes:
        o: ``[B, H, L, D]``.
        o_sparse: the sparse branch alone, or None when nothing is saved.
        lse: float32 ``[B * H, L]``, base 2, or None.
    """

    o: Tensor
    o_sparse: Tensor | None
    lse: Tensor | None


def forward(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    sums: LinearSums | None,
    bias: Tensor | None,
    *,
    save: bool,
) -> Forward:
    """Both branches and the projection; only the sparse branch when there are no sums."""
    launch = p.tuning.forward
    o = torch.empty_like(q)
    o_sparse = lse = None
    if save:
        lse = torch.empty((p.planes, p.queries), dtype=torch.float32, device=q.device)
        o_sparse = o if sums is None else torch.empty_like(q)
    sparse_kernels.forward_kernel[(-(-p.queries // launch.tile), p.planes)](
        q,
        k,
        v,
        o,
        o_sparse,
        lse,
        lists.lut,
        sums.k_sum if sums else None,
        sums.folded if sums else None,
        bias,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *o.stride()[:3],
        p.heads,
        p.queries,
        p.keys,
        p.query_blocks,
        p.kept,
        p.score_scale,
        D=p.dim,
        DP=p.padded_dim,
        BLOCK_Q=p.blkq,
        BLOCK_K=p.blkk,
        TILE=launch.tile,
        TILE_IN=launch.tile_in,
        FEATURE=p.feature,
        LINEAR=sums is not None,
        SAVE=save,
        EVEN_Q=p.queries % p.blkq == 0,
        EVEN_K=_even_keys(p, launch.tile_in),
        WIDE=_wide(k, v),
        EPS=DENOMINATOR_EPS,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return Forward(o, o_sparse, lse)


@dataclass(frozen=True, eq=False)
class QuerySums:
    """Sums over the queries, see ``query_sums_kernel``; all but delta None without linear branch.

    Attributes:
        delta: float32 ``[B * H, L]``.
        a: float32 ``[B * H, D, D]``, gradient of means times projection.
        d_means: compute dtype ``[B * H, D, D]``, divided by ``d_means_scale`` if that is set.
        d_means_scale: float32 ``[B * H]``, for float16 only.
        d_k_sum: float32 ``[B * H, D]``.
        d_bias: float32 ``[B * H, D]``.
    """

    delta: Tensor
    a: Tensor | None = None
    d_means: Tensor | None = None
    d_means_scale: Tensor | None = None
    d_k_sum: Tensor | None = None
    d_bias: Tensor | None = None


def sum_queries(
    p: Problem,
    q: Tensor,
    g: Tensor,
    o_sparse: Tensor,
    sums: LinearSums | None,
    weight: Tensor | None,
) -> QuerySums:
    """First pass of the backward over the queries."""
    dp = p.padded_dim
    tile = 64
    tile_g = dp if dp <= 128 else 64
    columns = dp // tile_g if sums else 1
    parts, per_part = _split(-(-p.queries // tile), p.planes * columns, q.device)
    new = torch.empty
    options = {"dtype": torch.float32, "device": q.device}
    delta = new((p.planes, p.queries), **options)
    a_parts = d_k_sum_parts = d_bias_parts = None
    if sums is not None:
        a_parts = new((p.planes, parts, p.dim, p.dim), **options)
        d_k_sum_parts = new((p.planes, parts, p.dim), **options)
        d_bias_parts = new((p.planes, parts, p.dim), **options)
    linear_kernels.query_sums_kernel[(parts, p.planes, columns)](
        q,
        g,
        o_sparse,
        sums.k_sum if sums else None,
        sums.folded if sums else None,
        delta,
        a_parts,
        d_k_sum_parts,
        d_bias_parts,
        *q.stride()[:3],
        *g.stride()[:3],
        *o_sparse.stride()[:3],
        p.heads,
        p.queries,
        per_part,
        D=p.dim,
        DP=dp,
        TILE=tile,
        TILE_G=tile_g,
        FEATURE=p.feature,
        LINEAR=sums is not None,
        EVEN=p.queries % tile == 0,
        EPS=DENOMINATOR_EPS,
        num_warps=4 if dp <= 64 else 8,
        num_stages=2 if dp <= 128 else 1,
    )
    if sums is None or weight is None:
        return QuerySums(delta)
    scaled = q.dtype == torch.float16
    a = torch.empty_like(sums.means)
    d_means = torch.empty_like(a, dtype=torch.float32 if scaled else q.dtype)
    d_k_sum = torch.empty_like(sums.k_sum)
    d_bias = torch.empty_like(sums.k_sum)
    linear_kernels.fold_backward_kernel[(-(-p.dim // 16), p.planes)](
        a_parts,
        d_k_sum_parts,
        d_bias_parts,
        weight,
        sums.means,
        sums.k_sum,
        a,
        d_means,
        d_k_sum,
        d_bias,
        parts,
        D=p.dim,
        DP=dp,
        ROWS=16,
        CHUNK=min(dp, 32),
        num_stages=1,
    )
    scale = None
    if scaled:
        # A sum over all queries of scaled losses leaves float16's range; its shape does not.
        scale = d_means.abs().amax((1, 2)).clamp_min_(torch.finfo(torch.float32).tiny)
        d_means = (d_means / scale[:, None, None]).to(q.dtype)
    return QuerySums(delta, a, d_means, scale, d_k_sum, d_bias)


def query_grad(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lse: Tensor,
    lut: Tensor,
    sums: LinearSums | None,
    query_sums: QuerySums,
) -> Tensor:
    """Gradient of the queries, ``[B, H, L, D]``."""
    launch = p.tuning.query_grad
    dq = torch.empty_like(q)
    sparse_kernels.query_grad_kernel[(-(-p.queries // launch.tile), p.planes)](
        q,
        k,
        v,
        g,
        dq,
        lse,
        query_sums.delta,
        lut,
        sums.k_sum if sums else None,
        sums.folded if sums else None,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *g.stride()[:3],
        *dq.stride()[:3],
        p.heads,
        p.queries,
        p.keys,
        p.query_blocks,
        p.kept,
        p.score_scale,
        p.dim**-0.5,
        D=p.dim,
        DP=p.padded_dim,
        BLOCK_Q=p.blkq,
        BLOCK_K=p.blkk,
        TILE=launch.tile,
        TILE_IN=launch.tile_in,
        FEATURE=p.feature,
        LINEAR=sums is not None,
        EVEN_Q=p.queries % p.blkq == 0,
        EVEN_K=_even_keys(p, launch.tile_in),
        WIDE=_wide(k, v),
        EPS=DENOMINATOR_EPS,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return dq


def query_lists(p: Problem, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Per key block the query blocks that keep it: int32 ``[B * H, nk, nq]`` and their number."""
    nq, nk = p.query_blocks, p.key_blocks
    lists = torch.empty((p.planes, nk, nq), dtype=torch.int32, device=mask.device)
    counts = torch.empty((p.planes, nk), dtype=torch.int32, device=mask.device)
    width = triton.next_power_of_2(nq)
    blockmap_kernels.query_list_kernel[(nk, p.planes)](
        mask, lists, counts, nq, nk, WIDTH=width, num_warps=1 if width <= 512 else 4
    )
    return lists, counts


def key_grad(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    sums: LinearSums | None,
    query_sums: QuerySums,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values, each ``[B, H, L_k, D]``."""
    launch = p.tuning.key_grad
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    sparse_kernels.key_grad_kernel[(-(-p.keys // launch.tile), p.planes)](
        q,
        k,
        v,
        g,
        dk,
        dv,
        lse,
        query_sums.delta,
        lists,
        counts,
        sums.k_sum if sums else None,
        query_sums.d_means,
        query_sums.d_means_scale,
        query_sums.d_k_sum,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *g.stride()[:3],
        *dk.stride()[:3],
        *dv.stride()[:3],
        p.heads,
        p.queries,
        p.keys,
        p.query_blocks,
        p.key_blocks,
        p.score_scale,
        p.dim**-0.5,
        float(min(p.keys, _LINEAR_SCALE_LIMIT)),
        D=p.dim,
        DP=p.padded_dim,
        BLOCK_Q=p.blkq,
        BLOCK_K=p.blkk,
        TILE=launch.tile,
        TILE_IN=launch.tile_in,
        FEATURE=p.feature,
        LINEAR=sums is not None,
        SCALED=query_sums.d_means_scale is not None,
        EVEN_Q=p.queries % p.blkq == 0 and launch.tile_in <= p.blkq,
        EVEN_K=p.keys % p.blkk == 0,
        WIDE=_wide(q, g),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return dk, dv


def _even_keys(p: Problem, tile_in: int) -> bool:
    """Whether every inner tile of the kept list is full, so that no load needs a mask."""
    return p.keys % p.blkk == 0 and (p.kept * p.blkk) % tile_in == 0


def _wide(*tensors: Tensor) -> bool:
    """Whether offsets inside one head overflow 32 bits."""
    return any(x.shape[2] * x.stride(2) >= 2**31 for x in tensors)


def _split(items: int, others: int, device: torch.device) -> tuple[int, int]:
    """Parts to split a long sum into so that the device is full, and items per part."""
    parts = max(1, min(items, 2 * _processors(device) // others))
    per_part = -(-items // parts)
    return -(-items // per_part), per_part


@lru_cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
