"""A tiny Flux checkpoint whose SLA state is known and lost, with data that shows what it was.

The targets of the stored forward() calls are what the model gives under the true state, so the
loss is 0 there and the regenerated state can be compared with the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.regen.families.registry import adapter_for
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState
from tests.regen.tiny_models import make_model

SETTINGS = SLASettings(topk=0.5)
CONFIG = {
    name: value
    for name, value in adapter_for("FluxTransformer2DModel").tiny_config().items()
    if name != "_class_name"
}
KEY = PairKey(CONFIG["attention_head_dim"], "bf16")
SIDE = 12
TEXT = 8


def true_state(seed: int = 3) -> SLAState:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(16, 16)).astype(np.float32)
    bias = generator.normal(size=16).astype(np.float32)
    return SLAState({KEY: ProjectionTensors(weight, bias)}, SETTINGS)


def sla_model() -> torch.nn.Module:
    """The tiny Flux, with attention that matters more than in a freshly made one."""
    model = make_model("FluxTransformer2DModel", CONFIG).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            out_of_single = name.startswith("single_") and name.endswith("proj_out.weight")
            if out_of_single or name.endswith(("to_v.weight", "to_out.0.weight")):
                parameter *= 4
    return model


def make_lost_checkpoint(root: Path) -> Path:
    """A full-model checkpoint without ``sla_attention.pt``."""
    checkpoint = root / "checkpoint-10"
    sla_model().save_pretrained(checkpoint / "transformer")
    return checkpoint


def make_calls(path: Path, count: int = 8, *, zero_target: bool = False) -> Path:
    """Stored forward() calls of that model under :func:`true_state`."""
    model = sla_model().eval()
    tensors: dict[str, torch.Tensor] = {}
    rows = torch.arange(SIDE * SIDE)
    with torch.no_grad(), use_sla(true_state()):
        for number in range(count):
            generator = torch.Generator().manual_seed(number)
            inputs: dict[str, Any] = {
                "hidden_states": torch.randn(1, SIDE * SIDE, 16, generator=generator),
                "encoder_hidden_states": torch.randn(1, TEXT, 32, generator=generator),
                "pooled_projections": torch.randn(1, 24, generator=generator),
                "timestep": torch.rand(1, generator=generator),
                "guidance": torch.ones(1),
                "img_ids": torch.stack([0 * rows, rows // SIDE, rows % SIDE], 1).float(),
                "txt_ids": torch.zeros(TEXT, 3),
            }
            half = {k: v.bfloat16() if v.ndim > 1 else v for k, v in inputs.items()}
            target = model(**half).sample.float()
            if zero_target:
                target = torch.zeros_like(target)
            tensors |= {f"{number}/{k}": v for k, v in inputs.items()}
            tensors[f"{number}/target"] = target
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
