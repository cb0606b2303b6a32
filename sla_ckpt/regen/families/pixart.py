"""PixArt-α and PixArt-Σ: epsilon, with a learned variance as a second half of the output."""

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
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.objectives import BetaSchedule, Noising
from sla_ckpt.regen.families.packing import as_input, mask_input

_NOISING = Noising("epsilon", BetaSchedule(0.0001, 0.02, "linear"))


@dataclass(frozen=True)
class PixArtAdapter(BaseAdapter):
    name: str = "pixart"
    class_names: tuple[str, ...] = ("PixArtTransformer2DModel",)
    noising: Noising = _NOISING

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        return replace(self, noising=self.noising.with_scheduler(scheduler))

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "PixArtTransformer2DModel",
            "sample_size": 8,
            "patch_size": 2,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "in_channels": 4,
            "out_channels": 8,
            "cross_attention_dim": 24,
            "caption_channels": 32,
            "use_additional_conditions": False,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["caption_channels"]), scale=0.2),
            "attention_mask": Conditioning(
                (None,), required=False, aliases=("attention_masks", "prompt_attention_mask")
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        sized = config.get("use_additional_conditions")
        if sized is None:
            sized = config.get("sample_size") == 128
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if sized:
            rows, columns = (side * self.vae_spatial for side in noisy.shape[-2:])
            size = torch.tensor([[rows, columns, rows / columns]], device=noisy.device)
            size = size.expand(len(batch), 3).to(noisy.dtype)
            added = {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]}
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_attention_mask": mask_input(batch, "attention_mask", "prompt_embeds", noisy),
            "timestep": self.noising.steps(t),
            "added_cond_kwargs": added,
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        prediction = first_tensor(model_output)
        return prediction[:, : batch.latents.shape[1]]


ADAPTERS: tuple[FamilyAdapter, ...] = (PixArtAdapter(),)
