"""How fast a checkpoint's weights reach the card, beside the plain way to move the same bytes.

Writes a random sharded checkpoint (Flux-shaped unless told otherwise), then measures, each with
the file evicted from the page cache first where the system allows it:

- ``plain``: one thread reads each file in 32 MiB pieces into page-locked memory and copies each
  piece to the card;
- ``ours``: ``load_backbone``, which also builds the model;
- ``diffusers``: ``from_pretrained`` followed by ``.to(device)``, the usual way.

    python benchmarks/load_speed.py --device cuda --gigabytes 6 --out load_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sla_ckpt.regen.backbone import load_backbone
from sla_ckpt.regen.empty_model import build_empty

FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
FULL_GIGABYTES = 23.8
SHARD_BYTES = 5 << 30
PIECE = 32 << 20


def write_checkpoint(root: Path, gigabytes: float) -> int:
    """A random bfloat16 Flux with as many blocks as fit, in shards; returns its bytes."""
    share = min(1.0, gigabytes / FULL_GIGABYTES)
    config = {
        **FLUX,
        "num_layers": max(1, round(19 * share)),
        "num_single_layers": max(1, round(38 * share)),
    }
    folder = root / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    _, model = build_empty(config["_class_name"], config, torch.bfloat16)
    total = size = 0
    pool = torch.randn(1 << 26).mul_(0.02).to(torch.bfloat16)
    names: list[list[str]] = [[]]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in shapes.items():
        count = 2 * torch.Size(shape).numel()
        if size + count > SHARD_BYTES:
            names.append([])
            size = 0
        names[-1].append(name)
        size += count
        total += count
    weight_map = {}
    for number, members in enumerate(names, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{len(names):05d}.safetensors"
        tensors = {}
        for name in members:
            count = torch.Size(shapes[name]).numel()
            flat = (
                pool[:count]
                if count <= pool.numel()
                else pool.repeat(-(-count // pool.numel()))[:count]
            )
            tensors[name] = flat.reshape(shapes[name]).clone()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return total


def evict(root: Path) -> None:
    """Ask the system to drop the files from its page cache."""
    for path in root.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def plain(root: Path, device: torch.device) -> float:
    """Seconds to read the same bytes into page-locked memory and onto the card."""
    card = device.type == "cuda"
    started = time.perf_counter()
    buffers = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=card) for _ in range(2)]
    events: list[Any] = [torch.cuda.Event() if card else None for _ in range(2)]
    kept = []
    turn = 0
    for path in sorted(root.rglob("*.safetensors")):
        target = torch.empty(path.stat().st_size, dtype=torch.uint8, device=device)
        kept.append(target)
        at = 0
        with path.open("rb", buffering=0) as handle:
            while True:
                if card:
                    events[turn].synchronize()
                count = handle.readinto(buffers[turn].numpy().data)
                if not count:
                    break
                target[at : at + count].copy_(buffers[turn][:count], non_blocking=True)
                if card:
                    events[turn].record()
                at += count
                turn = 1 - turn
    synchronise(device)
    return time.perf_counter() - started


def ours(root: Path, device: torch.device) -> float:
    started = time.perf_counter()
    backbone = load_backbone(root, device=device, dtype=torch.bfloat16)
    synchronise(device)
    seconds = time.perf_counter() - started
    del backbone
    return seconds


def usual(root: Path, device: torch.device) -> float:
    import diffusers

    started = time.perf_counter()
    model = diffusers.FluxTransformer2DModel.from_pretrained(
        root / "transformer", torch_dtype=torch.bfloat16
    ).to(device)
    synchronise(device)
    seconds = time.perf_counter() - started
    del model
    return seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoint")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    results: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        results["card"] = torch.cuda.get_device_name(device)
        torch.empty(1, device=device)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        total = write_checkpoint(root, arguments.gigabytes)
        results["gigabytes"] = total / 1e9
        build_empty(FLUX["_class_name"], FLUX, torch.bfloat16)  # imports are not what is measured
        for state in ("cold", "cached"):
            for label, measure in (("plain", plain), ("ours", ours), ("diffusers", usual)):
                times = []
                for _ in range(arguments.rounds):
                    if state == "cold":
                        evict(root)
                    times.append(measure(root, device))
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                best = min(times)
                results[f"{label}_{state}"] = {"seconds": times, "GB_per_s": total / 1e9 / best}
                print(f"{state:7} {label:10} {best:7.2f} s  {total / 1e9 / best:6.2f} GB/s")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
