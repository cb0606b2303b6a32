"""Linear branch over the blocks that were not kept (the SLA-1 branch of thu-ml/SLA).

Per key block h = φ(k)ᵀ v and z = Σ φ(k); a query block adds up those of its unselected blocks,
which is one matrix product of the inverted block map with all h (paper, section 4). In float32,
a few heads at a time, so that memory stays bounded; the backward recomputes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sla_ckpt.attention.reference import DENOMINATOR_EPS, feature
from sla_ckpt.state import SLASettings

#: Elements of h and of its sums that are held at once.
_CHUNK_ELEMENTS = 2**27


def complement_linear(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, settings: SLASettings
) -> Tensor:
    """o_l over the unselected blocks, float32 ``[B, H, L, D]``.

    Args:
        q: queries of shape ``[B, H, L, D]``.
        k: keys of shape ``[B, H, L_k, D]``.
        v: values of shape ``[B, H, L_k, D]``.
        mask: int8 ``[B * H, key blocks, query blocks]``, 1 where a block is kept.
        settings: SLA's settings.
    """
    output: Tensor = _Complement.apply(q, k, v, mask, settings)  # type: ignore[no-untyped-call]
    return output


class _Complement(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, settings: SLASettings
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.settings = settings
        planes = (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        out = torch.empty(planes[0].shape, dtype=torch.float32, device=q.device)
        for chunk in _chunks(mask, q.shape[-1]):
            out[chunk] = _unselected([x[chunk] for x in planes], mask[chunk], settings)
        return out.view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        planes = [x.flatten(0, 1) for x in (q, k, v)]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in planes]
        g = g.flatten(0, 1)
        for chunk in _chunks(mask, q.shape[-1]):
            parts = [x[chunk].detach().requires_grad_() for x in planes]
            with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
                out = _unselected(parts, mask[chunk], ctx.settings)
            for grad, part in zip(grads, torch.autograd.grad(out, parts, g[chunk]), strict=True):
                grad[chunk] = part
        return (*(grad.view(x.shape) for grad, x in zip(grads, (q, k, v), strict=True)), None, None)


def _chunks(mask: Tensor, dim: int) -> Iterator[slice]:
    planes, nk, nq = mask.shape
    size = max(1, _CHUNK_ELEMENTS // ((nk + nq) * dim * dim))
    for start in range(0, planes, size):
        yield slice(start, start + size)


def _unselected(qkv: list[Tensor], mask: Tensor, settings: SLASettings) -> Tensor:
    q, k, v = qkv
    planes, length, dim = q.shape
    phi_q = _blocks(feature(q.float(), settings.feature_map), settings.blkq)
    phi_k = _blocks(feature(k.float(), settings.feature_map), settings.blkk)
    values = _blocks(v.float(), settings.blkk)
    wanted = 1 - mask.transpose(1, 2).float()
    h = (phi_k.transpose(-1, -2) @ values).flatten(2)
    kv = (wanted @ h).view(planes, -1, dim, dim)
    k_sum = wanted @ phi_k.sum(2)
    numerator = phi_q @ kv
    denominator = DENOMINATOR_EPS + phi_q @ k_sum.unsqueeze(-1)
    return (numerator / denominator).flatten(1, 2)[:, :length]


def _blocks(x: Tensor, block: int) -> Tensor:
    """``[planes, L, D]`` to ``[planes, blocks, block, D]``, zero-padded."""
    planes, length, dim = x.shape
    return F.pad(x, (0, 0, 0, -length % block)).view(planes, -1, block, dim)
