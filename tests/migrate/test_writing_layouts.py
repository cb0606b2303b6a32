"""A state becomes one file per layer, as other projects read it, and a state again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sla_ckpt.errors import UsageError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.migrate import MigrateOptions, migrate
from sla_ckpt.state import PairKey
from tests.formats.zip_builders import GOOD_STATE, STATES
from tests.migrate.layout_files import (
    LAYER_NAMES,
    layer_tensors,
    save_safetensors,
)


def state_of(folder: Path) -> Any:
    return read_state(folder / "sla_attention.pt")


@pytest.mark.parametrize("to", ["turbodiffusion", "fastvideo"])
def test_a_state_becomes_per_layer_and_back_exactly(to: Any, tmp_path: Path) -> None:
    state = read_state(GOOD_STATE)
    result = migrate(GOOD_STATE.parent, MigrateOptions(to=to, layers=5, output=_out(tmp_path, to)))
    (written,) = result.applied.written
    loaded = (
        torch.load(written, weights_only=True) if to == "turbodiffusion" else load_file(written)
    )
    assert sorted(loaded) == sorted(
        LAYER_NAMES[to].format(layer, tensor) for layer in range(5) for tensor in ("weight", "bias")
    )
    back = tmp_path / "back"
    back.mkdir()
    migrate(back, MigrateOptions(source=written, pair=PairKey(128, "bf16")))
    assert state_of(back).equals(state)
    other: Any = "fastvideo" if to == "turbodiffusion" else "turbodiffusion"
    migrate(back, MigrateOptions(source=written, to=other))
    again = tmp_path / "again"
    again.mkdir()
    migrate(again, MigrateOptions(source=back / _out(back, other).name, pair=PairKey(128, "bf16")))
    assert state_of(again).equals(state)


def _out(folder: Path, to: str) -> Path:
    return folder / (
        "sla_turbodiffusion.pth" if to == "turbodiffusion" else "sla_fastvideo.safetensors"
    )


def test_a_turbodiffusion_file_has_torchs_own_bytes(tmp_path: Path) -> None:
    migrate(GOOD_STATE.parent,
            MigrateOptions(to="turbodiffusion", layers=2, output=tmp_path / "x.pth"))  # fmt: skip
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    fresh = {"".join(list(name)): value.clone() for name, value in loaded.items()}
    torch.save(fresh, tmp_path / "z.pth")
    ours = (tmp_path / "x.pth").read_bytes()
    assert ours.replace(b"x/", b"z/") == (tmp_path / "z.pth").read_bytes()


def test_layers_that_differ_stay_exact_between_layouts(tmp_path: Path) -> None:
    tensors = layer_tensors("fastvideo", equal=False, dtype=torch.bfloat16)
    source = save_safetensors(tmp_path / "model.safetensors", tensors)
    migrate(tmp_path, MigrateOptions(source=source, to="turbodiffusion"))
    loaded = torch.load(tmp_path / "sla_turbodiffusion.pth", weights_only=True)
    for layer in range(3):
        for tensor in ("weight", "bias"):
            ours = loaded[LAYER_NAMES["turbodiffusion"].format(layer, tensor)]
            theirs = tensors[LAYER_NAMES["fastvideo"].format(layer, tensor)]
            assert ours.dtype == torch.bfloat16
            assert torch.equal(ours, theirs)


def test_several_pairs_need_a_choice(tmp_path: Path) -> None:
    three = STATES / "three_pairs"
    options = MigrateOptions(to="fastvideo", layers=2, output=tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="several pairs"):
        migrate(three, options)
    from dataclasses import replace

    migrate(three, replace(options, pair=PairKey(64, "fp16")))
    assert load_file(tmp_path / "x.safetensors")[
        LAYER_NAMES["fastvideo"].format(1, "bias")
    ].shape == (64,)
    with pytest.raises(UsageError, match="no pair 32:bf16"):
        migrate(three, replace(options, pair=PairKey(32, "bf16")))


def test_the_number_of_layers_must_be_known(tmp_path: Path) -> None:
    options = MigrateOptions(to="fastvideo", output=tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="number of layers"):
        migrate(GOOD_STATE.parent, options)
    options = MigrateOptions(to="turbodiffusion", layers=2, output=tmp_path / "x.bin")
    with pytest.raises(UsageError, match=r"end in \.pth"):
        migrate(GOOD_STATE.parent, options)
