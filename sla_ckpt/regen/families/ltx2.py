"""LTX-2: video and audio together, each with its own stream and head_dim.

A sample is the video's latents; its sound is a conditioning tensor, noised like the video. The
prediction that is judged is the video's; the audio stream's projection gets its gradient through
the attention between the two.
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
    Kind,
    first_tensor,
    model_config,
)
from sla_ckpt.regen.families.packing import as_input, scaled_steps

_FRAME_RATE = 24.0


@dataclass(frozen=True)
class LTX2Adapter(BaseAdapter):
    name: str = "ltx-2"
    class_names: tuple[str, ...] = ("LTX2VideoTransformer3DModel",)
    kind: Kind = "video"
    vae_spatial: int = 32
    vae_temporal: int = 8
    multiple: int = 1

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "LTX2VideoTransformer3DModel",
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 16,
            "rope_double_precision": False,
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        width = config["caption_channels"]
        return {
            "prompt_embeds": Conditioning((None, width), scale=1.0),
            "audio_prompt_embeds": Conditioning((None, width), scale=1.0),
            "attention_masks": Conditioning(
                (None,), required=False, aliases=("prompt_attention_mask",)
            ),
            "audio_latents": Conditioning(
                (None, config["audio_in_channels"]), required=False, scale=1.0
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        frames, rows, columns = noisy.shape[-3:]
        audio = batch.conditioning.get("audio_latents")
        if audio is None:
            audio = torch.zeros(len(batch), 25, int(config["audio_in_channels"]))
        audio = audio.to(noisy)
        mask = batch.conditioning.get("attention_masks")
        if mask is None:
            mask = torch.ones(batch.conditioning["prompt_embeds"].shape[:2])
        mask = mask.to(noisy.device).ne(0).to(torch.int64)
        # The sound needs its own noise, the same on every call for the same picture.
        own = torch.Generator().manual_seed(audio.shape[1])
        noise = torch.randn(audio.shape, generator=own).to(audio)
        level = t.to(audio).view(-1, 1, 1)
        return {
            "hidden_states": noisy.flatten(2).transpose(1, 2),
            "audio_hidden_states": (1 - level) * audio + level * noise,
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "audio_encoder_hidden_states": as_input(batch, "audio_prompt_embeds", noisy),
            "timestep": scaled_steps(t),
            "sigma": scaled_steps(t),
            "encoder_attention_mask": mask,
            "audio_encoder_attention_mask": mask,
            "num_frames": frames,
            "height": rows,
            "width": columns,
            "fps": _FRAME_RATE,
            "audio_num_frames": audio.shape[1],
        }

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return first_tensor(model_output).transpose(1, 2).reshape(batch.latents.shape)


ADAPTERS: tuple[FamilyAdapter, ...] = (LTX2Adapter(),)
