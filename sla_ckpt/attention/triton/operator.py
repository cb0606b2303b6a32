"""The differentiable operator on top of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sla_ckpt.attention.kernels import interpreting
from sla_ckpt.attention.reference import linear_branch
from sla_ckpt.attention.triton import backward, forward
from sla_ckpt.attention.triton.complement import complement_linear
from sla_ckpt.attention.triton.dispatch import on_device, row_major
from sla_ckpt.attention.triton.problem import (
    BlockLists,
    ForwardResult,
    LinearSums,
    Problem,
    problem_for,
)
from sla_ckpt.attention.triton.tuning import Tuning
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import SLASettings


def sla_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    settings: SLASettings,
    *,
    variant: str = "main",
    blocks: Tensor | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """Sparse branch plus projected linear branch. The forward and the backward are deterministic.

    On a GPU float32 inputs are computed in bfloat16, as thu-ml/SLA does.

    Args:
        q: queries of shape ``[B, H, L, D]``, any strides.
        k: keys of shape ``[B, H, L_k, D]``.
        v: values of shape ``[B, H, L_k, D]``.
        weight: projection of shape ``[D, D]``, float32.
        bias: shape ``[D]``.
        settings: SLA's settings, valid ones.
        variant: ``main`` or ``sla-1``.
        blocks: The block map to use, bool ``[B, H, query blocks, key blocks]`` with equally many
            blocks in every row (costs a device synchronisation); None computes it.
        tuning: Launch parameters; None takes the table's.

    Returns:
        Output of shape ``[B, H, L, D]`` and the dtype of ``q``.
    """
    dtype = q.dtype
    q, k, v = (row_major(_computable(x)) for x in (q, k, v))
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    with on_device(q), torch.autocast(q.device.type, enabled=False):
        if variant == "main":
            return _run(q, k, v, weight, bias, settings, blocks, tuning).to(dtype)
        if blocks is None:
            lists = compute_blocks(q, k, settings)
        else:
            lists = forward.lists_from_map(blocks)
        o_sparse = _run(q, k, v, None, None, settings, lists, tuning)
        o_linear = complement_linear(q, k, v, lists.mask, settings)
        return (o_sparse + F.linear(o_linear, weight, bias).to(q.dtype)).to(dtype)


def branches_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: SLASettings,
    *,
    variant: str = "main",
) -> tuple[Tensor, Tensor]:
    """Both branches before the projection; arguments as for :func:`sla_triton`.

    Returns:
        ``(o_s, o_l)``, each ``[B, H, L, D]`` in the dtype of ``q``.
    """
    dtype = q.dtype
    q, k, v = (row_major(_computable(x)) for x in (q, k, v))
    with on_device(q), torch.autocast(q.device.type, enabled=False):
        lists = compute_blocks(q, k, settings)
        o_sparse = _run(q, k, v, None, None, settings, lists, None)
        if variant == "main":
            o_linear = linear_branch(q, k, v, settings.feature_map)
        else:
            o_linear = complement_linear(q, k, v, lists.mask, settings)
    return o_sparse.to(dtype), o_linear.to(dtype)


def compute_blocks(q: Tensor, k: Tensor, settings: SLASettings) -> BlockLists:
    """The block map of queries and keys, with its mask."""
    problem = problem_for(q, k, settings, None)
    pooled_q, pooled_k = forward.pool(q, settings.blkq), forward.pool(k, settings.blkk)
    return forward.block_lists(problem, pooled_q, pooled_k, with_mask=True)


def _computable(x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and not interpreting():
        return x.to(torch.bfloat16)
    return x


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    settings: SLASettings,
    blocks: Tensor | BlockLists | None,
    tuning: Tuning | None,
) -> Tensor:
    if isinstance(blocks, Tensor):
        blocks = forward.lists_from_map(blocks)
    problem = problem_for(q, k, settings, tuning)
    if blocks is not None and blocks.lut.shape[-1] != problem.kept:
        raise AttentionError(
            f"the block map keeps {blocks.lut.shape[-1]} blocks per row, topk {problem.kept}"
        )
    inputs = [x for x in (q, k, v, weight, bias) if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Attention.apply(  # type: ignore[no-untyped-call,no-any-return]
            q, k, v, weight, bias, problem, blocks
        )
    return _forward(problem, q, k, v, weight, bias, blocks, save=False)[0].o


def _forward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lists: BlockLists | None,
    *,
    save: bool,
) -> tuple[ForwardResult, BlockLists, LinearSums | None]:
    sums = pooled_k = None
    if weight is not None:
        pooled_k, sums = forward.sum_keys(problem, k, v, weight)
    if lists is None:
        pooled_q = forward.pool(q, problem.blkq)
        if pooled_k is None:
            pooled_k = forward.pool(k, problem.blkk)
        lists = forward.block_lists(problem, pooled_q, pooled_k, with_mask=save)
    result = forward.attend(problem, q, k, v, lists, sums, bias, save=save)
    return result, lists, sums


class _Attention(torch.autograd.Function):
    """Both branches, or the sparse one alone when there is no weight."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        problem: Problem,
        blocks: BlockLists | None,
    ) -> Tensor:
        result, lists, sums = _forward(problem, q, k, v, weight, bias, blocks, save=True)
        linear = (sums.k_sum, sums.means, sums.folded) if sums is not None else (None, None, None)
        ctx.save_for_backward(
            q, k, v, weight, result.o_sparse, result.lse, lists.lut, lists.mask, *linear
        )
        ctx.problem = problem
        return result.o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight, o_sparse, lse, lut, mask, k_sum, means, folded = ctx.saved_tensors
        p: Problem = ctx.problem
        sums = LinearSums(k_sum, means, folded) if k_sum is not None else None
        needs_q, needs_k, needs_v, needs_weight, needs_bias = ctx.needs_input_grad[:5]
        dq = dk = dv = d_weight = d_bias = grads = None
        with on_device(q), torch.autocast(q.device.type, enabled=False):
            g = row_major(g)
            delta, dq, d_k_sum_parts = backward.query_rows(p, q, g, o_sparse, sums)
            if sums is not None and d_k_sum_parts is not None:
                grads = backward.linear_grads(p, q, g, sums, weight, d_k_sum_parts)
                if needs_weight:
                    d_weight = grads.a.flatten(0, 1).T @ means.flatten(0, 1)
                if needs_bias:
                    d_bias = grads.d_bias.sum(0)
            if needs_q:
                linear = sums is not None
                backward.query_grad(p, q, k, v, g, dq, lse, delta, lut, linear=linear)
            if needs_k or needs_v:
                dk, dv = backward.key_grad(p, q, k, v, g, lse, delta, mask, sums, grads)
        return (
            dq if needs_q else None,
            dk if needs_k else None,
            dv if needs_v else None,
            d_weight,
            d_bias,
            None,
            None,
        )
