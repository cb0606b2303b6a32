"""HunyuanVideo and HunyuanVideo-1.5.

HunyuanVideo masks every attention, so SLA never takes a call of it; its adapter is here so that
regeneration can say so from a real run. HunyuanVideo-1.5 in diffusers always builds a mask, while
SimpleTuner drops one that hides nothing. ``running`` does the same: captions are trimmed to their
real tokens, absent text and pictures become sequences of length zero, and then no mask is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sla_ckpt.regen.families.base import (
    BaseAdapter,
    Batch,
    Conditioning,
    Config,
    FamilyAdapter,
    Kind,
    Sample,
    model_config,
)
from sla_ckpt.regen.families.objectives import Noising
from sla_ckpt.regen.families.packing import (
    as_input,
    entry,
    mask_input,
    refuse,
    scaled_steps,
    trim_to_mask,
)

_NOISING = Noising(shift=7.0)


@dataclass(frozen=True)
class HunyuanVideoAdapter(BaseAdapter):
    name: str = "hunyuan-video"
    class_names: tuple[str, ...] = ("HunyuanVideoTransformer3DModel",)
    kind: Kind = "video"
    noising: Noising = _NOISING
    vae_temporal: int = 4

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        if config.get("image_condition_type"):
            raise refuse("image-to-video HunyuanVideo takes a picture as input")
        return self

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "HunyuanVideoTransformer3DModel",
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": [2, 4, 4],
        }

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["text_embed_dim"]), scale=1.0),
            "pooled_prompt_embeds": Conditioning((config["pooled_projection_dim"],), scale=1.0),
            "prompt_attention_mask": Conditioning(
                (None,), required=False, aliases=("attention_masks", "attention_mask")
            ),
        }

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        guided = model_config(model).get("guidance_embeds", True)
        return {
            "hidden_states": noisy,
            "timestep": scaled_steps(t),
            "encoder_hidden_states": as_input(batch, "prompt_embeds", noisy),
            "encoder_attention_mask": mask_input(
                batch, "prompt_attention_mask", "prompt_embeds", noisy
            ),
            "pooled_projections": as_input(batch, "pooled_prompt_embeds", noisy),
            # The pipeline passes guidance × 1000.
            "guidance": torch.full((len(batch),), 1000.0, device=noisy.device, dtype=noisy.dtype)
            if guided
            else None,
        }


@dataclass(frozen=True)
class HunyuanVideo15Adapter(BaseAdapter):
    name: str = "hunyuan-video-1.5"
    class_names: tuple[str, ...] = ("HunyuanVideo15Transformer3DModel",)
    kind: Kind = "video"
    noising: Noising = _NOISING
    vae_spatial: int = 16
    vae_temporal: int = 4
    multiple: int = 1

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        latents = self.latent_channels(config)
        if entry(config, "in_channels", 65) != 2 * latents + 1:
            raise refuse("HunyuanVideo-1.5 with unusual input channels")
        return self

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "HunyuanVideo15Transformer3DModel",
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 8,
            "image_embed_dim": 12,
            "rope_axes_dim": [2, 2, 4],
        }

    def latent_channels(self, config: Config) -> int:
        return entry(config, "out_channels", 32)

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        return {
            "prompt_embeds": Conditioning((None, config["text_embed_dim"]), scale=2.0),
            "prompt_attention_mask": Conditioning(
                (None,), required=False, aliases=("attention_masks", "prompt_embeds_mask")
            ),
            "prompt_embeds_2": Conditioning((None, config["text_embed_2_dim"]), required=False),
            "prompt_attention_mask_2": Conditioning(
                (None,), required=False, aliases=("prompt_embeds_mask_2",)
            ),
        }

    def prepare(self, config: Config, sample: Sample) -> Sample:
        sample = super().prepare(config, sample)
        conditioning = dict(sample.conditioning)
        mask = conditioning.get("prompt_attention_mask_2")
        if "prompt_embeds_2" not in conditioning or (mask is not None and not bool(mask.any())):
            # No text to draw in the picture: the pipeline passes masked zeros.
            conditioning.pop("prompt_embeds_2", None)
            conditioning.pop("prompt_attention_mask_2", None)
        trimmed = Sample(sample.latents, conditioning, sample.source)
        trimmed = trim_to_mask(trimmed, "prompt_attention_mask", "prompt_embeds")
        return trim_to_mask(trimmed, "prompt_attention_mask_2", "prompt_embeds_2")

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        config = model_config(model)
        glyphs = batch.conditioning.get("prompt_embeds_2")
        if glyphs is None:
            glyphs = torch.zeros(len(batch), 0, int(config["text_embed_2_dim"]))
        glyphs = glyphs.to(noisy)
        text = as_input(batch, "prompt_embeds", noisy)
        # Text to video: no picture, so its latents and its mask are zero.
        nothing = torch.zeros_like(noisy[:, :1]).expand(-1, noisy.shape[1] + 1, -1, -1, -1)
        return {
            "hidden_states": torch.cat([noisy, nothing], dim=1),
            # The model continues in the dtype of this tensor.
            "timestep": scaled_steps(t).to(noisy.dtype),
            "encoder_hidden_states": text,
            "encoder_attention_mask": _all_true(text),
            "encoder_hidden_states_2": glyphs,
            "encoder_attention_mask_2": _all_true(glyphs),
            "image_embeds": torch.zeros(
                len(batch),
                0,
                int(config["image_embed_dim"]),
                dtype=noisy.dtype,
                device=noisy.device,
            ),
        }

    @contextlib.contextmanager
    def running(self, model: Any) -> Iterator[None]:
        blocks = [block.attn for block in model.transformer_blocks]
        before = [attention.processor for attention in blocks]
        for attention in blocks:
            attention.processor = UnmaskedProcessor()
        try:
            yield
        finally:
            for attention, processor in zip(blocks, before, strict=True):
                attention.processor = processor


def _all_true(text: Tensor) -> Tensor:
    return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)


class UnmaskedProcessor:
    """Joint attention of a HunyuanVideo-1.5 block that passes no mask where none is needed.

    The same computation as diffusers' processor on text without padding: project, normalise,
    rotate the video part, attend over video and text together, split.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend; video [B, N, D] and text [B, T, D] in and out.

        ``attention_mask`` is over the text tokens, [B, T].
        """
        from diffusers.models.embeddings import apply_rotary_emb

        heads = attn.heads
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(2, (heads, -1)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(2, (heads, -1)))
        value = attn.to_v(hidden_states).unflatten(2, (heads, -1))
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        text_query = attn.norm_added_q(
            attn.add_q_proj(encoder_hidden_states).unflatten(2, (heads, -1))
        )
        text_key = attn.norm_added_k(
            attn.add_k_proj(encoder_hidden_states).unflatten(2, (heads, -1))
        )
        text_value = attn.add_v_proj(encoder_hidden_states).unflatten(2, (heads, -1))
        query, key, value = (
            torch.cat(pair, dim=1).transpose(1, 2)
            for pair in ((query, text_query), (key, text_key), (value, text_value))
        )
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            valid = F.pad(attention_mask.bool(), (hidden_states.shape[1], 0), value=True)
            mask = (valid[:, None, :, None] & valid[:, None, None, :]).contiguous()
        # Looked up at call time, as SLA replaces it while it is on.
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        video = attended[:, : hidden_states.shape[1]]
        text = attended[:, hidden_states.shape[1] :]
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


ADAPTERS: tuple[FamilyAdapter, ...] = (HunyuanVideoAdapter(), HunyuanVideo15Adapter())
