"""Caches, stored calls and a tiny Flux adapter for the sample tests."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from sla_ckpt.regen.families.registry import adapter_for
from sla_ckpt.state import SLASettings

ADAPTER = adapter_for("FluxTransformer2DModel")
CONFIG: dict[str, Any] = ADAPTER.tiny_config()
CHANNELS = 4
TEXT_WIDTH = 32
POOLED = 24
#: Lets tiny latents through: one block of two is kept.
SETTINGS = SLASettings(topk=0.5)


def latents(rows: int = 32, columns: int = 32, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CHANNELS, rows, columns, generator=generator)


def embedding(value: float = 0.0) -> dict[str, torch.Tensor]:
    """What SimpleTuner's flux text cache holds, with a recognisable value."""
    return {
        "prompt_embeds": torch.full((1, 6, TEXT_WIDTH), value),
        "pooled_prompt_embeds": torch.full((POOLED,), value),
        "time_ids": torch.zeros(1, 6, 3),
        "attention_masks": torch.ones(1, 6),
    }


def save(value: object, path: Path, *, packed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def text_name(caption: str, family: str = "flux") -> str:
    return f"{hashlib.md5(caption.encode()).hexdigest()}-{family}.pt"


def hashed_name(stem: str) -> str:
    return f"{hashlib.sha256(stem.encode()).hexdigest()}.pt"


def make_cache(
    root: Path, count: int = 3, *, rows: int = 32, columns: int = 32, packed: bool = False
) -> Path:
    """``root/vae/flux/set`` and ``root/text/flux``: picture i has the caption ``caption i``."""
    for number in range(count):
        save(
            latents(rows, columns, seed=number),
            root / "vae" / "flux" / "set" / hashed_name(f"picture{number}"),
            packed=packed,
        )
        save(
            embedding(float(number + 1)),
            root / "text" / "flux" / text_name(f"caption {number}"),
            packed=packed,
        )
    save(embedding(-1.0), root / "text" / "flux" / text_name(""))
    return root


def make_captions(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"picture{number}.png").write_bytes(b"")
        (folder / f"picture{number}.txt").write_text(f"caption {number}\n")
    return folder
