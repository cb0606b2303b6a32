"""Annealed training: noise is averaged out, numbers without a gradient stay, faults are said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.anneal import Sweep, train_annealed
from sla_ckpt.regen.projections import Projections
from sla_ckpt.regen.train import Trained
from sla_ckpt.state import PairKey

KEY = PairKey(4, "bf16")
SIZE = (4, 5)


class Quadratic:
    """½‖W − target‖² whose gradient carries other noise at every update; in a Runner's place."""

    def __init__(self, target: torch.Tensor, noise: float, weights: torch.Tensor | float = 1.0):
        self.target, self.noise, self.weights = target, noise, weights

    def loss_and_gradients(
        self, workload: Any, projections: Projections, tick: Callable[[], None]
    ) -> tuple[float, Projections]:
        tick()
        difference = (projections[KEY] - self.target) * self.weights
        generator = torch.Generator().manual_seed(workload)
        noise = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        return 1 + 0.5 * float(difference.square().sum()), {KEY: difference + self.noise * noise}


def train(problem: Any, updates: int = 36, rate: float = 0.05, **options: Any) -> Trained:
    start = {KEY: torch.zeros(SIZE, dtype=torch.float64)}
    scales = {KEY: torch.ones(SIZE[1], dtype=torch.float64)}
    sweep = Sweep(updates, rate, **options)
    return train_annealed(problem, lambda n: n, start, scales, sweep, tick=lambda: None)


def test_it_comes_close_to_the_optimum_through_noise() -> None:
    target = 0.4 * torch.sign(torch.randn(SIZE, dtype=torch.float64))
    found = train(Quadratic(target, noise=0.2)).iterates[-1][1][KEY]
    assert float((found - target).norm()) < 0.2 * float(target.norm())


def test_numbers_without_a_gradient_drift_less_than_adams() -> None:
    """Pure noise: the shrunken steps stay nearer to the start than plain Adam's."""
    problem = Quadratic(torch.zeros(SIZE, dtype=torch.float64), noise=1.0, weights=0.0)
    drift = float(train(problem).iterates[-1][1][KEY].norm())
    plain = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([plain], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=36)
    for number in range(36):
        _, gradients = problem.loss_and_gradients(number, {KEY: plain.detach()}, lambda: None)
        plain.grad = gradients[KEY]
        optimizer.step()
        schedule.step()
    assert drift < 0.7 * float(plain.detach().norm())


def test_the_result_is_the_only_iterate_and_every_loss_is_kept() -> None:
    trained = train(Quadratic(torch.ones(SIZE, dtype=torch.float64), 0.0), updates=8)
    assert [name for name, _ in trained.iterates] == [""]
    assert len(trained.losses) == 8
    assert list(trained.losses) == sorted(trained.losses, reverse=True)


def test_columns_move_in_proportion_to_their_scales() -> None:
    target = torch.full(SIZE, 10.0, dtype=torch.float64)
    scales = {KEY: torch.tensor([1.0, 1.0, 1.0, 1.0, 0.25], dtype=torch.float64)}
    start = {KEY: torch.zeros(SIZE, dtype=torch.float64)}
    problem: Any = Quadratic(target, 0.0)
    trained = train_annealed(problem, lambda n: n, start, scales, Sweep(4, 0.1), tick=lambda: None)
    found = trained.iterates[-1][1][KEY]
    assert torch.allclose(found[:, 4], 0.25 * found[:, 0], rtol=1e-2)
    assert float(start[KEY].abs().max()) == 0


@pytest.mark.parametrize(("value", "message"), [(0.0, "exactly 0"), (float("nan"), "not finite")])
def test_a_loss_that_teaches_nothing_is_refused(value: float, message: str) -> None:
    class Broken(Quadratic):
        def loss_and_gradients(self, *arguments: Any) -> tuple[float, Projections]:
            return value, super().loss_and_gradients(*arguments)[1]

    with pytest.raises(RegenError, match=message):
        train(Broken(torch.ones(SIZE, dtype=torch.float64), 0.0))


def test_a_loss_without_a_gradient_is_refused() -> None:
    with pytest.raises(RegenError, match="no gradient"):
        train(Quadratic(torch.zeros(SIZE, dtype=torch.float64), noise=0.0))
