"""Cosmos 1 (EDM) and Cosmos Predict 2 and 2.5.

Predict 2's preconditioning c_in = c_skip = 1 − t, c_out = −t with t = σ/(1 + σ) is rectified flow
in other words: the model sees (1 − t)·x + t·ε and its output is ε − x. Cosmos 1 is EDM
(arXiv 2206.00364) with σ_data 0.5; its target here is what the network itself has to output,
F = (y − c_skip·x)/c_out with y = σ_data·latents, so that no noise level dominates the loss.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.families.base import (
    BaseAdapter,
    Batch,
    Conditioning,
    Config,
    FamilyAdapter,
    Kind,
    model_config,
)
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import as_input, entry, refuse

_SIGMA_DATA = 0.5

_NOISING = Noising("flow", shift=1.0)

_NOISING_EDM = Noising("sample")


@dataclass(frozen=True)
class CosmosAdapter(BaseAdapter):
    """Cosmos Predict 2 and 2.5."""

    name: str = "cosmos"
    class_names: tuple[str, ...] = ("CosmosTransformer3DModel",)
    kind: Kind = "video"
    noising: Noising = _NOISING
    vae_temporal: int = 4

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        latents = entry(config, "out_channels", 16)
        extra = entry(config, "in_channels", 16) - latents
        if config.get("img_context_dim_in"):
            raise refuse("this Cosmos variant takes a picture's embedding as input")
        if extra not in (0, 1):
            raise refuse(f"this Cosmos variant takes {extra} channels beside the latents")
        if config.get("extra_pos_embed_type", "learnable") == "learnable" and not extra:
            return Cosmos1Adapter()
        return CosmosAdapter()

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "CosmosTransformer3DModel",
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": [4, 32, 32],
            "patch_size": [1, 2, 2],
            "rope_scale": [2.0, 1.0, 1.0],
            "concat_padding_mask": False,
            "extra_pos_embed_type": None,
        }

    def latent_channels(self, config: Config) -> int:
        return entry(config, "out_channels", 16)

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        width = config["text_embed_dim"]
        if config.get("use_crossattn_projection"):
            width = config["crossattn_proj_in_channels"]
        return {"prompt_embeds": Conditioning((None, width), scale=0.2)}

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        rows, columns = (side * self.vae_spatial for side in noisy.shape[-2:])
        inputs: dict[str, Any] = {
            "hidden_states": noisy,
            "timestep": self.model_time(t).to(noisy.dtype),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
        }
        if config.get("concat_padding_mask", True):
            if importlib.util.find_spec("torchvision") is None:
                raise RegenError(
                    "diffusers needs torchvision to run Cosmos, and it is not installed",
                    hint="run: pip install torchvision",
                )
            inputs["padding_mask"] = noisy.new_zeros(1, 1, rows, columns)
        if entry(config, "in_channels", 16) > self.latent_channels(config):
            # Which frames are given: none.
            inputs["condition_mask"] = torch.zeros_like(noisy[:, :1])
        return inputs

    def model_time(self, t: Tensor) -> Tensor:
        """What the model is told about the noise level."""
        return t.float()


@dataclass(frozen=True)
class Cosmos1Adapter(CosmosAdapter):
    """Cosmos 1: σ runs from 0.002 to 80, log-normal in training."""

    name: str = "cosmos-1"
    noising: Noising = _NOISING_EDM
    vae_temporal: int = 8

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        return self

    def tiny_config(self) -> dict[str, Any]:
        return {**super().tiny_config(), "extra_pos_embed_type": "learnable"}

    def sigma(self, t: Tensor) -> Tensor:
        """Noise levels (0, 1) as EDM's σ: exp of a normal distribution's quantile."""
        z = torch.special.ndtri(t.double().clamp(1e-6, 1 - 1e-6))
        sigma: Tensor = z.exp().clamp(0.002, 80.0)
        return sigma

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        view = (-1,) + (1,) * (latents.ndim - 1)
        sigma = self.sigma(t).view(view)
        clean = _SIGMA_DATA * latents.double()
        noisy = clean + sigma * noise.double()
        root = (sigma**2 + _SIGMA_DATA**2).sqrt()
        skip, out = _SIGMA_DATA**2 / root**2, sigma * _SIGMA_DATA / root
        return (noisy / root).float(), ((clean - skip * noisy) / out).float()

    def model_time(self, t: Tensor) -> Tensor:
        return (self.sigma(t).log() / 4).float()

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {**super().make_inputs(model, batch, noisy, t), "fps": 30}


ADAPTERS: tuple[FamilyAdapter, ...] = (CosmosAdapter(),)
