"""What diffusion models are trained to predict, and how noise is added.

``t`` is the noise level in (0, 1), 0 clean and 1 pure noise.

- ``flow`` (rectified flow): x_t = (1 − t)·x + t·ε, target ε − x.
- ``epsilon``, ``v`` (DDPM): x_t = √ᾱ·x + √(1 − ᾱ)·ε, target ε, or √ᾱ·ε − √(1 − ᾱ)·x, with ᾱ from
  a table of 1000 steps; step = ⌊1000·t⌋.
- ``sample``: as DDPM, target x.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError

Objective = Literal["flow", "epsilon", "v", "sample"]
STEPS = 1000

_OBJECTIVE_OF_PREDICTION: Mapping[str, Objective] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
    "flow_prediction": "flow",
}


@dataclass(frozen=True)
class BetaSchedule:
    """A DDPM noise schedule of 1000 steps, in the terms of diffusers' scheduler configs.

    Attributes:
        start: First beta.
        end: Last beta.
        shape: ``linear``, ``scaled_linear`` (linear in √beta) or ``squaredcos_cap_v2``.
        zero_terminal_snr: Rescaled so that the last step is pure noise (arXiv 2305.08891).
        snr_shift: ᾱ ← ᾱ / (s + (1 − s)·ᾱ), as CogVideoX does before the rescaling.
    """

    start: float = 0.00085
    end: float = 0.012
    shape: str = "scaled_linear"
    zero_terminal_snr: bool = False
    snr_shift: float = 1.0

    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each step, [1000] float64."""
        return _alphas_cumprod(self)

    @classmethod
    def from_scheduler(cls, scheduler: Mapping[str, Any], default: BetaSchedule) -> BetaSchedule:
        """Read ``scheduler_config.json``; missing entries are those of ``default``."""
        return cls(
            start=float(scheduler.get("beta_start", default.start)),
            end=float(scheduler.get("beta_end", default.end)),
            shape=str(scheduler.get("beta_schedule", default.shape)),
            zero_terminal_snr=bool(
                scheduler.get("rescale_betas_zero_snr", default.zero_terminal_snr)
            ),
            snr_shift=float(scheduler.get("snr_shift_scale", default.snr_shift)),
        )


@functools.cache
def _alphas_cumprod(schedule: BetaSchedule) -> Tensor:
    if schedule.shape == "linear":
        betas = torch.linspace(schedule.start, schedule.end, STEPS, dtype=torch.float64)
    elif schedule.shape == "scaled_linear":
        root = torch.linspace(schedule.start**0.5, schedule.end**0.5, STEPS, dtype=torch.float64)
        betas = root**2
    elif schedule.shape == "squaredcos_cap_v2":
        edges = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
        bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise RegenError(
            f"beta schedule {schedule.shape!r} is not known",
            hint="known: linear, scaled_linear, squaredcos_cap_v2",
        )
    cumulative = torch.cumprod(1 - betas, 0)
    cumulative = cumulative / (schedule.snr_shift + (1 - schedule.snr_shift) * cumulative)
    if schedule.zero_terminal_snr:
        root = cumulative.sqrt()
        first, last = root[0].clone(), root[-1].clone()
        cumulative = ((root - last) * first / (first - last)) ** 2
    return cumulative


@dataclass(frozen=True)
class Noising:
    """Objective, noise schedule and distribution of the noise levels.

    Attributes:
        objective: What the model predicts.
        schedule: For the DDPM objectives.
        shift: Flow only: t ← s·t / (1 + (s − 1)·t), more noise for s > 1.
        dynamic_shift: Flow only: ((tokens, log s), (tokens, log s)); overrides ``shift`` with
            s = exp of the line through both points, which is how larger images get more noise.
        latents_per_token: Latent positions in one token, for ``dynamic_shift``.
    """

    objective: Objective = "flow"
    schedule: BetaSchedule = BetaSchedule()
    shift: float = 3.0
    dynamic_shift: tuple[tuple[int, float], tuple[int, float]] | None = None
    latents_per_token: int = 4

    def sample(self, count: int, latent_positions: int, generator: torch.Generator) -> Tensor:
        """Draw noise levels [count], float32 in (0, 1).

        Flow draws from a logit-normal, shifted; the DDPM objectives uniformly. Both draws are
        stratified: one from each of ``count`` equal parts of the distribution, in random order,
        so that few samples still see low and high noise.
        """
        order = torch.randperm(count, generator=generator)
        uniform = (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        if self.objective != "flow":
            return uniform.clamp(0.5 / STEPS, 1 - 0.5 / STEPS).float()
        level: Tensor = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid()
        shift = self.shift_at(latent_positions // self.latents_per_token)
        shifted: Tensor = shift * level / (1 + (shift - 1) * level)
        return shifted.float()

    def shift_at(self, tokens: int) -> float:
        """The flow shift for a sequence of this many tokens."""
        if self.dynamic_shift is None:
            return self.shift
        (low, low_value), (high, high_value) = self.dynamic_shift
        return math.exp(low_value + (high_value - low_value) * (tokens - low) / (high - low))

    def add(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(noisy, target) in float32, each shaped like ``latents`` [B, ...]; ``t`` is [B]."""
        clean, noise = latents.float(), noise.float()
        view = (-1,) + (1,) * (clean.ndim - 1)
        if self.objective == "flow":
            level = t.float().view(view)
            return (1 - level) * clean + level * noise, noise - clean
        table = self.schedule.alphas_cumprod().to(clean.device)
        bar = table[self.steps(t)]
        signal, sigma = bar.sqrt().float().view(view), (1 - bar).sqrt().float().view(view)
        noisy = signal * clean + sigma * noise
        if self.objective == "epsilon":
            return noisy, noise
        if self.objective == "v":
            return noisy, signal * noise - sigma * clean
        return noisy, clean

    def steps(self, t: Tensor) -> Tensor:
        """Step numbers [B], int64 in 0…999, of noise levels."""
        return (t.double() * STEPS).long().clamp(0, STEPS - 1)

    def with_scheduler(self, scheduler: Mapping[str, Any] | None) -> Noising:
        """Take the objective and the schedule from a ``scheduler_config.json``.

        Raises:
            RegenError: Its prediction type is not known.
        """
        if not scheduler:
            return self
        prediction = scheduler.get("prediction_type")
        objective = self.objective
        if prediction is not None:
            known = _OBJECTIVE_OF_PREDICTION.get(str(prediction))
            if known is None:
                raise RegenError(f"scheduler prediction_type {prediction!r} is not known")
            objective = known
        schedule = BetaSchedule.from_scheduler(scheduler, self.schedule)
        return replace(self, objective=objective, schedule=schedule)
