"""The first stage: the backbone, and the kernels that it will need."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch

from sla_ckpt.regen.backbone import Backbone, load_backbone
from sla_ckpt.regen.compile_ahead import compile_ahead
from sla_ckpt.regen.options import RegenOptions
from sla_ckpt.regen.plan import TORCH_DTYPES
from sla_ckpt.regen.stages import Stages
from sla_ckpt.state import SLASettings


def load_with_kernels(
    directory: Path,
    options: RegenOptions,
    token: str,
    settings: SLASettings,
    variant: str,
    device: torch.device,
    stages: Stages,
) -> Backbone:
    """Load the backbone of a checkpoint; meanwhile its attention kernels are compiled.

    Args:
        token: Compute dtype, ``"bf16"`` or ``"fp16"``.

    Raises:
        As :func:`~sla_ckpt.regen.backbone.load_backbone`.
    """
    compiling: Future[None] | None = None

    def built(config: Mapping[str, Any]) -> None:
        nonlocal compiling
        compiling = compile_ahead(
            config, token, settings, variant=variant, kernel=options.kernel, device=device
        )

    stages.progress.stage("load", 0)
    seen = 0

    def report(count: int, total: int) -> None:
        nonlocal seen
        if not seen:
            stages.progress.stage("load", total)
        stages.progress.tick(count - seen)
        seen = count

    with stages.stage("load", announced=True):
        backbone = load_backbone(
            directory,
            device="auto" if options.device == "auto" else device,
            dtype=TORCH_DTYPES[token],
            base_model=options.base_model,
            ema=options.ema,
            offload=options.offload,
            denoiser=options.denoiser,
            built=built,
            progress=report,
        )
        if compiling is not None:
            wait([compiling])
    return backbone
