"""Sana: linear self-attention, masked cross-attention.

SLA never takes a call of it; the adapter is here so that regeneration can say so from a real run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.regen.families.base import (
    BaseAdapter,
    Batch,
    Conditioning,
    Config,
    FamilyAdapter,
    model_config,
)
from sla_ckpt.regen.families.packing import as_input, mask_input, scaled_steps


@dataclass(frozen=True)
class SanaAdapter(BaseAdapter):
    name: str = "sana"
    class_names: tuple[str, ...] = ("SanaTransformer2DModel",)
    vae_spatial: int = 32
    multiple: int = 1

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "SanaTransformer2DModel",
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 6,
            "cross_attention_dim": 12,
            "caption_channels": 8,
            "sample_size": 8,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["caption_channels"]), scale=1.0),
            "attention_mask": Conditioning(
                (None,), required=False, aliases=("attention_masks", "prompt_attention_mask")
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        inputs: dict[str, Any] = {
            "hidden_states": noisy,
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_attention_mask": mask_input(batch, "attention_mask", "prompt_embeds", noisy),
            "timestep": scaled_steps(t, 1000.0 * float(config.get("timestep_scale", 1.0))),
        }
        if config.get("guidance_embeds"):
            scale = float(config.get("guidance_embeds_scale", 0.1))
            inputs["guidance"] = torch.full((len(batch),), scale).to(noisy)
        return inputs


ADAPTERS: tuple[FamilyAdapter, ...] = (SanaAdapter(),)
