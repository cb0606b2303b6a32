"""The held-out judge: which projection does the model do best with?

Every candidate sees the same samples, noise and noise levels, so that what is compared is the
difference per sample, which varies far less than the loss itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sla_ckpt.regen.projections import Projections


@dataclass(frozen=True, eq=False)
class Candidate:
    """A projection that might be written.

    Attributes:
        name: ``"zero"``, ``"old"``, ``"calibrated"``, ``"trained"``, …
        projections: Its values.
        losses: Held-out loss of each sample, float64.
        present: Whether it is what the checkpoint has now.
    """

    name: str
    projections: Projections
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    present: bool = False

    @property
    def loss(self) -> float:
        """Mean held-out loss."""
        return float(self.losses.mean())


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judge's decision.

    Attributes:
        best: The candidate to write; the present one if nothing beats it.
        present: What the checkpoint has now.
        candidates: All, best first.
    """

    best: Candidate
    present: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def improved(self) -> bool:
        return self.best is not self.present

    @property
    def gain(self) -> float:
        """By how much the mean held-out loss falls."""
        return self.present.loss - self.best.loss

    @property
    def standard_error(self) -> float:
        """Of :attr:`gain`, from the differences per sample; 0 for a single sample."""
        difference = self.present.losses - self.best.losses
        if difference.numel() < 2:
            return 0.0
        return float(difference.std() / difference.numel() ** 0.5)


def judge(candidates: Sequence[Candidate], *, optimism: float = 0.0) -> Verdict:
    """Choose.

    The lowest mean loss wins. It must beat what is present by more than the standard error of
    the difference: where the noise decides, the checkpoint stays as it is.

    Args:
        candidates: One of them present, each with losses over the same samples.
        optimism: By which share of its value a loss may be too low because the samples are not
            independent of training, or not real. The gain must be larger than that, too.
    """
    present = next(candidate for candidate in candidates if candidate.present)
    ranked = tuple(sorted(candidates, key=lambda c: (c.loss, not c.present)))
    best = ranked[0]
    verdict = Verdict(best, present, ranked)
    needed = verdict.standard_error + optimism * best.loss
    if best is present or verdict.gain > needed:
        return verdict
    return Verdict(present, present, ranked)
