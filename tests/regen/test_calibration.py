"""The pure core: normal equations, the change of variables, L-BFGS, the judge."""

from __future__ import annotations

import math

import pytest
import torch

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.branches import make_branches, require_blocks
from sla_ckpt.regen.contest import parabola_minimum
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.judge import Candidate, judge
from sla_ckpt.regen.lbfgs import minimise
from sla_ckpt.regen.projections import Coordinates, from_tensors, to_tensors
from sla_ckpt.regen.statistics import CallKey, Collector, LayerMoments, Moments
from sla_ckpt.regen.train import _checkpoints
from sla_ckpt.state import PairKey, SLASettings

KEY = PairKey(8, "bf16")


def tensors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_case() -> tuple[Moments, torch.Tensor, tuple[torch.Tensor, ...]]:
    o_l, o_s, weight, bias = (
        tensors(0, 2, 3, 50, 8),
        tensors(1, 2, 3, 50, 8),
        tensors(2, 8, 8),
        tensors(3, 8),
    )
    dense = o_s + o_l @ weight.T + bias
    moments = Moments.zeros(8)
    moments.add(dense, o_s, o_l)
    return moments, torch.cat([weight, bias[:, None]], 1), (dense, o_s, o_l)


def test_calibration_recovers_an_exact_projection() -> None:
    moments, truth, _ = exact_case()
    torch.testing.assert_close(moments.solve(ridge=0.0), truth, rtol=1e-9, atol=1e-9)
    assert moments.error(truth) < 1e-6


def test_the_error_from_the_moments_equals_the_error_of_the_outputs() -> None:
    moments, truth, (dense, o_s, o_l) = exact_case()
    other = truth + 0.1 * tensors(4, 8, 9)
    output = o_s + o_l @ other[:, :-1].T + other[:, -1]
    direct = float((output - dense).norm() / dense.norm())
    assert moments.error(other) == pytest.approx(direct, rel=1e-9)


def test_moments_of_parts_sum_to_the_moments_of_the_whole() -> None:
    whole, _, outputs = exact_case()
    parts = [Moments.zeros(8), Moments.zeros(8)]
    for index, part in enumerate(parts):
        part.add(*(output[index : index + 1] for output in outputs))
    total = parts[0] + parts[1]
    torch.testing.assert_close(total.to_vector(), whole.to_vector())
    torch.testing.assert_close(
        Moments.from_vector(whole.to_vector(), 8).xy, whole.xy, rtol=0, atol=0
    )


def test_whitened_inputs_have_unit_second_moment() -> None:
    moments, _, (_, _, o_l) = exact_case()
    x = torch.nn.functional.pad(o_l.reshape(-1, 8), (0, 1), value=1.0)
    z = torch.linalg.solve_triangular(moments.whitener(0.0), x.T, upper=False)
    torch.testing.assert_close(z @ z.T / x.shape[0], torch.eye(9, dtype=torch.float64))


def test_coordinates_go_back_and_forth_and_carry_gradients() -> None:
    moments, truth, _ = exact_case()
    coordinates = Coordinates.of(LayerMoments({CallKey(KEY, 0): moments}), 1e-3)
    vector = coordinates.to_vector({KEY: truth})
    torch.testing.assert_close(coordinates.to_projections(vector)[KEY], truth)
    target = tensors(5, 8, 9)
    leaf = vector.clone().requires_grad_()
    (coordinates.to_projections(leaf)[KEY] * target).sum().backward()
    torch.testing.assert_close(coordinates.gradient({KEY: target}), leaf.grad)


