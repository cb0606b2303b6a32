"""Files as other projects write them: their key names, small shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LAYER_NAMES: dict[str, str] = {
    "turbodiffusion": "blocks.{}.self_attn.attn_op.local_attn.proj_l.{}",
    "turbowan": "blocks.{}.attn1.attn_op.local_attn.proj_l.{}",
    "sglang": "blocks.{}.attn1.local_attn.proj_l.{}",
    "fastvideo": "blocks.{}.attn1.attn_impl.proj_l.{}",
    "mindie": "layers.{}.sla.proj_l.{}",
}


def layer_tensors(
    layout: str,
    layers: int = 3,
    *,
    dim: int = 8,
    equal: bool = True,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The projections of every layer under a project's names, between other weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    shared = (torch.randn(dim, dim, generator=generator), torch.randn(dim, generator=generator))
    for layer in range(layers):
        weight, bias = shared if equal else (
            torch.randn(dim, dim, generator=generator),
            torch.randn(dim, generator=generator),
        )  # fmt: skip
        name = LAYER_NAMES[layout]
        tensors[prefix + name.format(layer, "weight")] = weight.to(dtype).clone()
        tensors[prefix + name.format(layer, "bias")] = bias.to(dtype).clone()
        tensors[f"{prefix}blocks.{layer}.ffn.0.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)
    return tensors


def save_pth(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def save_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 2) -> Path:
    """A diffusers-style sharded folder with its index; returns the index."""
    import json

    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


#: How raw training dumps wrap a state dict.
NESTINGS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "flat": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "global_step": 12},
    "module": lambda tensors: {"module": tensors},
    "net": lambda tensors: {f"net.{name}": tensor for name, tensor in tensors.items()},
    "net_ema": lambda tensors: {f"net_ema.{name}": tensor for name, tensor in tensors.items()},
    "nested": lambda tensors: {
        "state_dict": {f"net.{name}": tensor for name, tensor in tensors.items()}
    },
    "checkpoint_wrapped": lambda tensors: {
        name.replace("blocks.", "_orig_mod.blocks.").replace(
            ".self_attn", "._checkpoint_wrapped_module.self_attn"
        ): tensor
        for name, tensor in tensors.items()
    },
}
