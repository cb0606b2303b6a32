"""The dtype of the queries under mixed precision, against real runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sla_ckpt.pairs.dtypes import query_dtype
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters
from tests.regen.families.pipelines import random_batch, tiny_model

torch.set_num_threads(1)
# Once per process, from models that feed one dtype into norms of another.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture
def query_dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Dtypes of the queries of every attention call."""
    seen: list[str] = []
    real = F.scaled_dot_product_attention

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        query = args[0] if args else kwargs["query"]
        seen.append(str(query.dtype))
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    yield seen


CASES = {name: (name, {}) for name in builtin_adapters()} | {
    "SD3 without norms": ("SD3Transformer2DModel", {"qk_norm": None})
}


@pytest.mark.parametrize("name", CASES)
def test_autocast_over_float32_weights(name: str, query_dtypes: list[str]) -> None:
    class_name, changes = CASES[name]
    model = tiny_model(class_name, **changes)
    adapter = adapter_for(model.config)
    size = adapter.size_for_tokens(model.config, 16)
    batch = random_batch(model, height=size.height, width=size.width, frames=1)
    inputs = adapter.make_inputs(model, batch, batch.latents, torch.full((2,), 0.5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    told = query_dtype(model.config, weights="F32", autocast="bf16", trainer="diffusers")
    full = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[told]
    assert full in query_dtypes
    if told == "bf16":
        assert set(query_dtypes) == {full}


def test_weights_in_half_precision_decide_by_themselves() -> None:
    config = {"_class_name": "QwenImageTransformer2DModel"}
    assert query_dtype(config, weights="torch.bfloat16", autocast="fp16") == "bf16"
    assert query_dtype(config, weights="float16") == "fp16"
    assert query_dtype(config, weights="float32") == "fp32"


def test_flux_differs_between_simpletuner_and_diffusers() -> None:
    config = {"_class_name": "FluxTransformer2DModel"}
    assert query_dtype(config, weights="fp32", autocast="bf16", trainer="simpletuner") == "fp32"
    assert query_dtype(config, weights="fp32", autocast="bf16", trainer="diffusers") == "bf16"


def test_unknown_classes_follow_autocast() -> None:
    assert query_dtype({}, weights="fp32", autocast="bfloat16") == "bf16"
