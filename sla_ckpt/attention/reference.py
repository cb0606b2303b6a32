"""SLA in plain PyTorch: the formula of arXiv 2509.24006 as it reads, for any device and head_dim.

This is what every kernel is compared with. It is dense in memory (it forms all L x L_k scores), so
it is for small models and for tests. Half precision inputs are computed in float32 and float64
stays float64; outputs have the dtype of ``q``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sla_ckpt.errors import AttentionError
from sla_ckpt.state import FEATURE_MAPS, SLA_VARIANTS

#: Keeps the linear branch's denominator away from zero; thu-ml/SLA's value.
DENOMINATOR_EPS = 1e-5


def kept_blocks(n_key_blocks: int, topk: float) -> int:
    """How many key blocks each query block keeps: ``int(topk * n)``, but at least one."""
    return min(n_key_blocks, max(1, int(topk * n_key_blocks)))


def mean_pool(x: Tensor, block: int) -> Tensor:
    """Mean of each block of tokens, the last one over its real length.

    Args:
        x: tokens of shape ``[B, H, L, D]``.
        block: block length in tokens.

    Returns:
        Means of shape ``[B, H, ceil(L / block), D]``.
    """
    length = x.shape[-2]
    padded = F.pad(x, (0, 0, 0, -length % block))
    sums = padded.view(*x.shape[:2], -1, block, x.shape[-1]).sum(-2)
    sizes = torch.full((sums.shape[-2], 1), block, dtype=x.dtype, device=x.device)
    sizes[-1] = length - block * (sums.shape[-2] - 1)
    return sums / sizes


def block_map(q: Tensor, k: Tensor, *, topk: float, blkq: int, blkk: int) -> Tensor:
    """Which key blocks each query block attends to (paper, section 3: compressed scores, top-k).

    Args:
        q: queries of shape ``[B, H, L, D]``.
        k: keys of shape ``[B, H, L_k, D]``.
        topk: share of key blocks to keep.
        blkq: query block length in tokens.
        blkk: key block length in tokens.

    Returns:
        Bool of shape ``[B, H, ceil(L / blkq), ceil(L_k / blkk)]``; each row keeps
        ``max(1, int(topk * n))`` blocks.
    """
    q, k = _wide(q.detach()), _wide(k.detach())
    with torch.autocast(q.device.type, enabled=False):
        pooled_q = mean_pool(q, blkq)
        pooled_k = mean_pool(k - k.mean(-2, keepdim=True), blkk)
        scores = pooled_q @ pooled_k.transpose(-1, -2)
    # Stable, so that among equal scores the first block wins, in every kernel.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    top = order[..., : kept_blocks(scores.shape[-1], topk)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, True)


def feature(x: Tensor, feature_map: str) -> Tensor:
    """Non-negative features of the linear branch, over the last dimension.

    Raises:
        AttentionError: No such feature map.
    """
    if feature_map == "softmax":
        return F.softmax(x, dim=-1)
    if feature_map == "elu":
        return F.elu(x) + 1
    if feature_map == "relu":
        return F.relu(x)
    raise AttentionError(
        f"feature map {feature_map!r} does not exist in SLA's kernels",
        hint=f"use one of {', '.join(FEATURE_MAPS)}",
    )


def linear_branch(q: Tensor, k: Tensor, v: Tensor, feature_map: str) -> Tensor:
    """o_l over all keys: φ(q)(φ(k)ᵀ v) / (ε + φ(q) · Σφ(k)), linear in the number of tokens.

    Args:
        q: queries of shape ``[B, H, L, D]``.
        k: keys of shape ``[B, H, L_k, D]``.
        v: values of shape ``[B, H, L_k, D]``.
        feature_map: ``softmax``, ``elu`` or ``relu``.

    Returns:
        Shape ``[B, H, L, D]``, float32 (float64 for float64 inputs).
    """
    q, k, v = _wide(q), _wide(k), _wide(v)
    with torch.autocast(q.device.type, enabled=False):
        phi_q, phi_k = feature(q, feature_map), feature(k, feature_map)
        numerator = phi_q @ (phi_k.transpose(-1, -2) @ v)
        denominator = phi_q @ phi_k.sum(-2).unsqueeze(-1)
        return numerator / (DENOMINATOR_EPS + denominator)


def sparse_and_linear_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    topk: float,
    feature_map: str,
    blkq: int,
    blkk: int,
    variant: str = "main",
    tie_feature_map_qk: bool = True,
    blocks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both branches before the projection.

    Args:
        q: queries of shape ``[B, H, L, D]``.
        k: keys of shape ``[B, H, L_k, D]``.
        v: values of shape ``[B, H, L_k, D]``.
        topk: share of key blocks each query block keeps.
        feature_map: ``softmax``, ``elu`` or ``relu``.
        blkq: query block length in tokens.
        blkk: key block length in tokens.
        variant: ``main``: the linear branch sums over all keys; ``sla-1``: only over the blocks
            that were not kept.
        tie_feature_map_qk: Part of the settings; the three maps have no parameters, so tied and
            untied maps are the same function.
        blocks: The block map to use; None computes it.

    Returns:
        ``(o_s, o_l)``, each of shape ``[B, H, L, D]`` and the dtype of ``q``.

    Raises:
        AttentionError: Unknown feature map or variant.
    """
    del tie_feature_map_qk
    if variant not in SLA_VARIANTS:
        raise AttentionError(
            f"SLA variant {variant!r} does not exist", hint=f"use one of {', '.join(SLA_VARIANTS)}"
        )
    if blocks is None:
        blocks = block_map(q, k, topk=topk, blkq=blkq, blkk=blkk)
    dtype = q.dtype
    q, k, v = _wide(q), _wide(k), _wide(v)
    kept = blocks.repeat_interleave(blkq, -2)[..., : q.shape[-2], :]
    kept = kept.repeat_interleave(blkk, -1)[..., : k.shape[-2]]
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        o_s = scores.masked_fill(~kept, float("-inf")).softmax(-1) @ v

        if variant == "main":
            o_l = linear_branch(q, k, v, feature_map)
        else:
            phi_q, phi_k = feature(q, feature_map), feature(k, feature_map)
            weights = (phi_q @ phi_k.transpose(-1, -2)).masked_fill(kept, 0)
            o_l = (weights @ v) / (DENOMINATOR_EPS + weights.sum(-1, keepdim=True))
    return o_s.to(dtype), o_l.to(dtype)


