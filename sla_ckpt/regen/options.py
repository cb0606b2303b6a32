"""What regeneration is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sla_ckpt.checkpoint.runconfig import parse_sla_config
from sla_ckpt.errors import FormatError, UsageError
from sla_ckpt.state import FEATURE_MAPS, SLA_VARIANTS, SLASettings

Method = Literal["auto", "calibrate", "train"]
OptimizerName = Literal["auto", "anneal", "lbfgs", "adamw"]
MOST_EVALUATIONS = 200
DTYPES: dict[str, tuple[str, ...]] = {
    "bf16": ("bf16",),
    "fp16": ("fp16",),
    "both": ("bf16", "fp16"),
}


@dataclass(frozen=True)
class RegenOptions:
    """Options of :func:`sla_ckpt.regen.engine.regenerate`; the defaults are the command's.

    Attributes:
        steps: Training steps.
        optimizer: ``auto``: ``anneal``, or ``lbfgs`` where no noise can be drawn (``inputs``) or
            samples are made up. ``anneal``: a step is a sweep of Adam updates on fresh noise, at a
            rate that falls to zero. ``lbfgs``: a step is one strong-Wolfe L-BFGS step over all
            accumulated batches. ``adamw``: a step is one update.
        lr: AdamW's learning rate; None is 1e-2.
        method: ``auto`` calibrates and trains, ``calibrate`` and ``train`` do one of them.
        seed: Of noise, noise levels and made-up samples.
        dtype: ``bf16``, ``fp16`` or ``both``: which pairs to make.
        settings: SLA's settings; None takes the old file's, else the run's, else the defaults.
        overrides: Single settings that go over those, e.g. ``{"topk": 0.1}``.
        variant: ``main`` or ``sla-1``; None takes what the old twin records, else ``main``.
        samples: How many samples at most.
        resolution: (width, height) of the samples in pixels.
        tokens: Least image tokens of the samples, instead of a resolution.
        frames: Frames of a video sample.
        data: Folder with a trainer's VAE and text caches.
        images: Folder with pictures.
        inputs: Safetensors file with forward() calls.
        config: The trainer's config.json.
        ema: Use the EMA copy of the weights.
        base_model: Under a LoRA: folder or Hub id.
        denoiser: Subfolder of the denoiser, where there are several.
        device: ``cuda``, ``cuda:1``, ``cpu``, or ``auto`` to spread over all cards.
        kernel: ``auto``, ``triton``, ``reference`` or ``external``.
        offload: Keep the weights in host memory.
        backup: Keep the old file beside the new one.
        dry_run: Do everything but write.
        draws: Draws of noise per sample; None derives it from the sizes.
        evaluations: Loss evaluations per step, which are the updates of ``anneal``; L-BFGS takes
            at most 20. None derives them.
    """

    steps: int = 1
    optimizer: OptimizerName = "auto"
    lr: float | None = None
    method: Method = "auto"
    seed: int = 0
    dtype: Literal["bf16", "fp16", "both"] = "bf16"
    settings: SLASettings | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    variant: str | None = None
    samples: int = 8
    resolution: tuple[int, int] | None = None
    tokens: int | None = None
    frames: int | None = None
    data: Path | None = None
    images: Path | None = None
    inputs: Path | None = None
    config: Path | None = None
    ema: bool = False
    base_model: str | None = None
    denoiser: str | None = None
    device: str = "cuda"
    kernel: str = "auto"
    offload: bool = False
    backup: bool = True
    dry_run: bool = False
    draws: int | None = None
    evaluations: int | None = None

    def __post_init__(self) -> None:
        checks = (
            (self.steps >= 1, f"--steps {self.steps} is too few"),
            (self.samples >= 1, f"--samples {self.samples} is too few"),
            (self.draws is None or self.draws >= 1, f"--draws {self.draws} is too few"),
            (
                self.evaluations is None or 2 <= self.evaluations <= MOST_EVALUATIONS,
                f"--evaluations {self.evaluations} is not in 2…{MOST_EVALUATIONS}",
            ),
            (self.lr is None or self.lr > 0, f"--lr {self.lr} is not positive"),
            (self.seed >= 0, f"--seed {self.seed} is negative"),
            (self.dtype in DTYPES, f"--dtype {self.dtype}"),
            (self.variant is None or self.variant in SLA_VARIANTS, f"--variant {self.variant}"),
        )
        for fine, message in checks:
            if not fine:
                raise UsageError(message, hint="see: sla-ckpt regen --help")
        if self.lr is not None and self.optimizer != "adamw":
            raise UsageError(
                "--lr belongs to --optimizer adamw", hint="the others choose the length of steps"
            )


def settings_from_text(text: str) -> SLASettings:
    """``--sla-config``: JSON or a Python dict, also with JSON's lowercase true, false and null.

    Raises:
        FormatError: Neither, or a value of a wrong type.
        UsageError: An unknown setting.
    """
    # SimpleTuner's own documentation writes Python's quotes with JSON's words.
    words = {"true": "True", "false": "False", "null": "None"}
    as_python = re.sub(r"\b(true|false|null)\b", lambda found: words[found[0]], text)
    try:
        mapping = parse_sla_config(text)
    except FormatError:
        mapping = parse_sla_config(as_python)
    unknown = sorted(set(mapping) - set(SLASettings.names()))
    if unknown:
        raise UsageError(
            f"--sla-config: unknown setting {', '.join(unknown)}",
            hint=f"known: {', '.join(SLASettings.names())}",
        )
    return SLASettings.from_mapping(mapping)


def check_overrides(overrides: tuple[tuple[str, Any], ...]) -> None:
    """Refuse values that no SLA kernel has.

    Raises:
        UsageError: Names the option.
    """
    for name, value in overrides:
        if name == "topk" and not 0 < value <= 1:
            raise UsageError(f"--topk {value} is not in (0, 1]", hint="the default is 0.2")
        if name == "feature_map" and value not in FEATURE_MAPS:
            raise UsageError(f"--feature-map {value}", hint=f"use {', '.join(FEATURE_MAPS)}")
