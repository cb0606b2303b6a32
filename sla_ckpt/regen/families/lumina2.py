"""Lumina 2: time runs from noise to picture, and the velocity is negated.

Captions are trimmed to their real tokens: the main layers then attend without a mask, as they do
in training whenever the samples of a batch have captions of one length.
"""

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
    Sample,
    first_tensor,
)
from sla_ckpt.regen.families.packing import as_input, mask_input, trim_to_mask


@dataclass(frozen=True)
class Lumina2Adapter(BaseAdapter):
    name: str = "lumina2"
    class_names: tuple[str, ...] = ("Lumina2Transformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "Lumina2Transformer2DModel",
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": [4, 2, 2],
            "axes_lens": [512, 512, 512],
            "cap_feat_dim": 32,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["cap_feat_dim"]), scale=1.0),
            "prompt_attention_mask": Conditioning(
                (None,), required=False, aliases=("attention_masks", "attention_mask")
            ),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        sample = super().prepare(config, sample)
        return trim_to_mask(sample, "prompt_attention_mask", "prompt_embeds")

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "timestep": 1 - t.float(),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_attention_mask": mask_input(
                batch, "prompt_attention_mask", "prompt_embeds", noisy
            ).bool(),
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return -first_tensor(model_output)


ADAPTERS: tuple[FamilyAdapter, ...] = (Lumina2Adapter(),)
