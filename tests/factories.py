"""Building checkpoints for tests: real files, made by code, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.formats.twin import encode_safetensors
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

DATA = Path(__file__).parent / "data"
#: Weights in each file that :func:`write_full_shards` writes.
SHARD_BYTES = 2 * 512 * 1024

FLUX_CONFIG: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "_diffusers_version": "0.36.0",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}

_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}


def projection(head_dim: int, seed: int = 0) -> ProjectionTensors:
    """A trained-looking projection."""
    rng = np.random.default_rng(seed)
    return ProjectionTensors(
        rng.normal(0, 0.05, (head_dim, head_dim)).astype(np.float32),
        rng.normal(0, 0.05, head_dim).astype(np.float32),
    )


def state(
    *pairs: str, settings: SLASettings | None = None, seed: int = 0, origin: Any = None
) -> SLAState:
    """A state with the given pairs (``"128:bf16"`` by default)."""
    keys = [PairKey.parse(pair) for pair in pairs or ("128:bf16",)]
    return SLAState(
        {key: projection(key.head_dim, seed + i) for i, key in enumerate(keys)},
        settings or SLASettings(),
        origin=origin or {},
    )


def zero_state(*pairs: str) -> SLAState:
    keys = [PairKey.parse(pair) for pair in pairs or ("128:bf16",)]
    return SLAState({key: ProjectionTensors.zeros(key.head_dim) for key in keys}, SLASettings())


def safetensors_bytes(
    names: Mapping[str, tuple[int, ...]],
    dtype: str = "BF16",
    metadata: Mapping[str, str] | None = None,
    fill: bytes | None = None,
) -> bytes:
    """A valid safetensors file with small tensors of one dtype."""
    tensors = {}
    for index, (name, shape) in enumerate(sorted(names.items())):
        size = int(np.prod(shape)) * _SIZES[dtype]
        pattern = fill if fill is not None else bytes([index + 1 & 0x3F])
        tensors[name] = (dtype, shape, (pattern * size)[:size])
    return encode_safetensors(tensors, metadata or {"format": "pt"})


WEIGHT_NAMES: dict[str, tuple[int, ...]] = {
    "x_embedder.weight": (8, 8),
    "context_embedder.weight": (8, 8),
    "proj_out.weight": (4, 8),
    "proj_out.bias": (4,),
}


def write_denoiser(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = FLUX_CONFIG,
    dtype: str = "BF16",
    shards: int = 1,
) -> None:
    """A diffusers model folder: config.json and weights, sharded when asked."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    if shards == 1:
        data = safetensors_bytes(WEIGHT_NAMES, dtype)
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(data)
        return
    weight_map = {}
    for index in range(shards):
        name = f"diffusion_pytorch_model-{index + 1:05d}-of-{shards:05d}.safetensors"
        names = {f"shard{index}.{key}": shape for key, shape in WEIGHT_NAMES.items()}
        (folder / name).write_bytes(safetensors_bytes(names, dtype))
        weight_map.update(dict.fromkeys(names, name))
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_full_shards(
    folder: Path, fill: Callable[[int], bytes], shape: tuple[int, int] = (512, 1024)
) -> None:
    """Two shards with a matrix of weights each, in place of a model folder's own.

    Args:
        folder: Made by :func:`write_denoiser` with two shards, whose index stays true.
        fill: Gives so many bytes.
        shape: Of the matrices, of two bytes a number.
    """
    for index in range(2):
        name = f"diffusion_pytorch_model-{index + 1:05d}-of-00002.safetensors"
        tensors = {f"shard{index}.{key}": ("BF16", (1,), b"\0\0") for key in WEIGHT_NAMES}
        tensors[f"shard{index}.proj_out.weight"] = ("BF16", shape, fill(2 * shape[0] * shape[1]))
        (folder / name).write_bytes(encode_safetensors(tensors, {"format": "pt"}))


def write_full_checkpoint(
    folder: Path,
    saved: SLAState | None = None,
    *,
    config: Mapping[str, Any] | None = FLUX_CONFIG,
    dtype: str = "BF16",
    shards: int = 1,
    trainer: bool = False,
) -> Path:
    """A full-model checkpoint: transformer/ and sla_attention.pt, good unless told otherwise."""
    write_denoiser(folder / "transformer", config=config, dtype=dtype, shards=shards)
    (folder / "sla_attention.pt").write_bytes(encode_state(saved or state()))
    if trainer:
        write_trainer_files(folder)
    return folder


def write_trainer_files(folder: Path) -> None:
    """What a training run leaves beside the weights, the manifest and the guard last."""
    (folder / "training_state.json").write_text(
        json.dumps({"global_step": 500, "epoch_step": 1, "epoch": 1})
    )
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    manifest = {"version": 1, "checkpoint": folder.name, "files": files, "metadata": {}}
    (folder / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    (folder / ".guard").write_text("complete\n")


def write_lora(
    folder: Path, saved: SLAState | None = None, *, architecture: str | None = "flux-dev/lora"
) -> Path:
    """A LoRA checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if architecture is not None:
        metadata["modelspec.architecture"] = architecture
    names: dict[str, tuple[int, ...]] = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (8, 4),
    }
    (folder / "pytorch_lora_weights.safetensors").write_bytes(
        safetensors_bytes(names, "F32", metadata)
    )
    if saved is not None:
        (folder / "sla_attention.pt").write_bytes(encode_state(saved))
    return folder
