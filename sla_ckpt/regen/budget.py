"""How much work to do: draws per sample, batch size, evaluations.

Small models can afford dozens of draws of noise per sample, which makes both training and judging
less noisy; a 12-billion-parameter model has to make do with one. The choice follows from sizes
alone, never from a clock, so that a run can be repeated bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from sla_ckpt.regen.families.base import Sample

#: Work per loss evaluation, per training and per judged candidate, in parameters × tokens. A
#: forward pass costs about twice as many floating-point operations.
_PER_EVALUATION = 3.5e14
_PER_TRAINING = 1.5e15
_PER_SWEEP = 1.3e15
_PER_CANDIDATE = 1.2e14
_PER_BATCH = 1.5e13
#: A processor is slower than an accelerator by about this.
_CPU = 1000.0

_MAX_TRAIN_DRAWS = 64
_MAX_JUDGE_DRAWS = 128
_MAX_BATCH = 32
MAX_EVALUATIONS = 20
_MIN_EVALUATIONS = 5
_MAX_UPDATES = 36
_MIN_UPDATES = 12
_MIN_UPDATE_DRAWS = 2


@dataclass(frozen=True)
class SweepKind:
    """One way to run an annealed step.

    Attributes:
        rate: Share of the full rate.
        variation: Share of the draws that see varied copies of the samples.
    """

    rate: float
    variation: float


#: Where only one sweep can be afforded, half of it sees the samples as they are: how far copies
#: resemble a family's pictures is not known, and nothing else would tell.
_ONE_SWEEP = (SweepKind(1.0, 0.5),)
_CHEAP_SWEEPS = (SweepKind(1.0, 1.0), SweepKind(0.25, 0.5))


@dataclass(frozen=True)
class Budget:
    """What one regeneration may spend.

    Attributes:
        repeats: Draws of noise per training sample.
        judge_repeats: Draws of noise per held-out sample.
        batch_size: Samples per forward pass.
        evaluations: Of the training loss per L-BFGS step.
        updates: Of an annealed step.
        update_draws: Draws of noise per update, over all samples.
        sweeps: How often an annealed step is tried, and with what.
        starts: From how many starts L-BFGS and AdamW are tried.
        checkpoints: How many iterates of a training are judged.
    """

    repeats: int
    judge_repeats: int
    batch_size: int
    evaluations: int
    updates: int
    update_draws: int
    sweeps: tuple[SweepKind, ...]
    starts: int
    checkpoints: int

    def with_overrides(self, *, draws: int | None, evaluations: int | None) -> Budget:
        """The user's own numbers in place of the derived ones."""
        changed = self
        if draws is not None:
            changed = replace(changed, repeats=draws, judge_repeats=draws, update_draws=draws)
        if evaluations is not None:
            lbfgs = min(evaluations, MAX_EVALUATIONS)
            changed = replace(changed, evaluations=lbfgs, updates=evaluations)
        return changed


def plan_budget(
    parameters: int,
    tokens: int,
    *,
    train: int,
    judged: int,
    device_type: str,
    processes: int = 1,
) -> Budget:
    """Choose from the sizes of the model and the samples.

    Args:
        parameters: Of the backbone.
        tokens: Of one sample.
        train: Number of training samples.
        judged: Number of held-out samples.
        device_type: ``"cpu"`` or an accelerator.
        processes: How many share the work; each update is cut into that many batches at least.
    """
    slow = _CPU if device_type == "cpu" else 1.0
    work = max(1.0, float(parameters) * tokens) * slow
    repeats = _between(_PER_EVALUATION / (train * work), 1, max(1, _MAX_TRAIN_DRAWS // train))
    per_evaluation = train * repeats * work
    spare = _PER_TRAINING / per_evaluation
    cheap = spare >= 2 * MAX_EVALUATIONS
    sweep = _PER_SWEEP / work
    updates = _between(sweep / _MIN_UPDATE_DRAWS, _MIN_UPDATES, _MAX_UPDATES)
    update_draws = _between(sweep / updates, _MIN_UPDATE_DRAWS, _MAX_BATCH)
    batch = _between(_PER_BATCH / work, 1, _MAX_BATCH)
    return Budget(
        repeats=repeats,
        judge_repeats=_between(
            _PER_CANDIDATE / (judged * work), 1, max(1, _MAX_JUDGE_DRAWS // judged)
        ),
        batch_size=min(batch, -(-update_draws // processes)),
        evaluations=_between(spare, _MIN_EVALUATIONS, MAX_EVALUATIONS),
        updates=updates,
        update_draws=update_draws,
        sweeps=_CHEAP_SWEEPS if cheap else _ONE_SWEEP,
        starts=2 if cheap else 1,
        checkpoints=6 if cheap else 3,
    )


def parameters_of(model: nn.Module) -> int:
    """Number of parameters, wherever they are."""
    return sum(p.numel() for p in model.parameters())


def tokens_of(samples: Sequence[Sample]) -> int:
    """Rough tokens of the largest sample: latent positions in patches of 2 × 2."""
    return max(max(1, s.latents[0].numel() // 4) for s in samples)


def _between(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))
