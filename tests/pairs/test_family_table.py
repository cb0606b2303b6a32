"""The family table: head_dims from configs, and what malformed configs say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.defaults import CLASS_DEFAULTS
from sla_ckpt.pairs.strays import stray_source
from sla_ckpt.pairs.table import (
    UnknownModelError,
    expected_head_dims,
    known_classes,
)
from tests.pairs.published_configs import PUBLISHED, SDXL


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_give_their_head_dims(name: str) -> None:
    config, head_dims = PUBLISHED[name]
    assert expected_head_dims(config, trainer="diffusers").head_dims == head_dims


@pytest.mark.parametrize("class_name", known_classes())
def test_every_known_class_answers_with_its_defaults(class_name: str) -> None:
    # Not a class of diffusers, so it has no defaults here.
    own = {"hidden_size": 2048, "heads_num": 16} if class_name.startswith("HunyuanVideo_") else {}
    found = expected_head_dims({"_class_name": class_name, **own})
    assert found.class_name == class_name
    assert set(found.head_dims).isdisjoint(found.possible)
    assert found.head_dims or found.possible


@pytest.mark.parametrize("class_name", CLASS_DEFAULTS)
def test_stored_defaults_are_those_of_the_diffusers_class(class_name: str) -> None:
    import diffusers

    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    real = {key: parameters[key].default for key in CLASS_DEFAULTS[class_name]}
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in real.items()}
    assert plain == dict(CLASS_DEFAULTS[class_name])


def test_simpletuner_and_diffusers_differ_where_their_classes_do() -> None:
    def both(class_name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config = {"_class_name": class_name}
        return (
            expected_head_dims(config, trainer="simpletuner").head_dims,
            expected_head_dims(config, trainer="diffusers").head_dims,
        )

    assert both("ZImageTransformer2DModel") == ((), (128,))
    assert both("HunyuanVideo15Transformer3DModel") == ((128,), ())
    assert both("QwenImageTransformer2DModel") == ((128,), (128,))
    assert expected_head_dims({"_class_name": "ZImageTransformer2DModel"}).allows(128)


def test_ltx2_has_a_pair_for_video_and_one_for_audio() -> None:
    config = {"_class_name": "LTX2VideoTransformer3DModel"}
    found = expected_head_dims(config).keys("torch.bfloat16")
    assert [str(key) for key in found] == ["64:bf16", "128:bf16"]


def test_masked_models_have_only_possible_pairs() -> None:
    found = expected_head_dims({"_class_name": "ChromaTransformer2DModel"})
    assert (found.head_dims, found.possible) == ((), (128,))


def test_unet_head_count_is_called_attention_head_dim() -> None:
    config = {**SDXL, "attention_head_dim": [5, 10, 10]}
    assert expected_head_dims(config).head_dims == (64, 128)


def test_unet_blocks_without_attention_do_not_count() -> None:
    # 320 / 2 = 160 would be the first block's, which has no attention.
    config = {**SDXL, "attention_head_dim": [2, 10, 20]}
    assert expected_head_dims(config).head_dims == (64,)


def test_unet_blocks_with_no_transformer_layers_do_not_count() -> None:
    config = {
        **SDXL,
        "attention_head_dim": [5, 5, 20],
        "transformer_layers_per_block": [0, 0, 10],
        "reverse_transformer_layers_per_block": [10, 0, 0],
        "mid_block_type": None,
    }
    assert expected_head_dims(config).head_dims == (64,)


def test_unet_with_cross_attention_only_has_pairs_in_simpletuner_alone() -> None:
    config = {**SDXL, "only_cross_attention": [True, True, True], "mid_block_type": None}
    assert expected_head_dims(config, trainer="simpletuner").head_dims == (64,)
    assert expected_head_dims(config, trainer="diffusers").head_dims == ()


def test_unknown_class_says_so_and_names_expect() -> None:
    with pytest.raises(UnknownModelError, match="MyTransformer is not in the family table") as info:
        expected_head_dims({"_class_name": "MyTransformer"})
    assert "--expect" in str(info.value.hint)
    for config in ({}, {"_class_name": None}, {"_class_name": 7}):
        with pytest.raises(UnknownModelError, match="no _class_name"):
            expected_head_dims(config)


MALFORMED: dict[str, Any] = {
    "string": "128",
    "zero": 0,
    "negative": -1,
    "fraction": 1.5,
    "bool": True,
    "null": None,
    "list": [],
    "dict": {},
    "too-large": 70000,
    "huge": 10**30,
    "beyond-printing": 10**5000,
    "nan": float("nan"),
    "long-string": "x" * 999,
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_head_dims_are_one_clear_error(value: Any) -> None:
    with pytest.raises(UsageError, match="attention_head_dim is") as info:
        expected_head_dims({"_class_name": "FluxTransformer2DModel", "attention_head_dim": value})
    assert len(info.value.message) < 200


@pytest.mark.parametrize(
    ("class_name", "entries", "problem"),
    [
        ("Lumina2Transformer2DModel", {"num_attention_heads": 7}, "not a multiple"),
        ("Lumina2Transformer2DModel", {"hidden_size": "big"}, "not a whole number"),
        ("Kandinsky5Transformer3DModel", {"axes_dims": 3}, "not a list"),
        ("Kandinsky5Transformer3DModel", {"axes_dims": [1] * 999}, "more than"),
        ("Kandinsky5Transformer3DModel", {"axes_dims": [16, "24", 24]}, "not a whole number"),
        ("Kandinsky5Transformer3DModel", {"axes_dims": [60000, 60000]}, "outside 1 to 65536"),
        ("ZImageTransformer2DModel", {"n_heads": 0}, "outside 1 to"),
        ("UNet2DConditionModel", {"block_out_channels": [320]}, "1 entries for 4 blocks"),
        ("UNet2DConditionModel", {"attention_head_dim": [5, 10]}, "2 entries for 4 blocks"),
        ("UNet2DConditionModel", {"attention_head_dim": None}, "not a whole number"),
        ("UNet2DConditionModel", {"attention_head_dim": 4096}, "4096 attention heads"),
        ("UNet2DConditionModel", {"down_block_types": [1, 2, 3, 4]}, "not a list of strings"),
        ("UNet2DConditionModel", {"down_block_types": ["X"] * 4}, "block kind 'X' is not known"),
        ("UNet2DConditionModel", {"down_block_types": ["DownBlock2D"] * 99}, "more than"),
        ("UNet2DConditionModel", {"mid_block_type": ["a"]}, "mid_block_type"),
        ("UNet2DConditionModel", {"transformer_layers_per_block": "1"}, "not a whole number"),
        ("UNet2DConditionModel", {"up_block_types": ["UpBlock2D"]}, "1 entries for 4 blocks"),
    ],
)
def test_malformed_configs_name_the_entry(
    class_name: str, entries: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem) as info:
        expected_head_dims({"_class_name": class_name, **entries})
    assert class_name in info.value.message


def test_unusable_dtype_is_a_usage_error() -> None:
    found = expected_head_dims({"_class_name": "FluxTransformer2DModel"})
    with pytest.raises(UsageError, match="unknown dtype"):
        found.keys("bf17")


def test_strays_are_traced_to_their_source() -> None:
    assert "AutoencoderKL" in str(stray_source(512))
    assert "Wan" in str(stray_source(384))
    assert stray_source(128) is None


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys, sla_ckpt.pairs.table, sla_ckpt.pairs.tokens, sla_ckpt.pairs.architecture,"
        " sla_ckpt.pairs.strays, sla_ckpt.pairs.trace;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
