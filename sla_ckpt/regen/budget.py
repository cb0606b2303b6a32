"""How much work to do: draws per sample, batch size, evaluations.

Small models can afford dozens of draws of noise per sample, which makes both training and judging
less noisy; a 12-billion-parameter model has to make do with one. The choice follows from sizes
alone, never from a clock, so that a run can be repeated bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sla_ckpt.regen.families.base import Sample

#: Work per loss evaluation, per calibration, per training and per judged candidate, in
#: parameters × tokens. A forward pass costs about twice as many floating-point operations.
_PER_EVALUATION = 3.5e14
_PER_CALIBRATION = 1e14
_PER_TRAINING = 1.5e15
_PER_SWEEP = 8e14
_PER_CANDIDATE = 1.2e14
_PER_BATCH = 1.5e13
#: A processor is slower than an accelerator by about this.
_CPU = 1000.0

_MAX_TRAIN_DRAWS = 64
_MAX_JUDGE_DRAWS = 128
_MAX_BATCH = 32
MAX_EVALUATIONS = 20
_MIN_EVALUATIONS = 5
MAX_UPDATES = 72
_MIN_UPDATES = 8
#: Several cards share an update, so it has more than one draw; beyond that, more updates teach
#: more than more draws in each.
_MIN_UPDATE_DRAWS = 2
#: Samples that are drawn as often as this could be learnt by heart: then every draw sees a varied
#: copy. Otherwise every other one does, since how far copies resemble a family's pictures is not
#: known.
_BY_HEART = 100


@dataclass(frozen=True)
class Budget:
    """What one regeneration may spend.

    Attributes:
        repeats: Draws of noise per training sample.
        judge_repeats: Draws of noise per held-out sample.
        batch_size: Samples per forward pass.
        calibration_draws: Draws of noise for the calibration, over all samples.
        evaluations: Of the training loss per L-BFGS step.
        updates: Of an annealed step.
        update_draws: Draws of noise per update, over all samples.
        variation: Share of those that see varied copies of the samples.
        starts: From how many starts L-BFGS and AdamW are tried.
        checkpoints: How many iterates of an L-BFGS step are judged.
    """

    repeats: int
    judge_repeats: int
    batch_size: int
    calibration_draws: int
    evaluations: int
    updates: int
    update_draws: int
    variation: float
    starts: int
    checkpoints: int


def plan_budget(
    parameters: int,
    tokens: int,
    *,
    train: int,
    judged: int,
    device_type: str,
    processes: int = 1,
    draws: int | None = None,
    evaluations: int | None = None,
) -> Budget:
    """Choose from the sizes of the model and the samples.

    Args:
        parameters: Of the backbone.
        tokens: Of one sample.
        train: Number of training samples.
        judged: Number of held-out samples.
        device_type: ``"cpu"`` or an accelerator.
        processes: How many share the work; each update is cut into that many batches at least.
        draws: The user's own number of draws, per sample and per update.
        evaluations: The user's own number of evaluations, and of updates.
    """
    slow = _CPU if device_type == "cpu" else 1.0
    work = max(1.0, float(parameters) * tokens) * slow
    repeats = _between(_PER_EVALUATION / (train * work), 1, max(1, _MAX_TRAIN_DRAWS // train))
    judge_repeats = _between(
        _PER_CANDIDATE / (judged * work), 1, max(1, _MAX_JUDGE_DRAWS // judged)
    )
    spare = _PER_TRAINING / (train * repeats * work)
    cheap = spare >= 2 * MAX_EVALUATIONS
    sweep = _PER_SWEEP / work
    updates = _between(sweep / _MIN_UPDATE_DRAWS, _MIN_UPDATES, MAX_UPDATES)
    update_draws = _between(sweep / updates, _MIN_UPDATE_DRAWS, _MAX_BATCH)
    if draws is not None:
        repeats = judge_repeats = update_draws = draws
    if evaluations is not None:
        updates = evaluations
    batch = _between(_PER_BATCH / work, 1, _MAX_BATCH)
    limit = _between(spare, _MIN_EVALUATIONS, MAX_EVALUATIONS)
    return Budget(
        repeats=repeats,
        judge_repeats=judge_repeats,
        batch_size=min(batch, -(-update_draws // processes)),
        calibration_draws=_between(_PER_CALIBRATION / work, 2, _MAX_TRAIN_DRAWS),
        evaluations=limit if evaluations is None else min(evaluations, MAX_EVALUATIONS),
        updates=updates,
        update_draws=update_draws,
        variation=1.0 if updates * update_draws >= _BY_HEART * train else 0.5,
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
