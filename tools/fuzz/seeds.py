"""Real files that the mutations start from."""

from __future__ import annotations

import io
import json
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from tools.fuzz import pickle_ops, pickles, zips

DATA = Path(__file__).parents[2] / "tests" / "data"
STATE_FILES = (
    "states/own_test_no_tie_1x1/sla_attention.pt",
    "checkpoints/out_peft/checkpoint-3/optimizer.bin",
    "checkpoints/out_full/checkpoint-3/optimizer.bin",
)


@cache
def saved_states() -> tuple[bytes, ...]:
    """Small archives by torch itself: every kind of value that it saves and we read."""
    import torch

    state = {"1:bf16": {"proj_l.weight": torch.ones(1, 1), "proj_l.bias": torch.zeros(1)}}
    whole = {"settings": {"topk": 0.2, "blkq": 64}, "state": state, "version": 1}
    base = torch.arange(12.0)
    trees: list[Any] = [
        whole,
        {**whole, "settings": None},
        {"views": [base, base[2:], base.view(3, 4).T, base[::2]]},
        {"parameter": torch.nn.Parameter(torch.ones(2)), "none": torch.empty(0, 3)},
        [torch.zeros(2, dtype=getattr(torch, name)) for name in pickles.DTYPES],
        {"size": torch.Size([1, 2]), "dtype": torch.float32, "device": torch.device("cpu")},
        {"module": torch.nn.Linear(2, 2).state_dict(), "bytes": b"\xff\0", "big": 1 << 62},
        {1: "int", (1, 2): "tuple", None: "none", 0.5: [True, None, "é"]},
    ]
    found = [(DATA / STATE_FILES[0]).read_bytes()]
    for tree in trees:
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        found.append(buffer.getvalue())
    return tuple(found)


@cache
def saved_optimizers() -> tuple[bytes, ...]:
    """Small optimizer files, two of them by the trainer."""
    import torch

    found = [(DATA / name).read_bytes() for name in STATE_FILES[1:]]
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor):
        parameters = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
        optimizer = kind(parameters, lr=1e-3)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        optimizer.add_param_group({"params": list(torch.nn.Linear(2, 2).parameters())})
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        found.append(buffer.getvalue())
    return tuple(found)


@cache
def opcodes(which: str) -> tuple[tuple[tuple[bytes, ...], dict[str, bytes]], ...]:
    """(opcodes of the pickle, storages) of each seed archive."""
    files = saved_states() if which == "state" else saved_optimizers()
    found = []
    for data in files:
        members = {m.name.split(b"/", 1)[1].decode(): m.data for m in zips.parse(data).members}
        storages = {
            name.removeprefix("data/"): raw
            for name, raw in members.items()
            if name.startswith("data/")
        }
        found.append((tuple(pickle_ops.split(members["data.pkl"])), storages))
    return tuple(found)


@cache
def archives(which: str) -> tuple[zips.Archive, ...]:
    return tuple(map(zips.parse, saved_states() if which == "state" else saved_optimizers()))


@cache
def safetensors_seeds() -> tuple[tuple[dict[str, Any], bytes], ...]:
    """(header, body) of the small real files."""
    found = []
    for path in sorted((DATA / "checkpoints").rglob("*.safetensors")):
        data = path.read_bytes()
        if len(data) < 10_000:
            (length,) = struct.unpack_from("<Q", data)
            found.append((json.loads(data[8 : 8 + length]), data[8 + length :]))
    return tuple(found)


@cache
def manifest() -> Any:
    path = DATA / "checkpoints" / "out_peft" / "checkpoint-3" / "checkpoint_manifest.json"
    return json.loads(path.read_text())


#: One config of each shape of architecture (head_dim given, derived, per block, per axis).
CONFIGS: tuple[dict[str, Any], ...] = (
    {"_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "num_attention_heads": 24,
     "num_layers": 19, "num_single_layers": 38, "axes_dims_rope": [16, 56, 56], "patch_size": 1},
    {"_class_name": "SD3Transformer2DModel", "attention_head_dim": 64, "num_attention_heads": 24,
     "num_layers": 24, "patch_size": 2, "sample_size": 128, "dual_attention_layers": [0, 1]},
    {"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "num_attention_heads": 12,
     "patch_size": [1, 2, 2], "num_layers": 30},
    {"_class_name": "UNet2DConditionModel", "attention_head_dim": [5, 10, 20],
     "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
     "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
     "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
     "transformer_layers_per_block": [1, 2, 10]},
    {"_class_name": "PixArtTransformer2DModel", "attention_head_dim": 72, "num_attention_heads": 16,
     "sample_size": 128, "patch_size": 2},
    {"_class_name": "Lumina2Transformer2DModel", "hidden_size": 2304, "num_attention_heads": 24,
     "num_kv_heads": 8, "patch_size": 2},
    {"_class_name": "SanaTransformer2DModel", "attention_head_dim": 32, "num_attention_heads": 70,
     "num_cross_attention_heads": 20, "cross_attention_head_dim": 112},
    {"_class_name": "LTX2VideoTransformer3DModel", "attention_head_dim": 128,
    "num_attention_heads": 32,
     "audio_attention_head_dim": 64, "audio_num_attention_heads": 32},
    {"_class_name": "ZImageTransformer2DModel", "dim": 3840, "n_heads": 30, "all_patch_size": [2]},
    {"_class_name": "HunyuanVideoTransformer3DModel", "attention_head_dim": 128, "patch_size": 2,
     "patch_size_t": 1, "num_attention_heads": 24},
    {"_class_name": "Kandinsky5Transformer3DModel", "model_dim": 1792, "axes_dims": [16, 24, 24],
     "patch_size": [1, 2, 2], "attention_type": "regular"},
)  # fmt: skip

RUN_CONFIG: dict[str, Any] = {
    "attention_mechanism": "sla", "sla_config": "{'topk': 0.2, 'blkq': 64, 'blkk': 64}",
    "optimizer": "adamw_bf16", "--weight_dtype": "torch.bfloat16", "mixed_precision": "bf16",
    "resolution": "1024x768", "validation_resolution": "1024x1024,512x512", "model_family": "flux",
    "lora_type": "standard", "model_type": "full", "pretrained_model_name_or_path": "org/model",
}  # fmt: skip

INDEX: dict[str, Any] = {
    "metadata": {"total_size": 1234},
    "weight_map": {
        f"blocks.{n}.weight": f"diffusion_pytorch_model-0000{n % 3 + 1}-of-00003.safetensors"
        for n in range(6)
    },
}
