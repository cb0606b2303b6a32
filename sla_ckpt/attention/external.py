"""thu-ml/SLA's own kernel behind our interface, kept away from what breaks it.

It is a package named ``sparse_linear_attention``, installed from its repository. Its main branch
keeps zero blocks at small topk (and then returns NaN), asserts on block sizes without a message,
and reads and writes out of bounds when there are fewer keys than queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from sla_ckpt.attention.kernels import external_limits
from sla_ckpt.blocks import kept_blocks
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import SLASettings


def sla_external(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor, settings: SLASettings
) -> Tensor:
    """Run thu-ml/SLA's module with the given projection.

    Args:
        q: queries of shape ``[B, H, L, D]``, bfloat16 or float16, on CUDA.
        k: keys of the same shape.
        v: values of the same shape.
        weight: projection of shape ``[D, D]``, float32.
        bias: shape ``[D]``.
        settings: SLA's settings.

    Raises:
        AttentionError: It cannot run this, or would run it wrongly.
    """
    check_external(q, k, settings)
    from sparse_linear_attention import SparseLinearAttention as External

    module = External(
        q.shape[-1],
        settings.topk,
        feature_map=settings.feature_map,
        BLKQ=settings.blkq,
        BLKK=settings.blkk,
        use_bf16=q.dtype == torch.bfloat16,
        tie_feature_map_qk=settings.tie_feature_map_qk,
    )
    projection = {"proj_l.weight": weight, "proj_l.bias": bias}
    output: Tensor = functional_call(module, projection, (q, k, v))
    return output


def check_external(q: Tensor, k: Tensor, settings: SLASettings) -> None:
    """Refuse what thu-ml/SLA would answer with NaN, an empty assertion or a stray write.

    Raises:
        AttentionError: Names the limit and the way out.
    """
    reason = external_limits(q.shape[-1], settings, "main")
    if q.shape[-2] != k.shape[-2]:
        reason = f"{q.shape[-2]} queries and {k.shape[-2]} keys make it write out of bounds"
    elif kept_blocks(k.shape[-2], settings) < 1:
        blocks = -(-k.shape[-2] // settings.blkk)
        reason = f"topk {settings.topk} of {blocks} key blocks keeps none, and it returns NaN"
    if reason is not None:
        raise AttentionError(
            f"kernel external cannot run this: {reason}", hint="use --kernel triton or reference"
        )
