"""A training run to practise on: a real Flux class, tiny, with random weights.

    python examples/practice_run.py practice

makes ``practice/output/checkpoint-500`` as an older trainer leaves it, and the caches of the
"pictures" it was trained on. It takes seconds, needs no GPU and downloads nothing. Nothing here has
learned anything: the folders are real, the quality is not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

SAMPLES = 6
#: What trainers wrote before they knew ``tie_feature_map_qk``.
OLDER_SETTINGS = {"topk": 0.2, "feature_map": "softmax", "blkq": 64, "blkk": 64}
SETTINGS = {**OLDER_SETTINGS, "tie_feature_map_qk": True}


def make_checkpoint(
    folder: Path, *, head_dim: int = 64, older: bool = False, trainer: bool = False
) -> Path:
    """A full-model checkpoint below ``folder``.

    Args:
        folder: The run's folder.
        head_dim: Of the attention; the state's pair is ``<head_dim>:bf16``.
        older: Settings without their newest entry.
        trainer: The trainer's own files as well, with SLA's parameter group in the optimizer.

    Returns:
        ``folder/output/checkpoint-500``.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    side = head_dim // 8 * 3
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=head_dim,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(head_dim - 2 * side, side, side),
    )
    torch.set_default_dtype(torch.float32)
    checkpoint = folder / "output" / "checkpoint-500"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Two bytes each: three shards, as a large model has them.
    model.save_pretrained(checkpoint / "transformer", max_shard_size=parameters * 2 // 5 * 2)
    projection = torch.nn.Linear(head_dim, head_dim)
    torch.nn.init.normal_(projection.weight, std=0.02)
    torch.nn.init.normal_(projection.bias, std=0.02)
    state = {
        "settings": OLDER_SETTINGS if older else SETTINGS,
        "state": {
            f"{head_dim}:bf16": {
                "proj_l.weight": projection.weight.detach(),
                "proj_l.bias": projection.bias.detach(),
            }
        },
        "version": 1,
    }
    torch.save(state, checkpoint / "sla_attention.pt")
    if trainer:
        _write_trainer_files(checkpoint, model, projection)
    return checkpoint


def _write_trainer_files(checkpoint: Path, model: torch.nn.Module, projection: Any) -> None:
    """What a resume needs, the manifest and the guard last."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # meets the first group only, as in training
    optimizer.add_param_group({"params": list(projection.parameters())})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.bin")
    progress = {"global_step": 500, "epoch_step": 1, "epoch": 1}
    (checkpoint / "training_state.json").write_text(json.dumps(progress), encoding="utf-8")
    files = sorted(
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    )
    manifest = {"version": 1, "checkpoint": checkpoint.name, "files": files, "metadata": {}}
    (checkpoint / "checkpoint_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (checkpoint / ".guard").write_text("complete\n", encoding="utf-8")


def make_caches(folder: Path) -> Path:
    """VAE latents and text embeddings where a trainer keeps them, here of smooth noise.

    Returns:
        ``folder/cache``; ``sla-ckpt regen`` finds it beside the run by itself.
    """
    generator = torch.Generator().manual_seed(1)
    vae, text = folder / "cache" / "vae" / "flux", folder / "cache" / "text"
    vae.mkdir(parents=True)
    text.mkdir(parents=True)
    for number in range(SAMPLES):
        coarse = torch.randn(1, 16, 6, 6, generator=generator)
        latents = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic")[0]
        torch.save(latents.to(torch.bfloat16), vae / f"{number:064x}.pt")
        caption = {
            "prompt_embeds": torch.randn(1, 16, 32, generator=generator).to(torch.bfloat16),
            "pooled_prompt_embeds": torch.randn(32, generator=generator).to(torch.bfloat16),
            "time_ids": torch.zeros(1, 16, 3),
            "attention_masks": torch.ones(1, 16),
        }
        torch.save(caption, text / f"{number:032x}-flux.pt")
    return folder / "cache"


def main(folder: str) -> None:
    checkpoint = make_checkpoint(Path(folder), older=True, trainer=True)
    caches = make_caches(Path(folder))
    print(f"{checkpoint} and {caches}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
