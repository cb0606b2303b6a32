"""Tiny but real diffusers pipelines: random weights, tokenizers made here, nothing downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from sla_ckpt.regen.families.registry import adapter_for

TEXT = "a photo of the red green blue house tree and cat with one two three on table"
WORDS = TEXT.split()
CLIP_WIDTH = 8
T5_WIDTH = 32


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        model_max_length=16,
    )


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    pieces += [(letter, -5.0) for letter in sorted({c for word in WORDS for c in word})]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)


def qwen_tokenizer() -> Qwen2Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Qwen2Tokenizer(vocab=trained.get_vocab(), merges=[])


def clip_encoder(tokenizer: CLIPTokenizer, *, projection: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        projection_dim=projection or CLIP_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(tokenizer: T5Tokenizer, *, multilingual: bool = False) -> torch.nn.Module:
    torch.manual_seed(1)
    config = (UMT5Config if multilingual else T5Config)(
        vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return (UMT5EncoderModel if multilingual else T5EncoderModel)(config).eval()


def image_vae(channels: int, **options: Any) -> torch.nn.Module:
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 8, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def save(root: Path, name: str, **parts: Any) -> Path:
    """A pipeline folder, without denoiser weights."""
    denoiser = "unet" if "XL" in name or name == "StableDiffusionPipeline" else "transformer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = getattr(diffusers, name)(**{denoiser: None, **parts})
        pipeline.save_pretrained(root)
    return root


def flux(root: Path) -> tuple[Path, dict[str, Any]]:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    save(
        root,
        "FluxPipeline",
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(4, shift_factor=0.1, scaling_factor=0.36),
        text_encoder=clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5),
        tokenizer_2=t5,
    )
    config = adapter_for("FluxTransformer2DModel").tiny_config()
    return root, {
        **config,
        "in_channels": 16,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": CLIP_WIDTH,
    }


def sd3(root: Path) -> tuple[Path, dict[str, Any]]:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    save(
        root,
        "StableDiffusion3Pipeline",
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=image_vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(clip, projection=8),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip, projection=8),
        tokenizer_2=clip,
        text_encoder_3=t5_encoder(t5),
        tokenizer_3=t5,
    )
    config = adapter_for("SD3Transformer2DModel").tiny_config()
    return root, {
        **config,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": 16,
    }


def sdxl(root: Path) -> tuple[Path, dict[str, Any]]:
    clip = clip_tokenizer()
    save(
        root,
        "StableDiffusionXLPipeline",
        scheduler=diffusers.EulerDiscreteScheduler(),
        vae=image_vae(4, scaling_factor=0.13025),
        text_encoder=clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip, projection=8),
        tokenizer_2=clip,
    )
    return root, {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 32,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 2],
        "norm_num_groups": 4,
        "cross_attention_dim": 2 * CLIP_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 + 6 * 8,
    }


def pixart(root: Path) -> tuple[Path, dict[str, Any]]:
    t5 = t5_tokenizer()
    save(
        root,
        "PixArtSigmaPipeline",
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=image_vae(4, scaling_factor=0.13),
        text_encoder=t5_encoder(t5),
        tokenizer=t5,
    )
    config = adapter_for("PixArtTransformer2DModel").tiny_config()
    return root, {
        **config,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 32,
        "caption_channels": T5_WIDTH,
    }


def qwen_image(root: Path) -> tuple[Path, dict[str, Any]]:
    tokenizer = qwen_tokenizer()
    torch.manual_seed(3)
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": len(tokenizer),
                "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"},
                "bos_token_id": 0,
                "eos_token_id": 0,
                "pad_token_id": 0,
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
            image_token_id=0,
            video_token_id=0,
            vision_start_token_id=0,
            vision_end_token_id=0,
        )
    ).eval()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    ).eval()
    save(
        root,
        "QwenImagePipeline",
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    config = adapter_for("QwenImageTransformer2DModel").tiny_config()
    return root, {**config, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 16}


def wan(root: Path) -> tuple[Path, dict[str, Any]]:
    t5 = t5_tokenizer()
    torch.manual_seed(4)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    ).eval()
    save(
        root,
        "WanPipeline",
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=t5_encoder(t5, multilingual=True),
        tokenizer=t5,
    )
    config = adapter_for("WanTransformer3DModel").tiny_config()
    return root, {**config, "in_channels": 4, "out_channels": 4, "text_dim": T5_WIDTH}


FAMILIES: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {
    "flux": flux,
    "sd3": sd3,
    "sdxl": sdxl,
    "pixart": pixart,
    "qwen_image": qwen_image,
    "wan": wan,
}
