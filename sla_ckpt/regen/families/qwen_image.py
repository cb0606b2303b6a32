"""Qwen-Image: packed 2×2 latents; captions without padding, so that attention is not masked.

SimpleTuner runs this model per sample on the caption's real tokens. Dropping the padding and
batching only equal lengths gives the same attention calls.
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
    Sample,
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input, pack_2x2, trim_to_mask, unpack_2x2

_NOISING = Noising(dynamic_shift=((256, 0.5), (8192, 0.9)))


@dataclass(frozen=True)
class QwenImageAdapter(BaseAdapter):
    name: str = "qwen-image"
    class_names: tuple[str, ...] = ("QwenImageTransformer2DModel",)
    noising: Noising = _NOISING

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "QwenImageTransformer2DModel",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 3,
            "joint_attention_dim": 16,
            "axes_dims_rope": [8, 4, 4],
        }

    def latent_channels(self, config: Config) -> int:
        return int(config["in_channels"]) // 4

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=2.0),
            "attention_masks": Conditioning(
                (None,), required=False, aliases=("prompt_embeds_mask", "attention_mask")
            ),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        return trim_to_mask(super().prepare(config, sample), "attention_masks", "prompt_embeds")

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        rows, columns = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        inputs: dict[str, Any] = {
            "hidden_states": pack_2x2(noisy),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_hidden_states_mask": None,
            "timestep": t.float(),
            "img_shapes": [[(1, rows, columns)]] * len(batch),
        }
        if model_config(model).get("guidance_embeds"):
            inputs["guidance"] = torch.ones(len(batch), device=noisy.device)
        return inputs

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        rows, columns = batch.latents.shape[-2:]
        return unpack_2x2(first_tensor(model_output), rows, columns)


ADAPTERS: tuple[FamilyAdapter, ...] = (QwenImageAdapter(),)
