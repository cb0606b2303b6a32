"""Checkpoints with the states of the test data, and what holds for every repair."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sla_ckpt.formats.simpletuner import encode_state, read_state
from sla_ckpt.migrate import MigrateOptions, migrate
from sla_ckpt.state import PairKey, SLAState
from tests.formats.zip_builders import GOOD_STATE, STATES

PAIR = PairKey(128, "bf16")
#: Under which all three files of :func:`broken_checkpoint` change.
OPTIONS = MigrateOptions(to="safetensors")
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
}


def checkpoint(folder: Path, state: str | Path | bytes, *, config: bool = False) -> Path:
    """A checkpoint folder with one of the real states, and maybe a config that needs 128:bf16."""
    folder.mkdir(exist_ok=True)
    target = folder / "sla_attention.pt"
    if isinstance(state, bytes):
        target.write_bytes(state)
    else:
        shutil.copy(STATES / state / "sla_attention.pt", target)
    if config:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps(FLUX))
    return folder


def saved(folder: Path, value: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / "sla_attention.pt")
    return folder


def payload(**changes: Any) -> dict[str, Any]:
    good = torch.load(GOOD_STATE, weights_only=True)
    return {**good, **changes}


def titles(folder: Path, **options: Any) -> list[str]:
    return [step.title for step in migrate(folder, MigrateOptions(**options)).plan.steps]


def assert_repaired(folder: Path, title: str, **options: Any) -> SLAState:
    """The one step is taken, the original is kept, and a second run finds nothing to do."""
    before = (folder / "sla_attention.pt").read_bytes()
    result = migrate(folder, MigrateOptions(**options))
    assert [step.title for step in result.plan.steps] == [title]
    assert [path.read_bytes() for path in result.applied.backups] == [before]
    assert migrate(folder, MigrateOptions(**options)).plan.is_empty
    after = read_state(folder / "sla_attention.pt")
    assert encode_state(after) == (folder / "sla_attention.pt").read_bytes()
    return after


def assert_same_projection(state: SLAState, pair: PairKey = PAIR) -> None:
    original = read_state(GOOD_STATE).pairs[PAIR]
    np.testing.assert_array_equal(state.pairs[pair].weight, original.weight)
    np.testing.assert_array_equal(state.pairs[pair].bias, original.bias)


def broken_checkpoint(folder: Path) -> Path:
    """Three files change: the state, a new twin, the manifest."""
    folder.mkdir()
    shutil.copy(STATES / "wrong/tie_missing/sla_attention.pt", folder)
    manifest = {"version": 1, "files": ["a"]}
    (folder / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What a trainer sees: everything but backups and our own working files."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and ".bak-" not in path.name and not path.name.startswith(".sla_ckpt")
    }
