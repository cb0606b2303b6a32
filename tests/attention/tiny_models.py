"""Real diffusers models, small enough for a CPU, and inputs with at least 256 tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

BF16 = torch.bfloat16


def _random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(BF16)


def _flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


def _flux_inputs() -> dict[str, Any]:
    random = _random(0)
    return {
        "hidden_states": random(1, 256, 4),
        "encoder_hidden_states": random(1, 24, 8),
        "pooled_projections": random(1, 8),
        "img_ids": torch.arange(768).reshape(256, 3) % 16,
        "txt_ids": torch.zeros(24, 3),
        "timestep": torch.tensor([0.5], dtype=BF16),
    }


def _sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=16,
    )


def _sd3_inputs() -> dict[str, Any]:
    random = _random(1)
    return {
        "hidden_states": random(1, 4, 32, 32),
        "encoder_hidden_states": random(1, 24, 8),
        "pooled_projections": random(1, 8),
        "timestep": torch.tensor([500.0]),
    }


def _wan() -> nn.Module:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )


def _wan_inputs() -> dict[str, Any]:
    random = _random(2)
    return {
        "hidden_states": random(1, 4, 2, 24, 24),
        "encoder_hidden_states": random(1, 16, 8),
        "timestep": torch.tensor([500]),
    }


def _pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=32,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )


def _pixart_inputs() -> dict[str, Any]:
    random = _random(3)
    return {
        "hidden_states": random(1, 4, 32, 32),
        "encoder_hidden_states": random(1, 16, 8),
        "encoder_attention_mask": torch.ones(1, 16, dtype=torch.int64),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "timestep": torch.tensor([500]),
    }


def _unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _unet_inputs() -> dict[str, Any]:
    random = _random(4)
    return {
        "sample": random(1, 4, 16, 16),
        "encoder_hidden_states": random(1, 16, 8),
        "timestep": torch.tensor([500]),
    }


@dataclass(frozen=True)
class TinyModel:
    """A model class, its inputs and what SLA meets in one forward.

    Attributes:
        pairs: Sparse calls by pair.
        dense: Dense calls by reason.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    pairs: dict[str, int]
    dense: dict[str, int]


TINY_MODELS = {
    "flux": TinyModel(_flux, _flux_inputs, {"16:bf16": 2}, {}),
    "sd3": TinyModel(_sd3, _sd3_inputs, {"16:bf16": 2}, {}),
    "wan": TinyModel(_wan, _wan_inputs, {"16:bf16": 2}, {"cross-attention": 2}),
    "pixart": TinyModel(_pixart, _pixart_inputs, {"12:bf16": 2}, {"mask": 2}),
    "unet": TinyModel(_unet, _unet_inputs, {"16:bf16": 3, "32:bf16": 1}, {"cross-attention": 4}),
}


def make_model(name: str, *, dtype: torch.dtype = BF16) -> nn.Module:
    """A frozen model with random, seeded weights in which no gate is closed."""
    torch.manual_seed(7)
    model = TINY_MODELS[name].build()
    for parameter in model.parameters():
        # Zero-initialised gates would hide attention from the output.
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval().requires_grad_(False)


def run_model(model: nn.Module, name: str) -> Tensor:
    output: Tensor = model(**TINY_MODELS[name].inputs(), return_dict=False)[0]
    return output


def make_state(
    *pairs: str, settings: SLASettings | None = None, seed: int = 0, **origin: str
) -> SLAState:
    """A state with random projections, as if trained."""
    random = np.random.default_rng(seed)
    projections = {}
    for pair in pairs:
        key = PairKey.parse(pair)
        weight = random.normal(0, 0.3, (key.head_dim, key.head_dim)).astype(np.float32)
        bias = random.normal(0, 0.1, key.head_dim).astype(np.float32)
        projections[key] = ProjectionTensors(weight, bias)
    return SLAState(projections, settings or SLASettings(), origin=origin)


def state_for(name: str, **options: Any) -> SLAState:
    return make_state(*TINY_MODELS[name].pairs, **options)


def qkv(length: int = 256, head_dim: int = 16, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Queries, keys and values ``[1, 2, L, D]``."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 2, length, head_dim, generator=generator).to(dtype) for _ in range(3)]
