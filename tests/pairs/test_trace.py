"""The trace and the table agree on every class that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.table import UnknownModelError, expected_head_dims, known_classes
from sla_ckpt.pairs.trace import InputMaker, TracedPairs, trace_pairs
from sla_ckpt.regen.families.registry import builtin_adapters
from tests.pairs.published_configs import PUBLISHED

# Run on the CPU: they look at values, which the meta device does not have.
ON_CPU = {
    "HiDreamImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "Lumina2Transformer2DModel",
    "OmniGenTransformer2DModel",
}

FLUX = builtin_adapters()["FluxTransformer2DModel"].tiny_config()
UNET = builtin_adapters()["UNet2DConditionModel"].tiny_config()
SD3 = builtin_adapters()["SD3Transformer2DModel"].tiny_config()
WAN = builtin_adapters()["WanTransformer3DModel"].tiny_config()
SANA = builtin_adapters()["SanaTransformer2DModel"].tiny_config()
QWEN = builtin_adapters()["QwenImageTransformer2DModel"].tiny_config()


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(shape, device=device, dtype=dtype)


def through_adapter(class_name: str, **more: tuple[int, ...]) -> InputMaker:
    """The base model's inputs, plus random tensors of the given shapes."""

    def make(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        adapter = builtin_adapters()[class_name]
        generator = torch.Generator().manual_seed(0)
        with torch.device("cpu"):
            sample = adapter.prepare(
                config,
                adapter.synthetic_sample(
                    config, height=64, width=64, text_tokens=7, generator=generator
                ),
            )

        class Stand:
            pass

        stand = Stand()
        stand.config = config  # type: ignore[attr-defined]
        from sla_ckpt.regen.families.base import collate

        batch = collate([sample]).to(device, dtype)
        inputs = adapter.make_inputs(
            stand, batch, batch.latents.to(device, dtype), torch.full((1,), 0.5, device=device)
        )
        return inputs | {name: random(shape, device, dtype) for name, shape in more.items()}

    return make


def omnigen(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    text, image = 5, 16
    total = text + 1 + image
    return {
        "hidden_states": random((1, config["in_channels"], 8, 8), device, dtype),
        "timestep": torch.full((1,), 0.5, device=device),
        "input_ids": torch.zeros(1, text, dtype=torch.long, device=device),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(1, total, total, dtype=torch.long, device=device),
        "position_ids": torch.arange(total, device=device)[None],
    }


def vace(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    inputs = through_adapter("WanTransformer3DModel")(config, device, dtype)
    inputs["control_hidden_states"] = random(
        (1, config["vace_in_channels"], 1, 8, 8), device, dtype
    )
    return inputs


def without(config: Mapping[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    return {k: v for k, v in {**config, **more}.items() if k not in names}


# Classes without an adapter of their own: config and inputs.
OTHERS: dict[str, tuple[dict[str, Any], InputMaker]] = {
    "FluxControlNetModel": (
        without(FLUX, _class_name="FluxControlNetModel"),
        through_adapter("FluxTransformer2DModel", controlnet_cond=(1, 16, 16)),
    ),
    "SD3ControlNetModel": (
        without(SD3, _class_name="SD3ControlNetModel", dual_attention_layers=[]),
        through_adapter("SD3Transformer2DModel", controlnet_cond=(1, 4, 8, 8)),
    ),
    "ControlNetModel": (
        without(
            UNET, "up_block_types", "sample_size", "out_channels", _class_name="ControlNetModel"
        ),
        through_adapter("UNet2DConditionModel", controlnet_cond=(1, 3, 64, 64)),
    ),
    "QwenImageControlNetModel": (
        without(QWEN, _class_name="QwenImageControlNetModel"),
        through_adapter("QwenImageTransformer2DModel", controlnet_cond=(1, 16, 16)),
    ),
    "SanaControlNetModel": (
        without(SANA, _class_name="SanaControlNetModel"),
        through_adapter("SanaTransformer2DModel", controlnet_cond=(1, 4, 2, 2)),
    ),
    "WanVACETransformer3DModel": (
        without(WAN, _class_name="WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=6),
        vace,
    ),
    "SkyReelsV2Transformer3DModel": (
        without(WAN, _class_name="SkyReelsV2Transformer3DModel"),
        through_adapter("WanTransformer3DModel"),
    ),
    "OmniGenTransformer2DModel": (
        {
            "_class_name": "OmniGenTransformer2DModel",
            "in_channels": 4,
            "patch_size": 2,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 32,
            "num_layers": 1,
            "pad_token_id": 0,
            "vocab_size": 1000,
            "time_step_dim": 4,
            "rope_scaling": {"long_factor": [1, 1], "short_factor": [1, 1]},
        },
        omnigen,
    ),
}

NOT_IN_DIFFUSERS = {"HunyuanVideo_1_5_DiffusionTransformer"}


def agrees(config: Mapping[str, Any], traced: TracedPairs) -> bool:
    expected = expected_head_dims(config, trainer="diffusers")
    seen = set(traced.head_dims)
    return set(expected.head_dims) <= seen <= {*expected.head_dims, *expected.possible}


def test_the_tests_below_cover_the_whole_table() -> None:
    assert set(known_classes()) == {*builtin_adapters(), *OTHERS} | NOT_IN_DIFFUSERS


@pytest.mark.parametrize("class_name", builtin_adapters())
def test_table_and_trace_agree_on_tiny_models(class_name: str) -> None:
    config = builtin_adapters()[class_name].tiny_config()
    traced = trace_pairs(config)
    assert agrees(config, traced)
    assert traced.calls
    assert traced.device == ("cpu" if class_name in ON_CPU else "meta")


@pytest.mark.parametrize("class_name", OTHERS)
def test_table_and_trace_agree_on_controlnets_and_others(class_name: str) -> None:
    config, inputs = OTHERS[class_name]
    traced = trace_pairs(config, inputs=inputs)
    assert agrees(config, traced)
    assert traced.calls


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_and_trace_agree_on_published_models(name: str) -> None:
    config, head_dims = PUBLISHED[name]
    traced = trace_pairs(config)
    assert traced.device == "meta"
    assert traced.head_dims == head_dims


def test_dtype_of_the_queries_names_the_pair() -> None:
    assert [str(pair) for pair in trace_pairs(FLUX, dtype="fp16").pairs] == ["16:fp16"]
    float32 = trace_pairs(FLUX, dtype="float32")
    assert float32.pairs == ()
    assert {call.dense_reason for call in float32.calls} == {"dtype"}


def test_calls_say_why_they_stay_dense() -> None:
    calls = trace_pairs(WAN, tokens=100).calls
    reasons = {call.dense_reason for call in calls}
    assert reasons == {None, "cross-attention"}
    own = next(call for call in calls if call.dense_reason is None)
    assert own.query_length == own.key_length >= 100
    assert own.count == WAN["num_layers"]


def test_mask_makes_chroma_dense() -> None:
    config = builtin_adapters()["ChromaTransformer2DModel"].tiny_config()

    def masked(
        config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        inputs = through_adapter("ChromaTransformer2DModel")(config, device, dtype)
        inputs["attention_mask"] = torch.ones(1, 16 + 7, dtype=torch.bool, device=device)
        return inputs

    assert trace_pairs(config, inputs=masked).head_dims == ()


def test_classes_that_diffusers_lacks_are_traced_by_their_own_class() -> None:
    class Attending(torch.nn.Module):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__()
            self.config = config
            self.project = torch.nn.Linear(config["width"], config["width"])

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Attending:
            return cls(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.project(x).unflatten(-1, (2, -1)).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    config = {"_class_name": "Attending", "width": 32}
    with pytest.raises(UnknownModelError):
        trace_pairs(config)
    traced = trace_pairs(
        config,
        model_class=Attending,
        inputs=lambda config, device, dtype: {"x": random((1, 9, config["width"]), device, dtype)},
    )
    assert [str(pair) for pair in traced.pairs] == ["16:bf16"]
    assert traced.calls[0].query_length == 9


def test_unknown_and_broken_configs_are_clear_errors() -> None:
    with pytest.raises(UnknownModelError, match="Nope"):
        trace_pairs({"_class_name": "Nope"})
    with pytest.raises(UsageError, match="does not run"):
        trace_pairs({**FLUX, "num_attention_heads": "two"})
