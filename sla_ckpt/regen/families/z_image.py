"""Z-Image: lists of pictures and captions, reversed time, negated velocity."""

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
)
from sla_ckpt.regen.families.packing import as_input, trim_to_mask


@dataclass(frozen=True)
class ZImageAdapter(BaseAdapter):
    name: str = "z-image"
    class_names: tuple[str, ...] = ("ZImageTransformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "ZImageTransformer2DModel",
            "all_patch_size": [2],
            "all_f_patch_size": [1],
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [512, 64, 64],
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["cap_feat_dim"]), scale=1.0),
            "attention_mask": Conditioning((None,), required=False, aliases=("attention_masks",)),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        return trim_to_mask(super().prepare(config, sample), "attention_mask", "prompt_embeds")

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {
            "x": list(noisy.unsqueeze(2).unbind(0)),
            "t": 1 - t.float(),
            "cap_feats": list(as_input(batch, "prompt_embeds", noisy).unbind(0)),
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        pictures = getattr(model_output, "sample", None)
        if pictures is None:
            pictures = model_output[0]
        return -torch.stack(list(pictures)).squeeze(2)


ADAPTERS: tuple[FamilyAdapter, ...] = (ZImageAdapter(),)
