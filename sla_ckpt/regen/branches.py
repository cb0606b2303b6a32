"""Dense attention and SLA's two branches for one call, as calibration needs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sla_ckpt.attention.inject import without_sla
from sla_ckpt.attention.module import SparseLinearAttention
from sla_ckpt.blocks import fewest_tokens, kept_blocks
from sla_ckpt.errors import RegenError
from sla_ckpt.regen.statistics import Branches
from sla_ckpt.state import PairKey, SLASettings


def make_branches(settings: SLASettings, variant: str, kernel: str) -> Branches:
    """(pair, q, k, v) -> (o_dense, o_s, o_l) for :class:`~sla_ckpt.regen.statistics.Collector`.

    The branches come from the kernel in use, so that what is calibrated is what will run.
    """
    modules: dict[tuple[PairKey, torch.device], SparseLinearAttention] = {}

    def branches(key: PairKey, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        require_blocks(settings, k.shape[-2])
        place = (key, q.device)
        if place not in modules:
            modules[place] = SparseLinearAttention.from_settings(
                key.head_dim, settings, variant=variant, kernel=kernel
            ).to(q.device)
        module = modules[place]
        with without_sla():
            dense = F.scaled_dot_product_attention(q, k, v)
        return dense, *module.branches(q, k, v)

    return branches


def require_blocks(settings: SLASettings, length: int) -> None:
    """Refuse a length at which the trainer's kernel keeps no key block and returns NaN.

    Raises:
        RegenError: Names the smallest length that works.
    """
    if kept_blocks(length, settings) >= 1:
        return
    blocks = -(-length // settings.blkk)
    raise RegenError(
        f"topk {settings.topk} keeps none of the {blocks} key blocks of {length} tokens: "
        "the trainer's kernel returns NaN at this size",
        hint=f"use a size of at least {fewest_tokens(settings)} tokens (--tokens), "
        "or a larger --topk",
    )
