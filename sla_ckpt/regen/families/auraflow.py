"""AuraFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sla_ckpt.regen.families.base import BaseAdapter, Batch, Conditioning, Config, FamilyAdapter
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input

_NOISING = Noising(shift=1.73)


@dataclass(frozen=True)
class AuraFlowAdapter(BaseAdapter):
    name: str = "auraflow"
    class_names: tuple[str, ...] = ("AuraFlowTransformer2DModel",)
    noising: Noising = _NOISING

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "AuraFlowTransformer2DModel",
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 1024,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {"prompt_embeds": Conditioning((None, config["joint_attention_dim"]), scale=0.2)}

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            # The model feeds it to a sinusoid in the compute dtype.
            "timestep": t.to(noisy.dtype),
        }


ADAPTERS: tuple[FamilyAdapter, ...] = (AuraFlowAdapter(),)
