"""The backward pass on tensors.

Order: sums over the queries (the gradients of M Wᵀ and of the bias), the linear branch's share of
dq, then of dk and dv, and on top of these the sparse branch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sla_ckpt.attention.reference import DENOMINATOR_EPS
from sla_ckpt.attention.triton import blockmap_kernels, linear_grad_kernels, sparse_kernels
from sla_ckpt.attention.triton.dispatch import layout, split, start
from sla_ckpt.attention.triton.forward import attention_site, spans_32_bits
from sla_ckpt.attention.triton.problem import LinearGrads, LinearSums, Problem, power_of_two

#: Keeps φ(k) · min(L_k, this) / Σφ(k) inside float16.
_LINEAR_SCALE_LIMIT = 32768
#: Rows per step of the kernels that walk all tokens once.
_TILE = 64


def query_rows(
    p: Problem, q: Tensor, g: Tensor, o_sparse: Tensor, sums: LinearSums | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """delta (float32 ``[B * H, L]``), dq so far, and parts of the gradient of k_sum."""
    dim, dp, device = p.dim, p.padded_dim, q.device
    parts, per_part = split(-(-p.queries // _TILE), p.planes, 4 if dp <= 128 else 1, device)
    delta = torch.empty((p.planes, p.queries), dtype=torch.float32, device=device)
    dq = torch.empty_like(q)
    k_sum = folded = d_k_sum_parts = None
    if sums is not None:
        k_sum, folded = sums.k_sum, sums.folded
        d_k_sum_parts = torch.empty((p.planes, parts, dim), dtype=torch.float32, device=device)
    strides = [x for t in (q, g, o_sparse, dq) for x in t.stride()[:3]]
    start(
        linear_grad_kernels.query_rows_kernel,
        (parts, p.planes, 1),
        (p, *attention_site(q, g, o_sparse), sums is None),
        (
            *(q, g, o_sparse, dq, k_sum, folded, delta, d_k_sum_parts),
            *(*strides, p.heads, p.queries, per_part),
        ),
        {
            "D": dim,
            "DP": dp,
            "TILE": _TILE,
            "FEATURE": p.feature,
            "LINEAR": sums is not None,
            "EVEN": p.queries % _TILE == 0,
            "EPS": DENOMINATOR_EPS,
        },
        warps=4 if dp <= 128 else 8,
        stages=2 if dp <= 128 else 1,
    )
    return delta, dq, d_k_sum_parts


def linear_grads(
    p: Problem, q: Tensor, g: Tensor, sums: LinearSums, weight: Tensor, d_k_sum_parts: Tensor
) -> LinearGrads:
    """Gradients of the linear branch's sums and of the projection."""
    dim, dp, device = p.dim, p.padded_dim, q.device
    tile_g = min(dp, 64)
    columns = dp // tile_g
    parts, per_part = split(
        -(-p.queries // _TILE), p.planes * columns, 3 if dp <= 128 else 1, device
    )
    a_parts = torch.empty((p.planes, parts, dim, dim), dtype=torch.float32, device=device)
    d_bias_parts = torch.empty((p.planes, parts, dim), dtype=torch.float32, device=device)
    strides = (*q.stride()[:3], *g.stride()[:3])
    start(
        linear_grad_kernels.query_outer_kernel,
        (parts, p.planes, columns),
        (p, layout(q), layout(g)),
        (
            *(q, g, sums.k_sum, a_parts, d_bias_parts),
            *(*strides, p.heads, p.queries, per_part),
        ),
        {
            "D": dim,
            "DP": dp,
            "TILE": _TILE,
            "TILE_G": tile_g,
            "FEATURE": p.feature,
            "EVEN": p.queries % _TILE == 0,
            "EPS": DENOMINATOR_EPS,
        },
        warps=4 if dp <= 128 else 8,
    )
    scaled = q.dtype == torch.float16
    a = torch.empty_like(sums.means)
    d_means = torch.empty_like(a, dtype=torch.float32 if scaled else q.dtype)
    d_k_sum = torch.empty_like(sums.k_sum)
    d_bias = torch.empty_like(sums.k_sum)
    start(
        linear_grad_kernels.fold_backward_kernel,
        (-(-dim // 16), p.planes, 1),
        (p, layout(weight), d_means.dtype),
        (
            *(a_parts, d_k_sum_parts, d_bias_parts, weight, sums.means, sums.k_sum),
            *(a, d_means, d_k_sum, d_bias, parts, d_k_sum_parts.shape[1]),
        ),
        {"D": dim, "DP": dp, "ROWS": 16, "CHUNK": min(dp, 32)},
        stages=1,
    )
    scale = None
    if scaled:
        # A sum over all queries of scaled losses leaves float16's range; its shape does not.
        scale = d_means.abs().amax((1, 2)).clamp_min_(torch.finfo(torch.float32).tiny)
        d_means = (d_means / scale[:, None, None]).to(q.dtype)
    return LinearGrads(a, d_means, scale, d_k_sum, d_bias)


def query_grad(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    dq: Tensor,
    lse: Tensor,
    delta: Tensor,
    lut: Tensor,
    *,
    linear: bool,
) -> None:
    """Add the sparse branch's share to ``dq``, or set it when there is no linear branch."""
    launch = p.tuning.query_grad
    strides = [x for t in (q, k, v, g, dq) for x in t.stride()[:3]]
    sizes = (p.heads, p.queries, p.keys, p.query_blocks, p.kept)
    start(
        sparse_kernels.query_grad_kernel,
        (-(-p.queries // launch.tile), p.planes, 1),
        (p, *attention_site(q, k, v, g), linear),
        (
            *(q, k, v, g, dq, lse, delta, lut),
            *(*strides, *sizes, p.score_scale, p.softmax_scale),
        ),
        {
            "D": p.dim,
            "DP": p.padded_dim,
            "BLOCK_Q": p.blkq,
            "BLOCK_K": p.blkk,
            "TILE": launch.tile,
            "TILE_IN": launch.tile_in,
            "LINEAR": linear,
            "EVEN_Q": p.queries % p.blkq == 0,
            "EVEN_K": p.keys % p.blkk == 0,
            "WIDE": spans_32_bits(k, v),
        },
        warps=launch.warps,
        stages=launch.stages,
    )


def query_lists(p: Problem, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Per key block the query blocks that keep it: int32 ``[B * H, nk, nq]`` and their number."""
    nq, nk = p.query_blocks, p.key_blocks
    lists = torch.empty((p.planes, nk, nq), dtype=torch.int32, device=mask.device)
    counts = torch.empty((p.planes, nk), dtype=torch.int32, device=mask.device)
    width = power_of_two(nq)
    start(
        blockmap_kernels.query_list_kernel,
        (nk, p.planes, 1),
        (p, mask.device.index),
        (mask, lists, counts, nq, nk),
        {"WIDTH": width},
        warps=1 if width <= 512 else 4,
    )
    return lists, counts


def key_grad(
    p: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    lse: Tensor,
    delta: Tensor,
    mask: Tensor,
    sums: LinearSums | None,
    grads: LinearGrads | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values, each ``[B, H, L_k, D]``."""
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    if sums is not None and grads is not None:
        _key_rows(p, k, v, dk, dv, sums, grads)
    lists, counts = query_lists(p, mask)
    launch = p.tuning.key_grad
    strides = [x for t in (q, k, v, g, dk, dv) for x in t.stride()[:3]]
    sizes = (p.heads, p.queries, p.keys, p.query_blocks, p.key_blocks)
    start(
        sparse_kernels.key_grad_kernel,
        (-(-p.keys // launch.tile), p.planes, 1),
        (p, *attention_site(q, k, v, g), sums is None),
        (
            *(q, k, v, g, dk, dv, lse, delta, lists, counts),
            *(*strides, *sizes, p.score_scale, p.softmax_scale),
        ),
        {
            "D": p.dim,
            "DP": p.padded_dim,
            "BLOCK_Q": p.blkq,
            "BLOCK_K": p.blkk,
            "TILE": launch.tile,
            "TILE_IN": launch.tile_in,
            "LINEAR": sums is not None,
            "EVEN_Q": p.queries % p.blkq == 0,
            "EVEN_K": p.keys % p.blkk == 0,
            "WIDE": spans_32_bits(q, g),
        },
        warps=launch.warps,
        stages=launch.stages,
    )
    return dk, dv


def _key_rows(
    p: Problem,
    k: Tensor,
    v: Tensor,
    dk: Tensor,
    dv: Tensor,
    sums: LinearSums,
    grads: LinearGrads,
) -> None:
    dp = p.padded_dim
    parts, per_part = split(-(-p.keys // _TILE), p.planes, 4 if dp <= 128 else 1, k.device)
    strides = [x for t in (k, v, dk, dv) for x in t.stride()[:3]]
    start(
        linear_grad_kernels.key_rows_kernel,
        (parts, p.planes, 1),
        (p, layout(k), layout(v)),
        (
            *(k, v, dk, dv, sums.k_sum, grads.d_means, grads.scale, grads.d_k_sum),
            *(*strides, p.heads, p.keys, per_part, float(min(p.keys, _LINEAR_SCALE_LIMIT))),
        ),
        {
            "D": p.dim,
            "DP": dp,
            "TILE": _TILE,
            "FEATURE": p.feature,
            "SCALED": grads.scale is not None,
            "EVEN": p.keys % _TILE == 0,
        },
        warps=4 if dp <= 128 else 8,
        stages=2 if dp <= 128 else 1,
    )
