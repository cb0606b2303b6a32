"""Compiling the SLA kernels while the weights are still being read.

Reading 24 GB takes longer than compiling a dozen kernels, and uses another part of the machine.
One small forward and backward in a thread leaves them compiled for the calls that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sla_ckpt.attention.kernels import resolve_kernel
from sla_ckpt.attention.module import SparseLinearAttention
from sla_ckpt.blocks import fewest_tokens
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.pairs.table import expected_head_dims
from sla_ckpt.regen.branches import make_branches
from sla_ckpt.regen.plan import TORCH_DTYPES
from sla_ckpt.state import PairKey, SLASettings

_HEADS = 4
_LEAST_TOKENS = 1024
#: Tokens are a multiple of 16 in nearly every model, and Triton compiles for that.
_MULTIPLE = 16


def compile_ahead(
    config: Mapping[str, Any],
    token: str,
    settings: SLASettings,
    *,
    variant: str,
    kernel: str,
    device: torch.device,
) -> Future[None] | None:
    """Start compiling what a model of this config needs; None where there is nothing to compile.

    Args:
        config: The model's, with ``_class_name``.
        token: Compute dtype, ``"bf16"`` or ``"fp16"``.

    The future fails only where the calls that follow fail too, and say why; so it need not be
    asked for its result.
    """
    if device.type != "cuda":
        return None
    try:
        keys = expected_head_dims(config).keys(token)
    except SlaCkptError:
        return None
    executor = ThreadPoolExecutor(1, thread_name_prefix="compile-ahead")
    future = executor.submit(_compile, keys, settings, variant, kernel, device)
    executor.shutdown(wait=False)
    return future


def _compile(
    keys: tuple[PairKey, ...],
    settings: SLASettings,
    variant: str,
    kernel: str,
    device: torch.device,
) -> None:
    branches = make_branches(settings, variant, kernel)
    tokens = max(_LEAST_TOKENS, -(-fewest_tokens(settings) // _MULTIPLE) * _MULTIPLE)
    for key in keys:
        dtype = TORCH_DTYPES[key.dtype]
        chosen = resolve_kernel(
            kernel, device=device, dtype=dtype, head_dim=key.head_dim, settings=settings
        )
        if chosen != "triton":
            continue
        module = SparseLinearAttention.from_settings(
            key.head_dim, settings, variant=variant, kernel=kernel
        ).to(device)
        # As attention gets them: heads are split off the last axis.
        shape = (1, tokens, _HEADS, key.head_dim)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in "qkv")
        with torch.no_grad():
            branches(key, q, k, v)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            module(*leaves).sum().backward()
    torch.cuda.synchronize(device)