def test_the_collector_tells_layers_apart_and_finds_the_worst() -> None:
    def branches(key: PairKey, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        return q, k, v

    collector = Collector(branches)
    o_l = tensors(0, 1, 1, 40, 8)
    for _ in range(2):
        collector.start_forward()
        collector(KEY, o_l, 0.9 * o_l, o_l)
        collector(KEY, o_l, 0.1 * o_l, o_l)
    found = collector.collected(Group())
    assert [(key.index, m.count) for key, m in found.by_call.items()] == [(0, 80), (1, 80)]
    error = found.error(KEY, torch.zeros(8, 9, dtype=torch.float64))
    assert error.worst_layer == 1
    assert error.worst == pytest.approx(0.9)
    assert found.layer_errors(KEY, torch.zeros(8, 9))[0] == pytest.approx(0.1)


@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
def test_the_branches_add_up_to_what_the_module_computes(feature_map: str) -> None:
    from sla_ckpt.attention.module import SparseLinearAttention

    settings = SLASettings(topk=0.5, feature_map=feature_map)
    q, k, v = (tensors(seed, 1, 2, 256, 8).float() for seed in (1, 2, 3))
    module = SparseLinearAttention.from_settings(8, settings)
    torch.nn.init.eye_(module.proj_l.weight)
    dense, o_s, o_l = make_branches(settings, "main", "reference")(KEY, q, k, v)
    torch.testing.assert_close(o_s + o_l, module(q, k, v), rtol=1e-4, atol=1e-5)
    reference = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(dense, reference)


def test_a_length_that_keeps_no_block_is_refused_with_one_that_does() -> None:
    with pytest.raises(RegenError, match="keeps none of the 4 key blocks of 256 tokens") as caught:
        require_blocks(SLASettings(topk=0.2), 256)
    assert "257 tokens" in str(caught.value.hint)
    require_blocks(SLASettings(topk=0.2), 257)


def quadratic(x: torch.Tensor) -> tuple[float, torch.Tensor]:
    scales = torch.linspace(1, 50, x.numel(), dtype=torch.float64)
    return float((scales * (x - 1).square()).sum()) + 1, 2 * scales * (x - 1)


def test_lbfgs_finds_the_minimum_of_a_quadratic_within_its_budget() -> None:
    found = minimise(quadratic, torch.zeros(30).double(), max_evaluations=20, first_step=0.1)
    assert found.evaluations <= 20
    start, end = quadratic(torch.zeros(30).double())[0] - 1, found.best.value - 1
    assert end < 1e-2 * start
    values = [point.value for point in found.iterates]
    assert values == sorted(values, reverse=True)


def test_lbfgs_descends_the_rosenbrock_valley() -> None:
    def function(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        value = 100 * (leaf[1] - leaf[0] ** 2) ** 2 + (1 - leaf[0]) ** 2
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = minimise(function, start, max_evaluations=80, first_step=0.1, tolerance=0)
    assert found.best.value < 1e-8


def test_lbfgs_survives_trials_that_are_not_finite() -> None:
    def function(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        if float(x.abs().max()) > 2:
            return math.nan, torch.full_like(x, math.nan)
        return quadratic(x)

    found = minimise(function, torch.zeros(5).double(), max_evaluations=20, first_step=100.0)
    assert found.best.value < quadratic(torch.zeros(5).double())[0]


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_lbfgs_never_exceeds_a_small_budget(budget: int) -> None:
    calls = 0

    def function(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        nonlocal calls
        calls += 1
        return quadratic(x)

    minimise(function, torch.zeros(5).double(), max_evaluations=budget, first_step=0.1)
    assert calls <= budget


def candidate(name: str, losses: list[float], *, present: bool = False) -> Candidate:
    return Candidate(name, {}, torch.tensor(losses, dtype=torch.float64), present)


def test_the_judge_takes_the_lowest_loss() -> None:
    verdict = judge(
        [
            candidate("zero", [1.0, 2.0], present=True),
            candidate("calibrated", [0.9, 1.9]),
            candidate("trained", [0.5, 1.5]),
        ]
    )
    assert verdict.best.name == "trained"
    assert verdict.improved
    assert verdict.gain == pytest.approx(0.5)


def test_the_judge_leaves_things_alone_where_noise_decides() -> None:
    verdict = judge(
        [
            candidate("zero", [1.0, 1.0, 1.0, 1.0], present=True),
            candidate("b", [0.2, 1.7, 0.3, 1.7]),
        ]
    )
    assert verdict.best.name == "zero"
    assert not verdict.improved


def test_projections_become_float32_tensors_and_come_back_exactly() -> None:
    values = {KEY: tensors(7, 8, 9).float().double()}
    back = from_tensors(to_tensors(values))
    assert torch.equal(back[KEY], values[KEY])


def test_the_line_search_on_the_judge_finds_a_parabola_s_minimum() -> None:
    def loss(x: float) -> float:
        return 3 + (x - 0.3) ** 2

    assert parabola_minimum(loss(0), loss(0.5), loss(1)) == pytest.approx(0.3)
    assert parabola_minimum(0.0, 0.6, 1.0) is None


def test_early_iterates_are_judged_beside_the_last() -> None:
    assert _checkpoints(1, 6) == [0]
    assert _checkpoints(17, 6) == [0, 1, 3, 7, 15, 16]
    assert _checkpoints(17, 3) == [0, 1, 16]


def test_few_numbers_behind_many_parameters_need_a_larger_gain() -> None:
    candidates = [candidate("zero", [1.0, 1.0], present=True), candidate("trained", [0.6, 0.6])]
    assert judge(candidates, optimism=0.5).improved
    assert not judge(candidates, optimism=0.7).improved


def test_lbfgs_stops_after_the_iterations_asked_for() -> None:
    start = torch.zeros(9).double()
    found = minimise(quadratic, start, max_evaluations=20, first_step=0.1, max_iterations=1)
    assert len(found.iterates) == 2
    assert found.best.value < found.iterates[0].value
