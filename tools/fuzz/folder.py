"""A whole checkpoint on disk, of which one file at a time is hostile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from click import unstyle

from sla_ckpt.checkpoint.runconfig import load_run_config
from sla_ckpt.checks.context import Context
from sla_ckpt.checks.render import to_github, to_json, to_sarif, to_text
from sla_ckpt.checks.summary import summarise
from sla_ckpt.checks.verify import verify, verify_source
from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.formats.twin import encode_safetensors, encode_twin
from sla_ckpt.state import STATE_FILE, PairKey, ProjectionTensors, SLAState
from tools.fuzz import binary, jsons, pickles, seeds, texts

_PIPELINE = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "X"],
    "vae": [None, None],
}


_CONFIG = {**seeds.CONFIGS[0], "attention_head_dim": 2}
_SHARD = "diffusion_pytorch_model-00001-of-00001.safetensors"
_INDEX = {"metadata": {"total_size": 2}, "weight_map": {"w": _SHARD}}
_PROJECTION = ProjectionTensors(np.ones((2, 2), np.float32), np.ones(2, np.float32))


def _manifest() -> dict[str, Any]:
    return {**seeds.manifest(), "files": ["optimizer.bin", "sla_attention.pt"]}


class _Folder:
    """A checkpoint on disk of which one file at a time is replaced."""

    def __init__(self) -> None:
        self._directory: TemporaryDirectory[str] | None = None
        self.root = Path()
        self.tidy: dict[str, bytes] = {}

    def open(self) -> None:
        if self._directory is not None:
            return
        memory = Path("/dev/shm")
        self._directory = TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.root = Path(self._directory.name) / "checkpoint-3"
        state = SLAState({PairKey(2, "bf16"): _PROJECTION}, origin={"data": "real"})
        file = encode_state(state)
        weights = encode_safetensors({"w": ("BF16", (1, 1), bytes(2))}, {"format": "pt"})
        self.tidy = {
            "sla_attention.pt": file,
            "sla_attention.safetensors": encode_twin(
                state, pt_sha256=hashlib.sha256(file).hexdigest()),
            "optimizer.bin": seeds.saved_optimizers()[0],
            "training_state.json": b'{"global_step": 3, "epoch": 1}',
            "checkpoint_manifest.json": json.dumps(_manifest()).encode(),
            "simpletuner_config.json": json.dumps(seeds.RUN_CONFIG).encode(),
            "transformer/config.json": json.dumps(_CONFIG).encode(),
            f"transformer/{_SHARD}": weights,
            "transformer/diffusion_pytorch_model.safetensors.index.json":
                json.dumps(_INDEX).encode(),
            "model_index.json": json.dumps(_PIPELINE).encode(),
        }  # fmt: skip
        for name, data in self.tidy.items():
            self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


_FOLDER = _Folder()
_MAKERS: tuple[tuple[str, Callable[[Random], bytes]], ...] = (
    ("sla_attention.pt", binary.torch_file("state", pickles.random_state)),
    ("sla_attention.safetensors", binary.make_twin),
    ("optimizer.bin", binary.torch_file("optimizer", pickles.random_optimizer)),
    ("training_state.json", lambda rng: texts.mutate_json(rng, {"global_step": 3, "epoch": 1})),
    ("checkpoint_manifest.json", lambda rng: texts.mutate_json(rng, _manifest())),
    ("simpletuner_config.json", jsons.make_run_config),
    ("transformer/config.json", lambda rng: texts.mutate_json(rng, _CONFIG)),
    (f"transformer/{_SHARD}", binary.make_safetensors),
    ("transformer/diffusion_pytorch_model.safetensors.index.json",
     lambda rng: texts.mutate_json(rng, _INDEX)),
    ("model_index.json", lambda rng: texts.mutate_json(rng, _PIPELINE)),
)  # fmt: skip


def make_checkpoint(rng: Random) -> bytes:
    """One byte says which file of the folder the rest replaces."""
    which = rng.randrange(len(_MAKERS))
    return bytes([which]) + _MAKERS[which][1](rng)


def read_checkpoint(data: bytes) -> Any:
    _FOLDER.open()
    name = _MAKERS[data[0]][0]
    _FOLDER.put(name, data[1:])
    try:
        report = verify(_FOLDER.root)
    finally:
        _FOLDER.put(name, _FOLDER.tidy[name])
    return report


def read_bare_state(data: bytes) -> Any:
    """A state by itself, as ``verify`` and ``inspect`` look at it."""
    source = jsons.Files({STATE_FILE: data})
    report = verify_source(source)
    json.dumps(summarise(Context(source)).to_dict(), allow_nan=False)
    return report


def judge(_data: bytes, report: Any) -> str | None:
    for render in (to_json, to_sarif):
        render([report]).encode()
    for render in (to_text, to_github):
        for line in unstyle(render([report])).splitlines():
            if not line.isprintable() or len(line) > 3000:
                return f"unfit line {line!r:.300}"
    return None


def read_toml(data: bytes) -> Any:
    _FOLDER.open()
    path = _FOLDER.root.parent / "config.toml"
    path.write_bytes(data)
    config = load_run_config(path)
    jsons.use_run_config(config)
    return config
