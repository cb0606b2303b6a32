"""How to regenerate, apart from with what."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sla_ckpt.regen.options import Method, OptimizerName
from sla_ckpt.state import SLASettings

#: Compute dtype by the token that pairs are named with.
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """How to regenerate, apart from what with.

    Attributes:
        settings: SLA's settings.
        dtype: Compute dtype, and so the dtype of the pairs.
        variant: ``"main"`` or ``"sla-1"``.
        kernel: As for :func:`sla_ckpt.attention.inject.use_sla`.
        method: ``"calibrate"`` leaves training out, ``"train"`` the calibrated start.
        optimizer: Of the training; ``auto`` anneals where noise can be drawn anew, and takes
            L-BFGS where the samples are stored calls or made up.
        steps: Training steps.
        lr: AdamW's.
        metric_ridge: Damping of the metric that L-BFGS trains in, as a share of the mean
            eigenvalue of E[x xᵀ]. Less of it converges in fewer evaluations and fits the noise of
            few samples sooner; benchmarks/recovery.py compares.
        cautious: For made-up samples: no calibration, and one accepted L-BFGS iterate per step
            with nothing beyond it. What lowers the loss on them further was seen to raise it on
            real ones.
    """

    settings: SLASettings = field(default_factory=SLASettings)
    dtype: torch.dtype = torch.bfloat16
    variant: str = "main"
    kernel: str = "auto"
    method: Method = "auto"
    optimizer: OptimizerName = "auto"
    steps: int = 1
    lr: float = 1e-2
    metric_ridge: float = 1.0
    cautious: bool = False
