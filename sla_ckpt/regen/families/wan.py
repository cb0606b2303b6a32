"""Wan 2.1 and 2.2, text to video and image to video.

Image-to-video models take, beside the noisy latents, 4 mask channels and the latents of a video
whose first frame is the picture and whose other frames are grey. Those are not in a trainer's
latent cache; here they are the sample's own first frame followed by zeros, unless the sample
brings ``condition_latents``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.regen.families.base import (
    BaseAdapter,
    Batch,
    Conditioning,
    Config,
    FamilyAdapter,
    Kind,
    model_config,
)
from sla_ckpt.regen.families.packing import as_input, entry, refuse, scaled_steps

#: CLIP tokens of one picture.
IMAGE_TOKENS = 257
_MASK_CHANNELS = 4


@dataclass(frozen=True)
class WanAdapter(BaseAdapter):
    name: str = "wan"
    class_names: tuple[str, ...] = ("WanTransformer3DModel",)
    kind: Kind = "video"
    vae_temporal: int = 4

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        extra = entry(config, "in_channels", 16) - self.latent_channels(config)
        if extra not in (0, _MASK_CHANNELS + self.latent_channels(config)):
            raise refuse(f"this Wan variant takes {extra} channels beside the latents")
        # The 5B model of Wan 2.2 has its own VAE of 48 channels.
        return replace(self, vae_spatial=16 if self.latent_channels(config) == 48 else 8)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "WanTransformer3DModel",
            "patch_size": [1, 2, 2],
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 64,
            "ffn_dim": 32,
            "num_layers": 2,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "rope_max_seq_len": 64,
        }

    def latent_channels(self, config: Config) -> int:
        return entry(config, "out_channels", 16)

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        found = {"prompt_embeds": Conditioning((None, config["text_dim"]), scale=0.2)}
        if entry(config, "in_channels", 16) != self.latent_channels(config):
            channels = _MASK_CHANNELS + self.latent_channels(config)
            found["condition_latents"] = Conditioning((channels, None, None, None), required=False)
        if config.get("image_dim"):
            found["image_embeds"] = Conditioning(
                (None, config["image_dim"]), required=False, scale=1.0
            )
        return found

    def synthetic_conditioning(
        self,
        config: Config,
        name: str,
        spec: Conditioning,
        text_tokens: int,
        generator: torch.Generator,
    ) -> Tensor:
        tokens = IMAGE_TOKENS if name == "image_embeds" else text_tokens
        return super().synthetic_conditioning(config, name, spec, tokens, generator)

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        inputs: dict[str, Any] = {
            "hidden_states": noisy,
            "timestep": scaled_steps(t),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
        }
        if entry(config, "in_channels", 16) != self.latent_channels(config):
            condition = first_frame_condition(batch, _MASK_CHANNELS)
            inputs["hidden_states"] = torch.cat([noisy, condition.to(noisy)], dim=1)
        if config.get("image_dim"):
            embeds = batch.conditioning.get("image_embeds")
            if embeds is None:
                embeds = torch.zeros(len(batch), IMAGE_TOKENS, int(config["image_dim"]))
            inputs["encoder_hidden_states_image"] = embeds.to(noisy)
        return inputs


def first_frame_condition(batch: Batch, mask_channels: int) -> Tensor:
    """Mask and latents [B, mask + C, T, h, w] that tell a model its first frame."""
    given = batch.conditioning.get("condition_latents")
    if given is not None:
        return given
    clean = batch.latents
    mask = torch.zeros_like(clean[:, :1]).expand(-1, mask_channels, -1, -1, -1).clone()
    mask[:, :, 0] = 1.0
    picture = torch.zeros_like(clean)
    picture[:, :, 0] = clean[:, :, 0]
    return torch.cat([mask, picture], dim=1)


ADAPTERS: tuple[FamilyAdapter, ...] = (WanAdapter(),)
