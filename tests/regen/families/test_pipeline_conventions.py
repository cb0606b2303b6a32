"""What an adapter gives the model is what the family's own pipeline gives it."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.regen.families.pipelines import (
    PIPELINES,
    Captured,
    Pipeline,
    prompt,
    run_pipeline,
)

torch.set_num_threads(1)


def noise_level(captured: Captured) -> Tensor:
    """The step's t: the scheduler counts 1000 steps."""
    t = torch.full((2,), captured.timestep / 1000)
    # A DDPM step is an interval of noise levels; take its middle.
    return t + 0.0005 if captured.adapter.objective != "flow" else t


def assert_same(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(ours, Tensor):
        # One number or row for the whole batch is the same as one per sample.
        shape = torch.broadcast_shapes(ours.shape, theirs.shape)
        torch.testing.assert_close(
            ours.float().expand(shape),
            theirs.float().expand(shape),
            msg=lambda text: f"{name}: {text}",
        )
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{name}.{key}")
    elif isinstance(ours, list | tuple) and ours and isinstance(ours[0], Tensor):
        assert len(ours) == len(theirs)
        for index, value in enumerate(ours):
            assert_same(value, theirs[index], f"{name}[{index}]")
    elif isinstance(ours, list | tuple):
        assert list(ours) == list(theirs)
    else:
        assert ours == theirs, name


@pytest.mark.parametrize(
    "case", PIPELINES, ids=[f"{c.pipeline}-{i}" for i, c in enumerate(PIPELINES)]
)
def test_adapter_calls_the_model_as_its_pipeline_does(case: Pipeline) -> None:
    captured = run_pipeline(case)
    batch = captured.batch
    t = noise_level(captured)
    assert 0 < float(t[0]) < 1

    ours = captured.adapter.make_inputs(captured.model, batch, batch.latents, t)
    given = {name: value for name, value in ours.items() if value is not None}
    for name, value in given.items():
        assert_same(value, captured.inputs[name], name)
    empty = (None, False, {})
    missing = {
        name
        for name, value in captured.inputs.items()
        if name not in {*given, "return_dict"}
        and not any(value is nothing or value == nothing for nothing in empty)
    }
    assert not missing

    prediction = captured.adapter.read_prediction(captured.output, batch)
    assert prediction.shape == batch.latents.shape
    to_prediction = case.to_prediction or case.to_pipeline
    torch.testing.assert_close(to_prediction(prediction).float(), captured.prediction.float())


class NoSafetyChecker:
    """Stands for Cosmos's guardrail, a separate package that judges words and pictures."""

    def to(self, device: object) -> NoSafetyChecker:
        return self

    def check_text_safety(self, text: str) -> bool:
        return True


def test_cosmos_2_is_rectified_flow_in_other_words() -> None:
    case = Pipeline(
        "CosmosTransformer3DModel",
        "Cosmos2TextToImagePipeline",
        prompt("prompt_embeds"),
        scheduler=lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        components={"safety_checker": NoSafetyChecker()},
    )
    captured = run_pipeline(case)
    noisy, t = captured.inputs["hidden_states"], captured.inputs["timestep"].float()
    assert 0 < float(t[0]) < 1
    ours = captured.adapter.make_inputs(captured.model, captured.batch, noisy, t)
    for name, value in ours.items():
        assert_same(value, captured.inputs[name], name)
    velocity = captured.adapter.read_prediction(captured.output, captured.batch)
    # The pipeline steps from latents = noisy·(1 + σ) along (latents − x0)/σ, σ = t/(1 − t).
    level = t.view(-1, 1, 1, 1, 1)
    sigma = level / (1 - level)
    clean = noisy * (1 + sigma) - sigma * captured.prediction
    torch.testing.assert_close(noisy - level * velocity, clean, rtol=1e-4, atol=1e-4)
