"""Tiny diffusers pipelines for the pages that load one from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from sla_ckpt import PairKey, ProjectionTensors, SLASettings, SLAState, write_state

# The tests have such pipelines already; two sets of them would have to be kept alike.
from tests.regen import tiny_pipelines

SETTINGS = SLASettings(topk=0.5)


def make_sla_pipeline(folder: Path) -> None:
    """A PixArt pipeline whose picture has 256 tokens, and its state."""
    config = _save(folder, "pixart", diffusers.PixArtTransformer2DModel)
    _write_state(folder, config["attention_head_dim"])


def make_base(folder: Path) -> None:
    """A Flux pipeline for a LoRA."""
    _save(folder, "flux", diffusers.FluxTransformer2DModel)


def make_lora(folder: Path) -> None:
    """A LoRA for that pipeline, and the state it was trained with."""
    _, config = tiny_pipelines.flux(folder / "unused")
    model = _model(diffusers.FluxTransformer2DModel, config)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"]))
    layers = get_peft_model_state_dict(model)
    diffusers.FluxPipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    _write_state(folder, config["attention_head_dim"])


def transformer_call(pipe: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The transformer of the PixArt pipeline and inputs of the right shapes."""
    config = pipe.transformer.config
    side = config.sample_size
    inputs = {
        "hidden_states": torch.randn(1, config.in_channels, side, side, dtype=pipe.dtype),
        "encoder_hidden_states": torch.randn(1, 8, config.caption_channels, dtype=pipe.dtype),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return pipe.transformer, inputs


def _save(folder: Path, family: str, model_class: Any) -> dict[str, Any]:
    parts, config = tiny_pipelines.FAMILIES[family](folder / "parts")
    model = _model(model_class, config)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        parts, transformer=model, torch_dtype=torch.bfloat16
    )
    pipeline.save_pretrained(folder)
    return config


def _model(model_class: Any, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    arguments = {name: value for name, value in config.items() if name != "_class_name"}
    return model_class(**arguments).to(torch.bfloat16)


def _write_state(folder: Path, head_dim: int) -> None:
    random = np.random.default_rng(0)
    projection = ProjectionTensors(
        random.normal(0, 0.02, (head_dim, head_dim)).astype(np.float32),
        random.normal(0, 0.02, head_dim).astype(np.float32),
    )
    write_state(folder, SLAState({PairKey(head_dim, "bf16"): projection}, SETTINGS))
