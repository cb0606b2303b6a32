"""Tokens at a resolution, from the config alone."""

from __future__ import annotations

from typing import Any

import pytest

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.tokens import sequence_lengths, tokens_at
from tests.pairs.published_configs import PUBLISHED, SDXL


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("flux.1-dev", (1024, 1024), 4096),
        ("flux.1-dev", (1360, 768), 85 * 48),
        ("sd3.5-medium", (1024, 1024), 4096),
        ("qwen-image", (1328, 1328), 83 * 83),
        ("pixart-sigma", (1024, 1024), 4096),
        ("auraflow", (1024, 1024), 4096),
        ("z-image", (1024, 512), 2048),
        ("sana-1.6b", (1024, 1024), 1024),
        ("sdxl", (1024, 1024), 1024),
        ("sd1.5", (512, 512), 64),
        ("wan2.1-1.3b", (832, 480, 81), 32760),
        ("ltx-video-13b", (768, 512, 97), 13 * 24 * 16),
        ("cogvideox-5b", (720, 480, 49), 13 * 45 * 30),
        ("hunyuan-video", (1280, 720, 129), 33 * 80 * 45),
        ("kandinsky5-lite", (768, 512, 121), 31 * 48 * 32),
    ],
)
def test_token_counts_of_published_models(name: str, size: tuple[int, ...], tokens: int) -> None:
    assert tokens_at(PUBLISHED[name][0], *size) == tokens


@pytest.mark.parametrize(
    ("config", "size", "tokens"),
    [
        # Wan 2.2 5B: 48 channels, factor 16.
        (
            {"_class_name": "WanTransformer3DModel", "in_channels": 48},
            (1280, 704, 121),
            31 * 40 * 22,
        ),
        ({"_class_name": "LTX2VideoTransformer3DModel"}, (768, 512, 121), 16 * 24 * 16),
        ({"_class_name": "HunyuanVideo15Transformer3DModel"}, (1280, 720, 121), 31 * 80 * 45),
        ({"_class_name": "CosmosTransformer3DModel"}, (1280, 704, 121), 16 * 80 * 44),
        (
            {"_class_name": "CosmosTransformer3DModel", "extra_pos_embed_type": None},
            (1280, 704, 121),
            31 * 80 * 44,
        ),
        # DeepFloyd works on pixels.
        ({**SDXL, "in_channels": 3}, (64, 64), 16 * 16),
    ],
)
def test_token_counts_of_special_cases(
    config: dict[str, Any], size: tuple[int, ...], tokens: int
) -> None:
    assert tokens_at(config, *size) == tokens


def test_a_unet_attends_at_several_lengths() -> None:
    assert sequence_lengths(PUBLISHED["sd1.5"][0], 512, 512) == (64, 256, 1024, 4096)
    assert sequence_lengths(SDXL, 1024, 1024) == (1024, 4096)


def test_unknown_classes_have_no_count() -> None:
    assert tokens_at({"_class_name": "Nope"}, 512, 512) is None
    assert tokens_at({}, 512, 512) is None


@pytest.mark.parametrize("size", [(0, 512), (512, -1), (10**9, 512), (512, 512, 0)])
def test_sizes_out_of_range_are_usage_errors(size: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="outside 1 to"):
        tokens_at(PUBLISHED["flux.1-dev"][0], *size)


def test_malformed_patch_sizes_are_usage_errors() -> None:
    config = {"_class_name": "WanTransformer3DModel", "patch_size": [2, 2]}
    with pytest.raises(UsageError, match="2 entries, not 3"):
        tokens_at(config, 832, 480)
