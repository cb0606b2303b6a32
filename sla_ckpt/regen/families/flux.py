"""FLUX.1 and Chroma: packed 2×2 latents, joint attention over text and image.

Inputs as in diffusers' FluxPipeline and ChromaPipeline; guidance is 1.0, the value that
guidance-distilled models are fine-tuned with. Chroma's own pipeline masks padded text, which turns
SLA off; a sample without ``attention_masks`` is not masked.
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
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input, grid_ids, pack_2x2, refuse, unpack_2x2

#: Larger pictures get more noise: log shift 0.5 at 256 tokens, 1.15 at 4096.
FLUX_SHIFT = ((256, 0.5), (4096, 1.15))

_NOISING = Noising(dynamic_shift=FLUX_SHIFT)


@dataclass(frozen=True)
class FluxAdapter(BaseAdapter):
    name: str = "flux"
    class_names: tuple[str, ...] = ("FluxTransformer2DModel",)
    noising: Noising = _NOISING

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        out_channels = config.get("out_channels") or config.get("in_channels", 64)
        if config.get("in_channels", 64) != out_channels:
            raise refuse(f"this {self.name} variant takes a second picture as input")
        return self

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "FluxTransformer2DModel",
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 24,
            "guidance_embeds": True,
            "axes_dims_rope": [4, 6, 6],
        }

    def latent_channels(self, config: Config) -> int:
        return int(config.get("in_channels", 64)) // 4

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=0.2),
            "pooled_prompt_embeds": Conditioning((config["pooled_projection_dim"],), scale=1.0),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        text = as_input(batch, "prompt_embeds", noisy)
        inputs = self._shared_inputs(noisy, text, t)
        inputs["pooled_projections"] = as_input(batch, "pooled_prompt_embeds", noisy)
        inputs["guidance"] = (
            torch.ones(len(batch), device=noisy.device) if config.get("guidance_embeds") else None
        )
        return inputs

    def _shared_inputs(self, noisy: Tensor, text: Tensor, t: Tensor) -> dict[str, Any]:
        rows, columns = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        return {
            "hidden_states": pack_2x2(noisy),
            "encoder_hidden_states": text,
            "timestep": t.float(),
            "img_ids": grid_ids(rows, columns, noisy),
            "txt_ids": torch.zeros(text.shape[1], 3, dtype=noisy.dtype, device=noisy.device),
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        rows, columns = batch.latents.shape[-2:]
        return unpack_2x2(first_tensor(model_output), rows, columns)


@dataclass(frozen=True)
class ChromaAdapter(FluxAdapter):
    name: str = "chroma"
    class_names: tuple[str, ...] = ("ChromaTransformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "ChromaTransformer2DModel",
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": [4, 6, 6],
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=0.2),
            "attention_masks": Conditioning(
                (None,), required=False, aliases=("attention_mask", "prompt_attention_mask")
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        inputs = self._shared_inputs(noisy, as_input(batch, "prompt_embeds", noisy), t)
        mask = batch.conditioning.get("attention_masks")
        if mask is not None:
            tokens = inputs["hidden_states"].shape[1]
            image = torch.ones(len(batch), tokens, dtype=torch.bool, device=noisy.device)
            inputs["attention_mask"] = torch.cat([mask.to(noisy.device).ne(0), image], dim=1)
        return inputs


ADAPTERS: tuple[FamilyAdapter, ...] = (FluxAdapter(), ChromaAdapter())
