"""Noise and targets agree with the diffusers schedulers."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.families.base import Batch
from sla_ckpt.regen.families.cosmos import Cosmos1Adapter
from sla_ckpt.regen.families.objectives import BetaSchedule, Noising
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters

SCHEDULERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sd": (
        diffusers.DDPMScheduler,
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    ),
    "pixart": (
        diffusers.DDPMScheduler,
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    ),
    "cosine": (diffusers.DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2"}),
    "zero-snr": (
        diffusers.DDPMScheduler,
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": True,
        },
    ),
    "cogvideox-2b": (
        diffusers.CogVideoXDDIMScheduler,
        {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": True},
    ),
    "cogvideox-5b": (
        diffusers.CogVideoXDDIMScheduler,
        {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True},
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddpm_noise_and_targets_are_the_schedulers(name: str, prediction: str) -> None:
    cls, settings = SCHEDULERS[name]
    scheduler = cls(**settings, prediction_type=prediction)
    noising = Noising("epsilon").with_scheduler(scheduler.config)
    clean, noise = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    t = torch.tensor([0.0005, 0.3004, 0.7499, 0.9995])
    steps = noising.steps(t)
    assert steps.tolist() == [0, 300, 749, 999]
    noisy, target = noising.add(clean, noise, t)
    torch.testing.assert_close(
        noisy, scheduler.add_noise(clean, noise, steps), rtol=1e-4, atol=2e-5
    )
    theirs = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(target, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("class_name", "scheduler"),
    [
        ("PixArtTransformer2DModel", "pixart"),
        ("UNet2DConditionModel", "sd"),
        ("CogVideoXTransformer3DModel", "cogvideox-5b"),
    ],
)
def test_families_have_their_published_schedule_by_default(class_name: str, scheduler: str) -> None:
    adapter = adapter_for(builtin_adapters()[class_name].tiny_config())
    cls, settings = SCHEDULERS[scheduler]
    ours = adapter.noising.schedule.alphas_cumprod()  # type: ignore[attr-defined]
    torch.testing.assert_close(
        ours.float(), cls(**settings).alphas_cumprod.float(), rtol=1e-4, atol=1e-5
    )


def test_flow_runs_straight_from_sample_to_noise() -> None:
    clean, noise = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    noisy, target = Noising("flow").add(clean, noise, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(noisy[0], 0.75 * clean[0] + 0.25 * noise[0])
    torch.testing.assert_close(noisy[1], noise[1])
    torch.testing.assert_close(target, noise - clean)
    torch.testing.assert_close(noisy - torch.tensor([0.25, 1.0]).view(2, 1, 1) * target, clean)


def test_sample_objective_predicts_the_sample() -> None:
    clean = torch.randn(2, 4)
    _, target = Noising("sample").add(clean, torch.randn(2, 4), torch.tensor([0.1, 0.9]))
    assert torch.equal(target, clean)


def test_cosmos_1_target_is_what_its_scheduler_expects_of_the_network() -> None:
    adapter = Cosmos1Adapter()
    latents, noise = torch.randn(3, 2, 1, 4, 4), torch.randn(3, 2, 1, 4, 4)
    t = torch.tensor([0.1, 0.5, 0.9])
    network_input, target = adapter.add_noise(latents, noise, t)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    for i, sigma in enumerate(adapter.sigma(t).float()):
        noisy = 0.5 * latents[i] + sigma * noise[i]
        torch.testing.assert_close(
            network_input[i], scheduler.precondition_inputs(noisy, sigma), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            scheduler.precondition_outputs(noisy, target[i], sigma),
            0.5 * latents[i],
            rtol=1e-4,
            atol=1e-4,
        )
    told = adapter.model_time(t)
    expected = torch.stack([scheduler.precondition_noise(s) for s in adapter.sigma(t).float()])
    torch.testing.assert_close(told, expected)


def test_noise_levels_are_stratified_and_reproducible() -> None:
    for objective in ("flow", "epsilon"):
        noising = Noising(objective, shift=1.0)
        levels = noising.sample(8, 4096, torch.Generator().manual_seed(3))
        again = noising.sample(8, 4096, torch.Generator().manual_seed(3))
        assert torch.equal(levels, again)
        assert levels.dtype == torch.float32
        assert levels.min() > 0
        assert levels.max() < 1
        # One draw in each eighth of the distribution: half lie below its median, one half.
        assert int((levels < 0.5).sum()) == 4


def test_one_sample_draws_any_level() -> None:
    noising = Noising("epsilon")
    drawn = [float(noising.sample(1, 64, torch.Generator().manual_seed(i))) for i in range(64)]
    assert min(drawn) < 0.1
    assert max(drawn) > 0.9


def test_larger_pictures_get_more_noise() -> None:
    noising = adapter_for("FluxTransformer2DModel").noising  # type: ignore[attr-defined]
    assert noising.shift_at(256) == pytest.approx(math.exp(0.5))
    assert noising.shift_at(4096) == pytest.approx(math.exp(1.15))
    adapter = adapter_for("FluxTransformer2DModel")

    def mean(side: int) -> float:
        batch = Batch(torch.zeros(64, 4, side, side), {})
        levels = adapter.sample_timesteps({}, batch, torch.Generator().manual_seed(0))
        return float(levels.mean())

    assert mean(32) < mean(128)


def test_unknown_beta_schedule_is_refused() -> None:
    with pytest.raises(RegenError, match="beta schedule 'odd'"):
        BetaSchedule(shape="odd").alphas_cumprod()
