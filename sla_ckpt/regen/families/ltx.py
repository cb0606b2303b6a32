"""LTX-Video: every latent is a token; captions are masked in cross-attention only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sla_ckpt.regen.families.base import (
    BaseAdapter,
    Batch,
    Conditioning,
    Config,
    FamilyAdapter,
    Kind,
    first_tensor,
)
from sla_ckpt.regen.families.packing import as_input, mask_input, scaled_steps

_FRAME_RATE = 25.0


@dataclass(frozen=True)
class LTXAdapter(BaseAdapter):
    name: str = "ltx-video"
    class_names: tuple[str, ...] = ("LTXVideoTransformer3DModel",)
    kind: Kind = "video"
    vae_spatial: int = 32
    vae_temporal: int = 8
    multiple: int = 1

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "LTXVideoTransformer3DModel",
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
            "num_layers": 1,
            "caption_channels": 16,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["caption_channels"]), scale=0.2),
            "attention_masks": Conditioning(
                (None,), required=False, aliases=("prompt_attention_mask", "attention_mask")
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        frames, rows, columns = noisy.shape[-3:]
        return {
            "hidden_states": noisy.flatten(2).transpose(1, 2),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_attention_mask": mask_input(batch, "attention_masks", "prompt_embeds", noisy),
            "timestep": scaled_steps(t),
            "num_frames": frames,
            "height": rows,
            "width": columns,
            "rope_interpolation_scale": (
                self.vae_temporal / _FRAME_RATE,
                self.vae_spatial,
                self.vae_spatial,
            ),
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return first_tensor(model_output).transpose(1, 2).reshape(batch.latents.shape)


ADAPTERS: tuple[FamilyAdapter, ...] = (LTXAdapter(),)