def sla_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    topk: float,
    feature_map: str,
    blkq: int,
    blkk: int,
    variant: str = "main",
    tie_feature_map_qk: bool = True,
    blocks: Tensor | None = None,
) -> Tensor:
    """The whole operator: ``o = o_s + o_l @ weight.T + bias``.

    Args:
        q: queries of shape ``[B, H, L, D]``.
        k: keys of shape ``[B, H, L_k, D]``.
        v: values of shape ``[B, H, L_k, D]``.
        weight: projection of shape ``[D, D]``, float32 (float64 for float64 inputs).
        bias: shape ``[D]``.

    The other arguments are those of :func:`sparse_and_linear_reference`.

    Returns:
        Output of shape ``[B, H, L, D]`` and the dtype of ``q``.
    """
    wide_q, wide_k, wide_v = _wide(q), _wide(k), _wide(v)
    if blocks is None:
        blocks = block_map(q, k, topk=topk, blkq=blkq, blkk=blkk)
    o_s, o_l = sparse_and_linear_reference(
        wide_q,
        wide_k,
        wide_v,
        topk=topk,
        feature_map=feature_map,
        blkq=blkq,
        blkk=blkk,
        variant=variant,
        tie_feature_map_qk=tie_feature_map_qk,
        blocks=blocks,
    )
    with torch.autocast(q.device.type, enabled=False):
        projected = F.linear(o_l, weight.to(o_l.dtype), bias.to(o_l.dtype))
    return (o_s + projected).to(q.dtype)


def _wide(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
