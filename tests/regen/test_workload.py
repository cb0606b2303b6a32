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


def work_of(items: list[Sample], *, draws: int, batch: int = 32) -> Work:
    train = len(items) - len(items) // 4
    budget = plan_budget(1000, 64, train=train, judged=1, device_type="cpu")
    budget = replace(budget, update_draws=draws, batch_size=batch, judge_repeats=2)
    return sampled_work(ADAPTER, CONFIG, items, budget, seed=3)


def drawn(work: Work, number: int, variation: float = 0.0) -> list[NoisyDraw]:
    draws = list(work.update(number, variation).draws)
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
    work = work_of(items, draws=12)
    assert (work.train_samples, work.judge_samples, work.varied) == (6, 2, False)
    judged = torch.cat([d.batch.latents for d in work.judge.draws])
    assert all(any(torch.equal(row, items[i].latents) for i in (3, 7)) for row in judged)
    copies = torch.cat([d.batch.latents for d in drawn(work, 0, variation=1.0)])
    assert not any(torch.equal(row, item.latents) for row in copies for item in items)


def test_alone_a_sample_trains_and_judges_as_different_copies() -> None:
    items = samples(1)
    work = work_of(items, draws=4)
    assert work.varied
    trained = torch.cat([d.batch.latents for d in drawn(work, 0)])
    judged = torch.cat([d.batch.latents for d in work.judge.draws])
    assert not any(torch.equal(a, b) for a in trained for b in judged)
    assert not any(torch.equal(items[0].latents, row) for row in judged)


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30), frames=st.sampled_from([0, 3]))
def test_a_copy_keeps_the_structure_of_every_channel(seed: int, frames: int) -> None:
    shape = (4, frames, 8, 8) if frames else (4, 8, 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2
    sample = Sample(latents, {"prompt_embeds": torch.zeros(5, 7)})
    copy = varied(sample, torch.Generator().manual_seed(seed))
    assert copy.conditioning is sample.conditioning
    flat = [
        x.latents.flatten(1) - x.latents.flatten(1).mean(1, keepdim=True) for x in (sample, copy)
    ]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=1)
    torch.testing.assert_close(cosine, cosine[:1].sign().expand(4), atol=1e-5, rtol=0)
    gain = flat[1].norm(dim=1) / flat[0].norm(dim=1)
    assert float(gain.min()) >= 0.399 and float(gain.max()) <= 1.201
    assert float(copy.latents.flatten(1).mean(1).abs().max()) < 4


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
def test_every_process_gets_a_share_of_each_update(processes: int) -> None:
    for parameters in (10**6, 10**9, 12 * 10**9):
        budget = plan_budget(
            parameters, 4096, train=6, judged=2, device_type="cuda", processes=processes
        )
        assert -(-budget.update_draws // budget.batch_size) >= min(processes, budget.update_draws)
        assert budget.update_draws >= 2
        assert 12 <= budget.updates <= 36


def test_a_large_model_gets_one_sweep_and_a_small_one_two() -> None:
    small, large = (
        plan_budget(n, 4096, train=6, judged=2, device_type="cuda") for n in (10**7, 12 * 10**9)
    )
    assert len(small.sweeps) == 2
    assert [sweep.variation for sweep in large.sweeps] == [0.5]
