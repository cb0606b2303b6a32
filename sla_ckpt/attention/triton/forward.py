"""The forward pass on tensors, without autograd: block map, sums over the keys, attention."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from sla_ckpt.attention.reference import DENOMINATOR_EPS
from sla_ckpt.attention.triton import blockmap_kernels, linear_kernels, sparse_kernels
from sla_ckpt.attention.triton.dispatch import layout, split, start
from sla_ckpt.attention.triton.problem import (
    BlockLists,
    ForwardResult,
    LinearSums,
    Problem,
    padded,
    power_of_two,
)


def pool(x: Tensor, block: int) -> Tensor:
    """Block means, float32 ``[B * H, blocks, D]``."""
    batch, heads, length, dim = x.shape
    blocks = -(-length // block)
    pooled = torch.empty((batch * heads, blocks, dim), dtype=torch.float32, device=x.device)
    start(
        blockmap_kernels.pool_kernel,
        (blocks, batch * heads, 1),
        (x.shape, layout(x), block),
        (x, pooled, *x.stride()[:3], heads, length, blocks),
        {"D": dim, "DP": padded(dim), "BLOCK": block, "EVEN": length % block == 0},
    )
    return pooled


def block_lists(p: Problem, pooled_q: Tensor, pooled_k: Tensor, *, with_mask: bool) -> BlockLists:
    """Scores of the pooled blocks and the top ``kept`` of each row."""
    nq, nk, device = p.query_blocks, p.key_blocks, pooled_q.device
    scores = torch.empty((p.planes, nq, nk), dtype=torch.float32, device=device)
    site = (p, device.index, with_mask)
    tile = 64
    start(
        blockmap_kernels.score_kernel,
        (-(-nq // tile), -(-nk // tile), p.planes),
        site,
        (pooled_q, pooled_k, scores, nq, nk),
        {"D": p.dim, "TILE": tile, "CHUNK": min(p.padded_dim, 32)},
    )
    lut = torch.empty((p.planes, nq, p.kept), dtype=torch.int32, device=device)
    mask = None
    if with_mask:
        mask = torch.empty((p.planes, nk, nq), dtype=torch.int8, device=device)
    width = power_of_two(nk)
    rows = 4 if width <= 1024 else 1
    start(
        blockmap_kernels.topk_kernel,
        (-(-nq // rows), p.planes, 1),
        site,
        (scores, lut, mask, nq, nk, p.kept),
        {"ROWS": rows, "WIDTH": width, "WITH_MASK": with_mask},
        warps=4 if width <= 4096 else 16,
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
    dp, dim, device = p.padded_dim, p.dim, k.device
    tile_v = min(dp, 64)
    parts, per_part = split(p.key_blocks, p.planes * dp // tile_v, 3 if dp <= 128 else 1, device)
    pooled = torch.empty((p.planes, p.key_blocks, dim), dtype=torch.float32, device=device)
    kv_parts = torch.empty((p.planes, parts, dim, dim), dtype=torch.float32, device=device)
    k_sum_parts = torch.empty((p.planes, parts, dim), dtype=torch.float32, device=device)
    strides = (*k.stride()[:3], *v.stride()[:3])
    site = (p, layout(k), layout(v), layout(weight))
    start(
        linear_kernels.key_sums_kernel,
        (parts, p.planes, dp // tile_v),
        site,
        (k, v, pooled, kv_parts, k_sum_parts, *strides, p.heads, p.keys, p.key_blocks, per_part),
        {
            "D": dim,
            "DP": dp,
            "BLOCK": p.blkk,
            "TILE_V": tile_v,
            "FEATURE": p.feature,
            "EVEN": p.keys % p.blkk == 0,
        },
        warps=4 if dp <= 128 and p.blkk == 64 else 8,
    )
    means = torch.empty((p.planes, dim, dim), dtype=torch.float32, device=device)
    k_sum = torch.empty((p.planes, dim), dtype=torch.float32, device=device)
    folded = torch.empty((p.planes, dim, dim), dtype=k.dtype, device=device)
    start(
        linear_kernels.fold_kernel,
        (-(-dim // 16), p.planes, 1),
        site,
        (kv_parts, k_sum_parts, weight, means, k_sum, folded, parts),
        {"D": dim, "DP": dp, "ROWS": 16, "CHUNK": min(dp, 32)},
        stages=1,
    )
    return pooled, LinearSums(k_sum, means, folded)


def attend(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    sums: LinearSums | None,
    bias: Tensor | None,
    *,
    save: bool,
) -> ForwardResult:
    """Both branches and the projection; only the sparse branch when there are no sums."""
    launch = p.tuning.forward
    o = torch.empty_like(q)
    o_sparse = lse = k_sum = folded = None
    if save:
        lse = torch.empty((p.planes, p.queries), dtype=torch.float32, device=q.device)
        o_sparse = o if sums is None else torch.empty_like(q)
    if sums is not None:
        k_sum, folded = sums.k_sum, sums.folded
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3])
    sizes = (p.heads, p.queries, p.keys, p.query_blocks, p.kept)
    start(
        sparse_kernels.forward_kernel,
        (-(-p.queries // launch.tile), p.planes, 1),
        (p, *attention_site(q, k, v), layout(bias) if bias is not None else None, save),
        (
            *(q, k, v, o, o_sparse, lse, lists.lut, k_sum, folded, bias),
            *(*strides, *sizes, p.score_scale),
        ),
        {
            "D": p.dim,
            "DP": p.padded_dim,
            "BLOCK_Q": p.blkq,
            "BLOCK_K": p.blkk,
            "TILE": launch.tile,
            "TILE_IN": launch.tile_in,
            "FEATURE": p.feature,
            "LINEAR": sums is not None,
            "SAVE": save,
            "EVEN_Q": p.queries % p.blkq == 0,
            "EVEN_K": p.keys % p.blkk == 0,
            "WIDE": spans_32_bits(k, v),
            "EPS": DENOMINATOR_EPS,
        },
        warps=launch.warps,
        stages=launch.stages,
    )
    return ForwardResult(o, o_sparse, lse)


def attention_site(*tensors: Tensor) -> tuple[Hashable, ...]:
    """The part of a launch's site that its inputs decide."""
    return tuple(layout(x) for x in tensors)


def spans_32_bits(*tensors: Tensor) -> bool:
    """Whether offsets inside one head overflow 32 bits."""
    return any(x.shape[2] * x.stride(2) >= 2**31 for x in tensors)
