"""Defaults of the diffusers model classes for the entries that the pairs and tokens need.

diffusers writes every entry into ``config.json``, but hand-made and very old configs leave some
out, and the class then takes its default. Held as data so that reading a config needs no
diffusers; a test compares it with the signatures of the installed classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_UNET_BLOCKS: Mapping[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "num_attention_heads": None,
}

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "FluxTransformer2DModel": {"attention_head_dim": 128, "patch_size": 1},
        "FluxControlNetModel": {"attention_head_dim": 128, "patch_size": 1},
        "Flux2Transformer2DModel": {"attention_head_dim": 128, "patch_size": 1},
        "ChromaTransformer2DModel": {"attention_head_dim": 128, "patch_size": 1},
        "SD3Transformer2DModel": {"attention_head_dim": 64, "patch_size": 2},
        "SD3ControlNetModel": {"attention_head_dim": 64, "patch_size": 2},
        "QwenImageTransformer2DModel": {"attention_head_dim": 128, "patch_size": 2},
        "QwenImageControlNetModel": {"attention_head_dim": 128, "patch_size": 2},
        "WanTransformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": (1, 2, 2),
            "in_channels": 16,
        },
        "WanVACETransformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": (1, 2, 2),
            "in_channels": 16,
        },
        "SkyReelsV2Transformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": (1, 2, 2),
            "in_channels": 16,
        },
        "HunyuanVideoTransformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": 2,
            "patch_size_t": 1,
        },
        "HunyuanVideo15Transformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": 1,
            "patch_size_t": 1,
        },
        "LTXVideoTransformer3DModel": {
            "attention_head_dim": 64,
            "patch_size": 1,
            "patch_size_t": 1,
        },
        "LTX2VideoTransformer3DModel": {
            "attention_head_dim": 128,
            "audio_attention_head_dim": 64,
            "patch_size": 1,
            "patch_size_t": 1,
            "vae_scale_factors": (8, 32, 32),
        },
        "CogVideoXTransformer3DModel": {
            "attention_head_dim": 64,
            "patch_size": 2,
            "patch_size_t": None,
        },
        "AuraFlowTransformer2DModel": {"attention_head_dim": 256, "patch_size": 2},
        "PixArtTransformer2DModel": {"attention_head_dim": 72, "patch_size": 2},
        "SanaTransformer2DModel": {"cross_attention_head_dim": 112, "patch_size": 1},
        "SanaControlNetModel": {"cross_attention_head_dim": 112, "patch_size": 1},
        "Lumina2Transformer2DModel": {
            "hidden_size": 2304,
            "num_attention_heads": 24,
            "patch_size": 2,
        },
        "ZImageTransformer2DModel": {"dim": 3840, "n_heads": 30, "all_patch_size": (2,)},
        "HiDreamImageTransformer2DModel": {"attention_head_dim": 128, "patch_size": None},
        "CosmosTransformer3DModel": {
            "attention_head_dim": 128,
            "patch_size": (1, 2, 2),
            "extra_pos_embed_type": "learnable",
        },
        "Kandinsky5Transformer3DModel": {"axes_dims": (16, 24, 24), "patch_size": (1, 2, 2)},
        "OmniGenTransformer2DModel": {
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "patch_size": 2,
        },
        "UNet2DConditionModel": {
            **_UNET_BLOCKS,
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "reverse_transformer_layers_per_block": None,
        },
        "ControlNetModel": _UNET_BLOCKS,
    }
)
