"""Tiny real diffusers models, saved as checkpoints, for the tests of this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import diffusers
import torch

FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 4, 8],
    "guidance_embeds": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": FLUX,
    "SD3Transformer2DModel": {
        "sample_size": 16,
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 16,
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 1,
    },
    "QwenImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": [8, 4, 4],
    },
    "PixArtTransformer2DModel": {
        "sample_size": 8,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "norm_type": "ada_norm_single",
    },
    "CosmosTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "text_embed_dim": 16,
        "adaln_lora_dim": 4,
        "max_size": [4, 16, 16],
        "extra_pos_embed_type": "learnable",
    },
    "UNet2DConditionModel": {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "sample_size": 16,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 16,
    },
}


def make_model(name: str, config: dict[str, Any] | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(diffusers, name)(**(CONFIGS[name] if config is None else config))


def save_checkpoint(root: Path, name: str = "FluxTransformer2DModel", **options: Any) -> Path:
    folder = "unet" if name.startswith("UNet") else "transformer"
    make_model(name).save_pretrained(root / folder, **options)
    return root / folder


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
