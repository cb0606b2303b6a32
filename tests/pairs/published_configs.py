"""Configs of published models: the entries that differ from the class's defaults, and what SLA
materialises in them when plain diffusers runs."""

from __future__ import annotations

from typing import Any

SDXL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

#: name -> (config, head_dims)
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "flux.1-dev": ({"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}, (128,)),
    "sd3.5-medium": (
        {
            "_class_name": "SD3Transformer2DModel",
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
        (64,),
    ),
    "sd1.5": ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, (40, 80, 160)),
    "sd2.1": (
        {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 96,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        (64,),
    ),
    "sdxl": (SDXL, (64,)),
    "wan2.1-1.3b": (
        {
            "_class_name": "WanTransformer3DModel",
            "num_attention_heads": 12,
            "ffn_dim": 8960,
            "num_layers": 30,
        },
        (128,),
    ),
    "wan2.1-i2v-14b": (
        {
            "_class_name": "WanTransformer3DModel",
            "in_channels": 36,
            "image_dim": 1280,
            "added_kv_proj_dim": 5120,
        },
        (128,),
    ),
    "pixart-sigma": (
        {"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096, "sample_size": 128},
        (72,),
    ),
    "auraflow": ({"_class_name": "AuraFlowTransformer2DModel"}, (256,)),
    "ltx-video-13b": (
        {
            "_class_name": "LTXVideoTransformer3DModel",
            "attention_head_dim": 128,
            "cross_attention_dim": 4096,
            "num_layers": 48,
        },
        (128,),
    ),
    "cogvideox-5b": (
        {
            "_class_name": "CogVideoXTransformer3DModel",
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
        },
        (64,),
    ),
    "cogvideox-2b": ({"_class_name": "CogVideoXTransformer3DModel"}, (64,)),
    "kandinsky5-lite": (
        {
            "_class_name": "Kandinsky5Transformer3DModel",
            "in_visual_dim": 16,
            "out_visual_dim": 16,
            "model_dim": 1792,
            "ff_dim": 7168,
            "visual_cond": True,
        },
        (64,),
    ),
    "z-image": ({"_class_name": "ZImageTransformer2DModel"}, (128,)),
    "hunyuan-video": ({"_class_name": "HunyuanVideoTransformer3DModel"}, ()),
    "sana-1.6b": ({"_class_name": "SanaTransformer2DModel"}, ()),
    "qwen-image": ({"_class_name": "QwenImageTransformer2DModel"}, (128,)),
}
