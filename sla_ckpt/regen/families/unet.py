"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x, SDXL and its refiner, Kolors.

SD 2.x at 768 pixels predicts v, everything else epsilon; a base model's scheduler config says so
for certain and wins when it is at hand.
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
    model_config,
)
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input, entry, refuse

_NOISING = Noising("epsilon")


@dataclass(frozen=True)
class UNetAdapter(BaseAdapter):
    name: str = "unet"
    class_names: tuple[str, ...] = ("UNet2DConditionModel",)
    noising: Noising = _NOISING
    # Three halvings at most.
    multiple: int = 8

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            raise refuse("this UNet takes class labels as input")
        if config.get("addition_embed_type") not in (None, "text_time"):
            raise refuse(f"this UNet takes {config['addition_embed_type']} embeddings as input")
        if entry(config, "in_channels", 4) != entry(config, "out_channels", 4):
            raise refuse("this UNet takes channels beside the latents")
        noising = self.noising
        if _width(config) == 1024 and config.get("sample_size") == 96:
            noising = replace(noising, objective="v")
        # Each block but the last halves the latents, which must stay whole.
        halvings = len(config.get("block_out_channels", (0,) * 4)) - 1
        return replace(self, noising=noising.with_scheduler(scheduler), multiple=1 << halvings)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [32, 64],
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [2, 4],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": [1, 1],
            "projection_class_embeddings_input_dim": 80,
            "cross_attention_dim": 24,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        found = {"prompt_embeds": Conditioning((None, _width(config)), scale=1.0)}
        if config.get("addition_embed_type") == "text_time":
            ids = _time_ids(config)
            each = int(config["addition_time_embed_dim"])
            pooled = int(config["projection_class_embeddings_input_dim"]) - ids * each
            found["pooled_prompt_embeds"] = Conditioning(
                (pooled,), scale=1.0, aliases=("text_embeds", "add_text_embeds")
            )
            found["time_ids"] = Conditioning((ids,), required=False, aliases=("add_time_ids",))
        return found

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        inputs: dict[str, Any] = {
            "sample": noisy,
            "timestep": self.noising.steps(t),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
        }
        if config.get("addition_embed_type") == "text_time":
            ids = batch.conditioning.get("time_ids")
            if ids is None:
                ids = _default_time_ids(config, noisy, self.vae_spatial)
            inputs["added_cond_kwargs"] = {
                "text_embeds": as_input(batch, "pooled_prompt_embeds", noisy),
                "time_ids": ids.to(noisy),
            }
        return inputs


def _width(config: Config) -> int:
    """Width of the text embeddings the UNet is given."""
    projected = config.get("encoder_hid_dim")
    if projected:
        return int(projected)
    width = config.get("cross_attention_dim", 1280)
    return int(width if isinstance(width, int) else width[0])


def _time_ids(config: Config) -> int:
    """SDXL's refiner is told an aesthetic score in place of the target size: 5 numbers, not 6."""
    return 5 if _width(config) == 1280 else 6


def _default_time_ids(config: Config, noisy: Tensor, factor: int) -> Tensor:
    """A picture that was neither enlarged nor cropped."""
    rows, columns = (side * factor for side in noisy.shape[-2:])
    if _time_ids(config) == 5:
        values = [rows, columns, 0, 0, 6.0]
    else:
        values = [rows, columns, 0, 0, rows, columns]
    return torch.tensor(values, dtype=torch.float32).expand(noisy.shape[0], -1)


ADAPTERS: tuple[FamilyAdapter, ...] = (UNetAdapter(),)
