"""The draws of a regeneration: all samples take part, copies are varied, noise changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_ckpt.regen.budget import plan_budget
from sla_ckpt.regen.families.data import Sample
from sla_ckpt.regen.variation import can_vary, varied
from sla_ckpt.regen.workload import NoisyDraw, Work, sampled_work
from tests.regen.sample_makers import ADAPTER, CONFIG


def samples(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [
        ADAPTER.synthetic_sample(CONFIG, height=64, width=64, generator=generator)
        for _ in range(count)
    ]


def work_of(
    items: list[Sample], *, draws: int, batch: int = 32, variation: float = 0.0, **budget: int
) -> Work:
    train = len(items) - len(items) // 4
    planned = plan_budget(1000, 64, train=train, judged=1, device_type="cpu")
    planned = replace(
        planned, update_draws=draws, batch_size=batch, judge_repeats=2, variation=variation
    )
    return sampled_work(ADAPTER, CONFIG, items, replace(planned, **budget), seed=3)


def drawn(work: Work, number: int) -> list[NoisyDraw]:
    draws = list(work.update(number).draws)
    assert all(isinstance(draw, NoisyDraw) for draw in draws)
    return draws


@settings(deadline=None, max_examples=25)
@given(count=st.integers(4, 9), draws=st.integers(1, 20), batch=st.integers(1, 8))
def test_every_sample_trains_within_one_pass(count: int, draws: int, batch: int) -> None:
    items = samples(count)
    train = [item for index, item in enumerate(items) if (index + 1) % 4]
    work = work_of(items, draws=draws, batch=batch)
    updates = -(-len(train) // draws)
    seen = torch.cat([d.batch.latents for n in range(updates) for d in drawn(work, n)])
    for item in train:
        assert any(torch.equal(item.latents, row) for row in seen)
    assert all(d.noise.shape[0] <= batch for d in drawn(work, 0))


def test_updates_repeat_bit_by_bit_and_differ_from_each_other() -> None:
    first, second = (work_of(samples(8), draws=12) for _ in range(2))
    one, same, other = drawn(first, 0)[0], drawn(second, 0)[0], drawn(first, 1)[0]
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.t, same.t)
    assert not torch.equal(one.noise, other.noise)


def test_held_out_samples_judge_as_they_are_and_copies_train() -> None:
    items = samples(8)
    work = work_of(items, draws=12, variation=1.0)
    assert (work.train_samples, work.judge_samples, work.varied) == (6, 2, False)
    judged = torch.cat([d.batch.latents for d in work.judge.draws])
    assert all(any(torch.equal(row, items[i].latents) for i in (3, 7)) for row in judged)
    copies = torch.cat([d.batch.latents for d in drawn(work, 0)])
    assert not any(torch.equal(row, item.latents) for row in copies for item in items)


def test_alone_a_sample_trains_and_judges_as_different_copies() -> None:
    items = samples(1)
    work = work_of(items, draws=4)
    assert work.varied
    trained = torch.cat([d.batch.latents for d in drawn(work, 0)])
    judged = torch.cat([d.batch.latents for d in work.judge.draws])
    assert not any(torch.equal(a, b) for a in trained for b in judged)
    assert not any(torch.equal(items[0].latents, row) for row in judged)


def test_half_the_draws_see_samples_as_they_are_where_none_can_be_learnt_by_heart() -> None:
    items = samples(8)
    work = work_of(items, draws=12, variation=0.5)
    rows = torch.cat([d.batch.latents for n in range(20) for d in drawn(work, n)])
    plain = sum(any(torch.equal(row, item.latents) for item in items) for row in rows)
    assert 0.35 < plain / len(rows) < 0.65


def test_calibration_sees_as_many_samples_as_it_may() -> None:
    items = samples(8)
    train = [item for index, item in enumerate(items) if (index + 1) % 4]
    two = work_of(items, draws=12, calibration_draws=2, repeats=4).calibration
    assert two.size == 2
    assert all(
        any(torch.equal(row, item.latents) for item in train[:2])
        for draw in two.draws
        if isinstance(draw, NoisyDraw)
        for row in draw.batch.latents
    )
    assert work_of(items, draws=12, calibration_draws=13, repeats=4).calibration.size == 12
    assert work_of(items, draws=12, calibration_draws=64, repeats=4).calibration.size == 24


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30), frames=st.sampled_from([0, 3]))
def test_a_copy_keeps_the_structure_of_every_channel(seed: int, frames: int) -> None:
    shape = (4, frames, 8, 8) if frames else (4, 8, 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2
    sample = Sample(latents, {"prompt_embeds": torch.zeros(5, 7)})
    # Whether a piece is pasted is the seed's matter: one without is looked for.
    copies = (varied(sample, [sample], torch.Generator().manual_seed(seed + n)) for n in range(64))
    copy = next(c for c in copies if not _is_pasted(sample, c))
    assert copy.conditioning is sample.conditioning
    flat = [
        x.latents.flatten(1) - x.latents.flatten(1).mean(1, keepdim=True) for x in (sample, copy)
    ]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=1)
    torch.testing.assert_close(cosine, cosine[:1].sign().expand(4), atol=1e-5, rtol=0)
    gain = flat[1].norm(dim=1) / flat[0].norm(dim=1)
    assert float(gain.min()) >= 0.399 and float(gain.max()) <= 1.201
    assert float(copy.latents.flatten(1).mean(1).abs().max()) < 4


def _is_pasted(sample: Sample, copy: Sample) -> bool:
    """Not one line from the sample's values to the copy's, in the first channel."""
    x, y = (s.latents[0].flatten().double() for s in (sample, copy))
    x, y = x - x.mean(), y - y.mean()
    return abs(float(x @ y / (x.norm() * y.norm()))) < 0.9999


@settings(deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    shape=st.sampled_from([(4, 8, 8), (4, 3, 8, 6), (4, 1, 16), (4, 2, 2)]),
)
def test_a_pasted_piece_is_one_rectangle_from_the_other_sample(
    seed: int, shape: tuple[int, ...]
) -> None:
    """One sample is zero everywhere, so whatever varies within a copy of it is the piece."""
    generator = torch.Generator().manual_seed(seed)
    flat = Sample(torch.zeros(shape), {})
    other = Sample(torch.randn(shape, generator=generator), {})
    pasted = 0
    for _ in range(16):
        copy = varied(flat, [other], generator).latents
        assert copy.shape == shape
        background = copy.flatten(1).mode(dim=1).values
        inside = (copy != background.view(-1, *([1] * (len(shape) - 1)))).any(0)
        inside = inside.any(0) if len(shape) == 4 else inside
        if not inside.any():
            continue
        pasted += 1
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        for extent, places in zip(shape[-2:], (rows, columns), strict=True):
            assert int(places[-1] - places[0]) + 1 <= max(1, 0.75 * extent)
    assert pasted
    assert torch.equal(flat.latents, torch.zeros(shape))


def test_pictures_among_the_conditions_forbid_copies() -> None:
    latents = torch.zeros(4, 3, 8, 8)
    assert can_vary(Sample(latents, {"prompt_embeds": torch.zeros(5, 7)}))
    assert not can_vary(Sample(latents, {"first_frame": torch.zeros(4, 1, 8, 8)}))
    assert not can_vary(Sample(latents, {"mask": torch.zeros(1, 3, 8, 8)}))
    assert can_vary(Sample(latents, {"states of 48 layers": torch.zeros(48, 5, 7)}))
    items = [
        replace(s, conditioning={**s.conditioning, "image": torch.zeros(3, 8, 8)})
        for s in samples(1)
    ]
    assert not work_of(items, draws=4).varied


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("draws", [None, 8])
def test_every_process_gets_a_share_of_each_update(processes: int, draws: int | None) -> None:
    for parameters in (10**6, 10**9, 12 * 10**9):
        budget = plan_budget(
            parameters,
            4096,
            train=6,
            judged=2,
            device_type="cuda",
            processes=processes,
            draws=draws,
        )
        assert -(-budget.update_draws // budget.batch_size) >= min(processes, budget.update_draws)
        assert budget.update_draws >= 2
        assert 8 <= budget.updates <= 72


def test_what_is_drawn_does_not_depend_on_the_number_of_processes() -> None:
    for parameters in (10**6, 10**9, 12 * 10**9):
        one, four = (
            plan_budget(
                parameters, 4096, train=6, judged=2, device_type="cuda", processes=processes
            )
            for processes in (1, 4)
        )
        assert replace(four, batch_size=one.batch_size) == one


def test_small_models_see_copies_only_and_large_ones_every_other_time() -> None:
    """What is drawn hundreds of times could be learnt by heart; what is drawn thrice cannot."""
    small, large = (
        plan_budget(n, 4096, train=6, judged=2, device_type="cuda") for n in (10**7, 12 * 10**9)
    )
    assert (small.updates, small.update_draws, small.variation) == (72, 32, 1.0)
    assert (large.updates, large.update_draws, large.variation) == (8, 2, 0.5)
    assert (small.calibration_draws, large.calibration_draws) == (64, 2)


def test_the_users_numbers_go_over_the_derived_ones() -> None:
    plain = plan_budget(10**9, 4096, train=6, judged=2, device_type="cuda")
    own = plan_budget(10**9, 4096, train=6, judged=2, device_type="cuda", draws=7, evaluations=150)
    assert (own.repeats, own.judge_repeats, own.update_draws) == (7, 7, 7)
    assert (own.updates, own.evaluations) == (150, 20)
    assert plain.updates != 150
