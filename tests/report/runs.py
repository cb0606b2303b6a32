"""Output directories for the tests of the report: real checkpoints, some of them damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sla_ckpt import SLASettings, SLAState, encode_state
from sla_ckpt.state import STATE_FILE, PairKey, ProjectionTensors
from tests import factories

PAIR = PairKey(128, "bf16")


def trained(scale: float, *, seed: int = 1, settings: SLASettings | None = None) -> SLAState:
    """A state whose 128:bf16 has the Frobenius norm ``scale``."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(128, 128))
    weight *= scale / np.linalg.norm(weight)
    bias = rng.normal(0, 0.01, 128).astype(np.float32)
    pair = ProjectionTensors(weight.astype(np.float32), bias)
    return SLAState({PAIR: pair}, settings or SLASettings())


def with_nan(state: SLAState) -> SLAState:
    weight = state.pairs[PAIR].weight.copy()
    weight[3, 4] = np.nan
    return SLAState({PAIR: ProjectionTensors(weight, state.pairs[PAIR].bias)}, state.settings)


def write(root: Path, step: int, state: SLAState | None, **options: Any) -> Path:
    """``root/checkpoint-STEP``, whole, or without a state when that is None."""
    folder = factories.write_full_checkpoint(
        root / f"checkpoint-{step}", state or trained(1.0), trainer=True, **options
    )
    if state is None:
        (folder / STATE_FILE).unlink()
    return folder


def eventful(root: Path) -> Path:
    """A run in which everything that the timeline knows happens once; its newest is good."""
    write(root, 100, trained(1.0))
    write(root, 200, trained(2.0))
    write(root, 300, None)
    write(root, 400, trained(3.0))
    write(root, 500, factories.zero_state())
    write(root, 600, with_nan(trained(3.0)))
    write(root, 700, trained(3.2))
    write(root, 800, trained(3.2))
    write(root, 900, trained(1.0, settings=SLASettings(topk=0.15)))
    (write(root, 1000, trained(3.5)) / STATE_FILE).write_bytes(encode_state(trained(3.5))[:-90])
    write(root, 1100, trained(3.6))
    (root / "checkpoint-1200-tmp").mkdir()
    return root
