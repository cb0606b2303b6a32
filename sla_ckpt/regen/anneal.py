"""Annealed training: Adam on fresh noise at every update, without steps that only noise takes.

L-BFGS has to see the same noise again and again, and a projection fits a few dozen draws of it
well enough to lose on all others. Here every update draws anew. What is left is the drift of
Adam, which moves every number by about the same length whether its gradient is signal or noise:
so each step is scaled by how much of the averaged gradient's square its own noise does not
explain (positive-part James and Stein shrinkage, per number), and the rate falls to zero along a
cosine.

Source: Kingma and Ba, Adam (2015), algorithm 1; Stein's estimator for the factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sla_ckpt.regen.projections import Projections
from sla_ckpt.regen.train import Runner, Tick, Trained, check_gradient, check_loss
from sla_ckpt.regen.workload import Workload
from sla_ckpt.state import PairKey

_MEAN_DECAY = 0.9
_SQUARE_DECAY = 0.999


@dataclass(frozen=True)
class Sweep:
    """How one annealed training runs.

    Attributes:
        updates: Number of updates.
        rate: Length of the first, in the units of ``scales``; later ones fall to zero.
    """

    updates: int
    rate: float


def train_annealed(
    runner: Runner,
    workload: Callable[[int], Workload],
    start: Projections,
    scales: Mapping[PairKey, Tensor],
    sweep: Sweep,
    *,
    tick: Tick,
) -> Trained:
    """Train the projections over ``sweep.updates`` workloads.

    Args:
        workload: The draws of an update, by its number.
        start: [W b] of each pair, float64 [D, D+1].
        scales: Natural size of each column of [W b], float64 [D+1]: a step of 1 changes attention's
            output by about its own size.

    Raises:
        RegenError: A loss is 0 or not finite, or does not depend on proj_l.
    """
    numbers = {key: _Adam(value / scales[key]) for key, value in start.items()}
    current = dict(start)
    losses: list[float] = []
    for update in range(sweep.updates):
        loss, gradients = runner.loss_and_gradients(workload(update), current, tick)
        check_loss(loss)
        if not losses:
            check_gradient(gradients)
        losses.append(loss)
        rate = sweep.rate * 0.5 * (1 + math.cos(math.pi * update / sweep.updates))
        for key, adam in numbers.items():
            adam.step(gradients[key] * scales[key], rate)
        current = {key: adam.value * scales[key] for key, adam in numbers.items()}
    return Trained((("", current),), tuple(losses))


class _Adam:
    """Adam's moments for one tensor, with the shrinkage of the step."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._mean, self._square = torch.zeros_like(value), torch.zeros_like(value)
        self._updates = 0
        self._squared_weights = 0.0

    def step(self, gradient: Tensor, rate: float) -> None:
        self._updates += 1
        self._mean = _MEAN_DECAY * self._mean + (1 - _MEAN_DECAY) * gradient
        self._square = _SQUARE_DECAY * self._square + (1 - _SQUARE_DECAY) * gradient.square()
        total = 1 - _MEAN_DECAY**self._updates
        self._squared_weights *= _MEAN_DECAY**2
        self._squared_weights += (1 - _MEAN_DECAY) ** 2
        mean = self._mean / total
        square = self._square / (1 - _SQUARE_DECAY**self._updates)
        # The share of one gradient's variance that is left in the weighted mean of all so far.
        left = self._squared_weights / total**2
        if left < 1:
            noise = left * (square - mean.square()).clamp(min=0) / (1 - left)
            mean = mean * (1 - noise / mean.square().clamp(min=1e-300)).clamp(min=0)
        self.value = self.value - rate * mean / square.sqrt().clamp(min=1e-150)
