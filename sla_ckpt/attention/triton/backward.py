"""The backward pass on tensors.

Order: sums over the queries (the gradients of M Wᵀ and of the bias), the linear branch's share of
dq, then of dk and dv, and on top of these the sparse branch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sla_ckpt.attention.reference import DENOMINATOR_EPS
from sla_ckpt.attention.triton import blockmap_kernels, linear_grad_kernels, sparse_kernels
from sla_ckpt.attention.triton.dispatch import layout, split, start
from sla_ckpt.attention.triton.forward import attention_site
from sla_ckpt.attention.triton.problem import LinearGrads, LinearSums, Problem, power_of_two

#: Keeps φ(k) · min(L_k, this) / Σφ(k) inside float16.
_LINEAR_SCALE_LIMIT = 32768
#: Rows per step of the kernels that walk all tokens once.
_TILE = 64


@dataclass(frozen=True, eq=False)
class QuerySums:
    """Sums over the queries, in parts; all but ``delta`` and ``dq`` None without linear branch.

    Attributes:
        delta: float32 ``[B * H, L]``, Σ_d g ∘ o_s.
        dq: the linear branch's share of the queries' gradient.
        a: float32 ``[B * H, parts, D, D]``.
        d_k_sum: float32 ``[B * H, parts, D]``.
        d_bias: float32 ``[B * H, parts, D]``.
    """

    delta: Tensor
    dq: Tensor
    a: Tensor | None
    d_k_sum: Tensor | None
    d_bias: Tensor | None


def sum_queries(
    p: Problem, q: Tensor, g: Tensor, o_sparse: Tensor, sums: LinearSums | None
) -> QuerySums:
    """The one pass over the queries that all else needs."""
    dim, dp, device = p.dim, p.padded_dim, q.device
    tile_g = dp if dp <= 128 else 64
    columns = dp // tile_g if sums is not None else 1
    resident = 1 if dp > 64 and sums is not None else 2
    parts, per_part = split(-(-p.queries // _TILE), p.planes * columns, resident, device)
    delta = torch.empty((p.planes, p.queries), dtype=torch.float32, device=device)
    dq = torch.empty_like(q)
    k_sum = folded = a = d_k_sum = d_bias = None
    if sums is not None:
        k_sum, folded = sums.k_sum, sums.folded
        a = torch.empty((p.planes, parts, dim, dim), dtype=torch.float32, device=device)
        d_k_sum = torch.empty((p.planes, parts, dim), dtype=torch.float32, device=device)
        d_bias = torch.empty((p.planes, parts, dim), dtype=torch.float32, device=device)
    strides = [x for t in (q, g, o_sparse, dq) for x in t.stride()[:3]]
    start(
        linear_grad_kernels.query_sums_kernel,
        (parts, p.planes, columns),
        (p, *attention_site(q, g, o_sparse), sums is None),
        (
            *(q, g, o_sparse, dq, k_sum, folded, delta, a, d_k_sum, d_bias),
            *(*strides, p.heads, p.queries, per_part),
        ),
        {
            "D": dim,
            "DP": dp,
            "TILE": _TILE,
            "TILE_G": tile_g,
            "FEATURE": p.feature,
            "LINEAR": sums is not None,
            "EVEN": p.queries % _TILE == 0,
            "EPS": DENOMINATOR_EPS,
        },
        warps=4 if dp <= 64 else 8,
        stages=2 if dp <= 128 else 1,
    )
    return QuerySums(delta, dq, a, d_k_sum, d_bias)


def linear_grads(p: Problem, parts: QuerySums, sums: LinearSums, weight: Tensor) -> LinearGrads:
    """Gradients of the linear branch's sums over the keys."""
    assert parts.a is not None
    scaled = sums.folded.dtype == torch.float16
    a = torch.empty_like(sums.means)
    d_means = torch.empty_like(a, dtype=torch.float32 if scaled else sums.folded.dtype)
    d_k_sum = torch.empty_like(sums.k_sum)
    d_bias = torch.empty_like(sums.k_sum)
    start(
        linear_grad_kernels.fold_backward_kernel,
        (-(-p.dim // 16), p.planes, 1),
        (p, layout(weight), d_means.dtype),
        (
            *(parts.a, parts.d_k_sum, parts.d_bias, weight, sums.means, sums.k_sum),
            *(a, d_means, d_k_sum, d_bias, parts.a.shape[1]),
        ),
        {"D": p.dim, "DP": p.padded_dim, "ROWS": 16, "CHUNK": min(p.padded_dim, 32)},
        stages=1,
    )
    scale = None
    if scaled:
        # A sum over all queries of scaled losses leaves float16's range; its shape does not.
        scale = d_means.abs().amax((1, 2)).clamp_min_(torch.finfo(torch.float32).tiny)
        d_means = (d_means / scale[:, None, None]).to(torch.float16)
    return LinearGrads(a, d_means, scale, d_k_sum, d_bias)


def projection_grads(p: Problem, sums: LinearSums, grads: LinearGrads) -> tuple[Tensor, Tensor]:
    """Gradients of the projection's weight ``[D, D]`` and bias ``[D]``, float32."""
    d_weight = grads.a.new_empty((p.dim, p.dim))
    d_bias = grads.a.new_empty((p.dim,))
    start(
        linear_grad_kernels.projection_grad_kernel,
        (-(-p.dim // 16), 1, 1),
        (p, grads.a.device.index),
        (grads.a, sums.means, grads.d_bias, d_weight, d_bias, p.planes),
        {"D": p.dim, "DP": p.padded_dim, "ROWS": 16, "CHUNK": 64},
    )
    return d_weight, d_bias


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
    parts, per_part = split(-(-p.keys // _TILE), p.planes, 2 if dp <= 128 else 1, k.device)
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
