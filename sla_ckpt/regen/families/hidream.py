"""HiDream-I1: four text encoders, experts, negated velocity.

In inference mode diffusers runs the experts without gradients, which would cut proj_l off from
most of the loss. ``running`` puts the expert layers (nothing else) into training mode, which
computes the same values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
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
)
from sla_ckpt.regen.families.packing import as_input, scaled_steps


@dataclass(frozen=True)
class HiDreamAdapter(BaseAdapter):
    name: str = "hidream"
    class_names: tuple[str, ...] = ("HiDreamImageTransformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "HiDreamImageTransformer2DModel",
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_channels": [32, 16],
            "text_emb_dim": 64,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": [4, 2, 2],
            "max_resolution": [64, 64],
            "llama_layers": [0, 1],
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        t5_width, llama_width = config["caption_channels"][:2]
        layers = max(config["llama_layers"]) + 1
        return {
            "t5_prompt_embeds": Conditioning(
                (None, t5_width), scale=0.2, aliases=("prompt_embeds_t5",)
            ),
            "llama_prompt_embeds": Conditioning(
                (layers, None, llama_width), scale=1.0, aliases=("prompt_embeds_llama3",)
            ),
            "pooled_prompt_embeds": Conditioning((config["text_emb_dim"],), scale=1.0),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        layers = max(config["llama_layers"]) + 1
        conditioning = dict(sample.conditioning)
        for name in ("llama_prompt_embeds", "prompt_embeds_llama3"):
            value = conditioning.get(name)
            if value is None:
                continue
            # The pipeline keeps the layers in front of the batch: [L, 1, T, D].
            if value.ndim == 4 and value.shape[1] == 1:
                value = value[:, 0]
            # Caches hold every layer of the encoder, of which the model uses the first.
            conditioning[name] = value[..., :layers, :, :] if value.ndim == 3 else value
        return super().prepare(config, replace(sample, conditioning=conditioning))

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "timesteps": scaled_steps(t),
            "encoder_hidden_states_t5": as_input(batch, "t5_prompt_embeds", noisy),
            "encoder_hidden_states_llama3": as_input(batch, "llama_prompt_embeds", noisy).transpose(
                0, 1
            ),
            "pooled_embeds": as_input(batch, "pooled_prompt_embeds", noisy),
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return -first_tensor(model_output)

    @contextlib.contextmanager
    def running(self, model: Any) -> Iterator[None]:
        experts: list[torch.nn.Module] = [
            module for module in model.modules() if hasattr(module, "moe_infer")
        ]
        modes = ("training", "_force_inference_output")
        before = [[getattr(module, mode) for mode in modes] for module in experts]
        for module in experts:
            _set(module, modes, (True, False))
        try:
            yield
        finally:
            for module, values in zip(experts, before, strict=True):
                _set(module, modes, values)


def _set(module: torch.nn.Module, names: Iterable[str], values: Iterable[bool]) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(module, name, value)


ADAPTERS: tuple[FamilyAdapter, ...] = (HiDreamAdapter(),)
