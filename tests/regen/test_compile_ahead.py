"""Kernels are compiled while the weights are read, where there is something to compile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.regen.backbone import load_backbone
from sla_ckpt.regen.compile_ahead import compile_ahead
from sla_ckpt.state import SLASettings
from tests.regen.lost_state import CONFIG, make_lost_checkpoint

FLUX = {"_class_name": "FluxTransformer2DModel", **CONFIG}


def ahead(config: Mapping[str, Any], device: str) -> Any:
    return compile_ahead(
        config, "bf16", SLASettings(), variant="main", kernel="auto", device=torch.device(device)
    )


def test_on_a_processor_nothing_is_compiled() -> None:
    assert ahead(FLUX, "cpu") is None


def test_an_unknown_model_is_left_to_the_first_call() -> None:
    assert ahead({"_class_name": "NobodysTransformer"}, "cuda") is None


def test_the_config_is_known_before_any_weight_is_read(tmp_path: Path) -> None:
    events: list[str] = []
    load_backbone(
        make_lost_checkpoint(tmp_path),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        built=lambda config: events.append(config["_class_name"]),
        progress=lambda seen, total: events.append("read"),
    )
    assert events[:2] == ["FluxTransformer2DModel", "read"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
def test_on_a_card_the_kernels_of_the_model_run() -> None:
    assert ahead({**FLUX, "attention_head_dim": 64}, "cuda").result() is None
