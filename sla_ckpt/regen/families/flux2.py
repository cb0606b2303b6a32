"""FLUX.2: latents already hold 2×2 squares as channels, positions have four axes."""

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
    Sample,
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.flux import FLUX_SHIFT
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input, grid_ids, patchify_2x2

_NOISING = Noising(dynamic_shift=FLUX_SHIFT, latents_per_token=1)


@dataclass(frozen=True)
class Flux2Adapter(BaseAdapter):
    name: str = "flux2"
    class_names: tuple[str, ...] = ("Flux2Transformer2DModel",)
    noising: Noising = _NOISING
    vae_spatial: int = 16
    multiple: int = 1

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "Flux2Transformer2DModel",
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": [4, 4, 4, 4],
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {"prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=1.0)}

    def prepare(self, config: Config, sample: Sample) -> Sample:
        latents = sample.latents[0] if sample.latents.ndim == 4 else sample.latents
        # The VAE's own output, before the pipeline folds 2×2 squares into channels.
        if latents.ndim == 3 and latents.shape[0] * 4 == self.latent_channels(config):
            rows, columns = latents.shape[1] // 2 * 2, latents.shape[2] // 2 * 2
            sample = replace(sample, latents=patchify_2x2(latents[:, :rows, :columns]))
        return super().prepare(config, sample)

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        text = as_input(batch, "prompt_embeds", noisy)
        rows, columns = noisy.shape[-2:]
        # (time, row, column, text position): int64, one copy per sample.
        places = torch.zeros(rows * columns, 4, dtype=torch.int64, device=noisy.device)
        places[:, :3] = grid_ids(rows, columns, places)
        words = torch.zeros(text.shape[1], 4, dtype=torch.int64, device=noisy.device)
        words[:, 3] = torch.arange(text.shape[1], device=noisy.device)
        embeds = model_config(model).get("guidance_embeds", True)
        return {
            "hidden_states": noisy.flatten(2).transpose(1, 2),
            "encoder_hidden_states": text,
            "timestep": t.float(),
            "img_ids": places.expand(len(batch), -1, -1),
            "txt_ids": words.expand(len(batch), -1, -1),
            "guidance": torch.ones(len(batch), device=noisy.device) if embeds else None,
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        tokens = first_tensor(model_output)
        return tokens.transpose(1, 2).reshape(batch.latents.shape)


ADAPTERS: tuple[FamilyAdapter, ...] = (Flux2Adapter(),)
