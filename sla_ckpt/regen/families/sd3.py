"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sla_ckpt.regen.families.base import BaseAdapter, Batch, Conditioning, Config, FamilyAdapter
from sla_ckpt.regen.families.packing import as_input, scaled_steps


@dataclass(frozen=True)
class SD3Adapter(BaseAdapter):
    name: str = "sd3"
    class_names: tuple[str, ...] = ("SD3Transformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 96,
            "dual_attention_layers": [0],
            "qk_norm": "rms_norm",
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=0.4),
            "pooled_prompt_embeds": Conditioning((config["pooled_projection_dim"],), scale=1.0),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "timestep": scaled_steps(t),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "pooled_projections": as_input(batch, "pooled_prompt_embeds", noisy),
        }


ADAPTERS: tuple[FamilyAdapter, ...] = (SD3Adapter(),)
