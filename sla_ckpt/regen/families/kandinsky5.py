"""Kandinsky 5, pictures and video: channels last."""

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
    Kind,
    Sample,
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.packing import as_input, scaled_steps, trim_to_mask


@dataclass(frozen=True)
class Kandinsky5Adapter(BaseAdapter):
    name: str = "kandinsky5"
    class_names: tuple[str, ...] = ("Kandinsky5Transformer3DModel",)
    kind: Kind = "video"
    vae_temporal: int = 4
    channels_key: str = "in_visual_dim"

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "Kandinsky5Transformer3DModel",
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 12,
            "time_dim": 16,
            "patch_size": [1, 2, 2],
            "model_dim": 32,
            "ff_dim": 64,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": [4, 6, 6],
            "visual_cond": False,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning(
                (None, config["in_text_dim"]), scale=2.0, aliases=("prompt_embeds_qwen",)
            ),
            "pooled_prompt_embeds": Conditioning(
                (config["in_text_dim2"],), scale=1.0, aliases=("prompt_embeds_clip",)
            ),
            "attention_masks": Conditioning((None,), required=False, aliases=("attention_mask",)),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        return trim_to_mask(super().prepare(config, sample), "attention_masks", "prompt_embeds")

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        frames, rows, columns = noisy.shape[-3:]
        text = as_input(batch, "prompt_embeds", noisy)
        visual = noisy.permute(0, 2, 3, 4, 1)
        if model_config(model).get("visual_cond"):
            # Latents and mask of given frames: none are.
            nothing = torch.zeros_like(visual)
            visual = torch.cat([visual, nothing, nothing[..., :1]], dim=-1)
        device = noisy.device
        return {
            "hidden_states": visual,
            "encoder_hidden_states": text,
            "pooled_projections": as_input(batch, "pooled_prompt_embeds", noisy),
            "timestep": scaled_steps(t),
            "visual_rope_pos": [
                torch.arange(frames, device=device),
                torch.arange(rows // 2, device=device),
                torch.arange(columns // 2, device=device),
            ],
            "text_rope_pos": torch.arange(text.shape[1], device=device),
            "scale_factor": self._rope_scale(frames, rows, columns),
            "sparse_params": None,
        }

    def _rope_scale(self, frames: int, rows: int, columns: int) -> tuple[float, float, float]:
        """Video pipelines compress positions at about 480p, and more elsewhere; pictures not."""
        if frames == 1:
            return (1.0, 1.0, 1.0)
        sides = (rows * self.vae_spatial, columns * self.vae_spatial)
        if all(480 <= side <= 854 for side in sides):
            return (1.0, 2.0, 2.0)
        return (1.0, 3.16, 3.16)

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return first_tensor(model_output).permute(0, 4, 1, 2, 3)


ADAPTERS: tuple[FamilyAdapter, ...] = (Kandinsky5Adapter(),)
