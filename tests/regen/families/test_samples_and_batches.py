"""Samples: what caches hold becomes what the model takes, or one clear error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.families.base import Sample, Size, collate, group_samples
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters
from sla_ckpt.regen.families.synthetic import natural_latents, text_embeddings

FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
QWEN: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": 64,
    "out_channels": 16,
    "joint_attention_dim": 3584,
}
WAN: dict[str, Any] = {"_class_name": "WanTransformer3DModel", "text_dim": 4096}


def prepare(config: dict[str, Any], latents: torch.Tensor, **conditioning: torch.Tensor) -> Sample:
    return adapter_for(config).prepare(config, Sample(latents, conditioning, "cat.pt"))


def test_flux_cache_entries_lose_their_batch_dimension() -> None:
    sample = prepare(
        FLUX,
        torch.zeros(16, 64, 64, dtype=torch.bfloat16),
        prompt_embeds=torch.zeros(1, 512, 4096, dtype=torch.bfloat16),
        pooled_prompt_embeds=torch.zeros(768),
        time_ids=torch.zeros(1, 512, 3),
        attention_masks=torch.ones(1, 512),
    )
    assert {k: tuple(v.shape) for k, v in sample.conditioning.items()} == {
        "prompt_embeds": (512, 4096),
        "pooled_prompt_embeds": (768,),
    }
    assert sample.latents.dtype == torch.float32


def test_qwen_captions_lose_their_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    text = torch.arange(5.0)[None, :, None].expand(1, 5, 3584)
    sample = prepare(QWEN, torch.zeros(16, 8, 8), prompt_embeds=text, attention_masks=mask)
    assert sample.conditioning.keys() == {"prompt_embeds"}
    assert sample.conditioning["prompt_embeds"][:, 0].tolist() == [0, 1, 2]


def test_single_pictures_of_a_video_model_get_a_frame_dimension() -> None:
    sample = prepare(WAN, torch.zeros(16, 8, 8), prompt_embeds=torch.zeros(1, 4, 4096))
    assert sample.latents.shape == (16, 1, 8, 8)


def test_odd_latents_are_cropped_to_whole_tokens() -> None:
    sample = prepare(WAN, torch.zeros(16, 3, 9, 11), prompt_embeds=torch.zeros(4, 4096))
    assert sample.latents.shape == (16, 3, 8, 10)


def test_flux2_latents_are_folded_if_they_are_not() -> None:
    config = builtin_adapters()["Flux2Transformer2DModel"].tiny_config()
    text = torch.zeros(4, 32)
    folded = prepare(config, torch.zeros(16, 4, 4), prompt_embeds=text)
    unfolded = prepare(config, torch.arange(4 * 8 * 8.0).reshape(4, 8, 8), prompt_embeds=text)
    assert folded.latents.shape == unfolded.latents.shape == (16, 4, 4)
    # Channel 0 of the VAE becomes channels 0 to 3, one for each corner of the square.
    assert unfolded.latents[:4, 0, 0].tolist() == [0, 1, 8, 9]


def test_hidream_keeps_the_layers_the_model_uses() -> None:
    config = builtin_adapters()["HiDreamImageTransformer2DModel"].tiny_config()
    sample = prepare(
        config,
        torch.zeros(4, 8, 8),
        t5_prompt_embeds=torch.zeros(1, 6, 32),
        llama_prompt_embeds=torch.zeros(32, 1, 6, 16),
        pooled_prompt_embeds=torch.zeros(1, 64),
    )
    assert sample.conditioning["llama_prompt_embeds"].shape == (2, 6, 16)


@pytest.mark.parametrize(
    ("latents", "conditioning", "problem"),
    [
        ((4, 64, 64), {}, r"latents of shape \[4, 64, 64\], but this model takes 16 channels"),
        ((16, 1, 1), {}, "too small"),
        ((16, 64), {}, "takes 16 channels"),
        ((16, 8, 8), {}, "needs prompt_embeds, the sample has nothing"),
        ((16, 8, 8), {"prompt_embeds": (77, 768)}, r"shape \[77, 768\], the model takes"),
        ((16, 8, 8), {"prompt_embeds": (2, 77, 4096)}, r"shape \[2, 77, 4096\]"),
        ((16, 8, 8), {"prompt_embeds": (7, 4096)}, "needs pooled_prompt_embeds"),
    ],
)
def test_samples_of_another_family_are_refused(
    latents: tuple[int, ...], conditioning: dict[str, tuple[int, ...]], problem: str
) -> None:
    with pytest.raises(RegenError, match=problem) as info:
        prepare(
            FLUX,
            torch.zeros(latents),
            **{name: torch.zeros(shape) for name, shape in conditioning.items()},
        )
    assert info.value.message.startswith("cat.pt")


def test_masks_that_do_not_fit_are_refused() -> None:
    text = torch.zeros(5, 3584)
    with pytest.raises(RegenError, match="5 tokens, attention_masks 4"):
        prepare(QWEN, torch.zeros(16, 8, 8), prompt_embeds=text, attention_masks=torch.ones(4))
    with pytest.raises(RegenError, match="hides every token"):
        prepare(QWEN, torch.zeros(16, 8, 8), prompt_embeds=text, attention_masks=torch.zeros(5))


def sample_of(side: int, text: int) -> Sample:
    return Sample(torch.zeros(4, side, side), {"prompt_embeds": torch.zeros(text, 8)}, f"{side}")


def test_only_equal_shapes_share_a_batch() -> None:
    samples = [sample_of(8, 3), sample_of(16, 3), sample_of(8, 3), sample_of(8, 5), sample_of(8, 3)]
    groups = group_samples(samples, 2)
    assert [[tuple(s.latents.shape) for s in group] for group in groups] == [
        [(4, 8, 8)] * 2,
        [(4, 8, 8)],
        [(4, 16, 16)],
        [(4, 8, 8)],
    ]
    batch = collate(groups[0])
    assert batch.latents.shape == (2, 4, 8, 8)
    assert batch.conditioning["prompt_embeds"].shape == (2, 3, 8)
    assert len(batch) == 2
    with pytest.raises(RegenError, match="different shapes"):
        collate(samples)
    with pytest.raises(RegenError, match="no samples"):
        collate([])


def test_moving_a_batch_casts_floating_point_conditioning_only() -> None:
    sample = Sample(
        torch.zeros(4, 8, 8), {"text": torch.zeros(3, 8), "mask": torch.ones(3, dtype=torch.int64)}
    )
    batch = collate([sample]).to("cpu", torch.bfloat16)
    assert batch.latents.dtype == torch.float32
    assert batch.conditioning["text"].dtype == torch.bfloat16
    assert batch.conditioning["mask"].dtype == torch.int64


@pytest.mark.parametrize("class_name", builtin_adapters())
def test_sizes_and_tokens_fit_together(class_name: str) -> None:
    config = builtin_adapters()[class_name].tiny_config()
    adapter = adapter_for(config)
    size = adapter.size_for_tokens(config, 300)
    tokens = adapter.tokens_for(config, size.height, size.width)
    if class_name == "SanaTransformer2DModel":
        assert tokens is not None
    else:
        assert tokens is not None and tokens >= 300
    shape = adapter.latent_shape(config, size)
    assert len(shape) == (3 if adapter.kind == "image" else 4)
    sample = adapter.synthetic_sample(
        config,
        height=size.height,
        width=size.width,
        generator=torch.Generator().manual_seed(0),
    )
    assert tuple(sample.latents.shape) == shape
    assert adapter.prepare(config, sample).latents.shape == sample.latents.shape


def test_sizes_below_one_token_are_refused() -> None:
    adapter = adapter_for("FluxTransformer2DModel")
    with pytest.raises(RegenError, match="8x8 pixels are too few for flux"):
        adapter.latent_shape(FLUX, Size(8, 8))


def test_synthetic_samples_repeat_with_the_seed() -> None:
    adapter = adapter_for(FLUX)

    def make(seed: int) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        return adapter.synthetic_sample(
            FLUX, height=64, width=96, text_tokens=5, generator=generator
        )

    one, two, other = make(0), make(0), make(1)
    assert torch.equal(one.latents, two.latents)
    assert not torch.equal(one.latents, other.latents)
    assert torch.equal(one.conditioning["prompt_embeds"], two.conditioning["prompt_embeds"])


def power_slope(latents: torch.Tensor) -> float:
    """Exponent of the radially averaged power spectrum of [C, n, n]."""
    side = latents.shape[-1]
    power = torch.fft.fft2(latents).abs().square().mean(0)
    frequency = torch.fft.fftfreq(side) * side
    radius = (frequency[:, None] ** 2 + frequency[None, :] ** 2).sqrt()
    low, high = 4, side // 4
    near = power[(radius - low).abs() < 1].mean()
    far = power[(radius - high).abs() < 1].mean()
    return float((near / far).log() / math.log(low / high))


def test_synthetic_latents_have_a_natural_spectrum() -> None:
    latents = natural_latents((16, 64, 64), torch.Generator().manual_seed(0))
    assert float(latents.std()) == pytest.approx(1.0, abs=0.05)
    # Natural images: power about 1/f²; white noise: flat.
    assert -2.2 < power_slope(latents) < -1.2
    assert (
        abs(power_slope(torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(0)))) < 0.3
    )


def test_synthetic_videos_change_slowly() -> None:
    latents = natural_latents((4, 9, 32, 32), torch.Generator().manual_seed(0))
    neighbours = torch.nn.functional.cosine_similarity(
        latents[:, 3].flatten(), latents[:, 4].flatten(), dim=0
    )
    assert float(neighbours) > 0.3
    assert natural_latents((4, 1, 1, 1), torch.Generator().manual_seed(0)).isfinite().all()


def test_synthetic_text_has_the_asked_scale() -> None:
    text = text_embeddings((32, 256), 0.2, torch.Generator().manual_seed(0))
    assert float(text.std(unbiased=False)) == pytest.approx(0.2, rel=0.01)
