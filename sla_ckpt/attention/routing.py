"""Which attention calls SLA takes, and why the others stay dense.

The rule is the one the checkpoints were trained under: SimpleTuner sends a call of
``torch.nn.functional.scaled_dot_product_attention`` to SLA when the queries are 4-D and fp16 or
bf16, and there is no mask, no dropout, no causality and no grouped-query attention. One condition
is added: the key length equals the query length. The reference kernel reads and writes out of
bounds on cross-attention, fails there, and SimpleTuner then computes that call densely; so dense
is also what the model has learned.

``scale`` plays no part: SLA always uses head_dim^-½, in training as here.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLA_DTYPES = (torch.float16, torch.bfloat16)

#: Every answer of :func:`dense_reason`, with what it means.
DENSE_REASONS = {
    "rank": "not [batch, heads, length, head_dim]",
    "dtype": "queries, keys and values are not all fp16 or all bf16",
    "mask": "an attention mask is given",
    "dropout": "attention dropout is on",
    "causal": "causal attention",
    "gqa": "grouped-query attention",
    "cross-attention": "key length differs from query length",
    "shape": "batch, heads or head_dim differ between query, key and value, or one is empty",
}


def dense_reason(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | None = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> str | None:
    """Why a call must go to dense attention; None when SLA takes it.

    Args:
        query: queries of shape ``[B, H, L, D]``.
        key: keys of shape ``[B, H, L, D]``.
        value: values of shape ``[B, H, L, D]``.
        attn_mask: As for PyTorch's ``scaled_dot_product_attention``, like the rest.

    Returns:
        A key of :data:`DENSE_REASONS`, or None.
    """
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4 or query.is_nested:
        return "rank"
    if query.dtype not in SLA_DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        return "dtype"
    if attn_mask is not None:
        return "mask"
    if dropout_p:
        return "dropout"
    if is_causal:
        return "causal"
    if enable_gqa:
        return "gqa"
    if key.shape[2] != query.shape[2]:
        return "cross-attention"
    if key.shape != query.shape or value.shape != query.shape or query.numel() == 0:
        return "shape"
    return None
