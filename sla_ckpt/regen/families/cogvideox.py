"""CogVideoX and CogVideoX 1.5: v-prediction, frames before channels.

Image-to-video models take the latents of the first frame, zero elsewhere, as further channels.
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
    Kind,
    Size,
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.objectives import BetaSchedule, Noising
from sla_ckpt.regen.families.packing import as_input, entry, refuse

_NOISING = Noising(
    "v", BetaSchedule(0.00085, 0.012, "scaled_linear", zero_terminal_snr=True, snr_shift=3.0)
)


@dataclass(frozen=True)
class CogVideoXAdapter(BaseAdapter):
    name: str = "cogvideox"
    class_names: tuple[str, ...] = ("CogVideoXTransformer3DModel",)
    kind: Kind = "video"
    noising: Noising = _NOISING
    vae_temporal: int = 4

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        latents = self.latent_channels(config)
        if entry(config, "in_channels", 16) not in (latents, 2 * latents):
            raise refuse("this CogVideoX variant takes inputs beside the latents")
        noising = self.noising
        if config.get("use_rotary_positional_embeddings"):
            # The 5B models were trained without the shift of the 2B one.
            noising = replace(noising, schedule=replace(noising.schedule, snr_shift=1.0))
        return replace(self, noising=noising.with_scheduler(scheduler))

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "CogVideoXTransformer3DModel",
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 2,
            "text_embed_dim": 8,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 8,
            "use_rotary_positional_embeddings": True,
        }

    def latent_channels(self, config: Config) -> int:
        return entry(config, "out_channels", 16)

    def latent_shape(self, config: Config, size: Size) -> tuple[int, ...]:
        channels, frames, rows, columns = super().latent_shape(config, size)
        depth = config.get("patch_size_t") or 1
        return channels, -(-frames // depth) * depth, rows, columns

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        # Models with learned positions take captions of exactly this length.
        tokens = config["max_text_seq_length"]
        return {"prompt_embeds": Conditioning((tokens, config["text_embed_dim"]), scale=0.2)}

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        frames_first = noisy.transpose(1, 2)
        if entry(config, "in_channels", 16) > noisy.shape[1]:
            picture = torch.zeros_like(frames_first)
            picture[:, :1] = batch.latents.transpose(1, 2)[:, :1].to(noisy)
            frames_first = torch.cat([frames_first, picture], dim=2)
        inputs: dict[str, Any] = {
            "hidden_states": frames_first,
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "timestep": self.noising.steps(t),
            "image_rotary_emb": None,
        }
        if config.get("use_rotary_positional_embeddings"):
            inputs["image_rotary_emb"] = _rotary(config, noisy)
        if config.get("ofs_embed_dim"):
            inputs["ofs"] = noisy.new_full((1,), 2.0)
        return inputs

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return first_tensor(model_output).transpose(1, 2)


def _rotary(config: Config, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables (cos, sin), each [tokens, head_dim], for the noisy latents' grid."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, rows, columns = noisy.shape[-3:]
    patch = int(config["patch_size"])
    grid = (rows // patch, columns // patch)
    base = (int(config["sample_height"]) // patch, int(config["sample_width"]) // patch)
    depth = config.get("patch_size_t")
    options: dict[str, Any]
    if depth:
        options = {
            "crops_coords": None,
            "temporal_size": -(-frames // int(depth)),
            "grid_type": "slice",
            "max_size": base,
        }
    else:
        options = {"crops_coords": _centred_crop(grid, base), "temporal_size": frames}
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=int(config["attention_head_dim"]),
        grid_size=grid,
        device=noisy.device,
        **options,
    )
    return cos, sin


def _centred_crop(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners of the largest part of the base grid with the aspect ratio of ``grid``, centred."""
    (rows, columns), (base_rows, base_columns) = grid, base
    if rows / columns > base_rows / base_columns:
        height, width = base_rows, round(base_rows / rows * columns)
    else:
        height, width = round(base_columns / columns * rows), base_columns
    top, left = round((base_rows - height) / 2), round((base_columns - width) / 2)
    return (top, left), (top + height, left + width)


ADAPTERS: tuple[FamilyAdapter, ...] = (CogVideoXAdapter(),)
