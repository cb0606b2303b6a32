"""States in another container, under another name, and their twins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.formats.simpletuner import read_payload, read_state
from sla_ckpt.formats.twin import encode_twin, foreign_metadata, read_twin, twin_pt_sha256
from sla_ckpt.migrate import migrate
from sla_ckpt.state import SLASettings, SLAState
from tests.formats.zip_builders import GOOD_STATE, STATES
from tests.migrate.states import (
    assert_repaired,
    assert_same_projection,
    checkpoint,
    payload,
    saved,
    titles,
)


def test_a_legacy_file_is_converted_without_running_its_pickle(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/legacy_nonzip_torch_save")
    state = assert_repaired(folder, "container converted")
    assert_same_projection(state)


def test_a_malicious_legacy_file_is_refused_by_name(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tmp_path / "c"
    folder.mkdir()
    torch.save({"x": Evil()}, folder / "sla_attention.pt", _use_new_zipfile_serialization=False)
    result = migrate(folder)
    assert result.plan.is_empty
    assert "system" in result.plan.problems[0].message
    assert not (tmp_path / "ran").exists()


def test_safetensors_under_the_states_name_become_a_state(tmp_path: Path) -> None:
    """Public report 26: safetensors bytes under .pt."""
    folder = checkpoint(tmp_path / "c", "wrong/safetensors_renamed")
    result = migrate(folder)
    assert not result.plan.is_empty or result.plan.problems
    good = read_state(GOOD_STATE)
    folder = checkpoint(tmp_path / "d", encode_twin(good, pt_sha256=""))
    state = assert_repaired(folder, "container converted")
    assert state.equals(good)


def test_a_lost_state_is_written_from_its_twin(tmp_path: Path) -> None:
    good = SLAState(read_state(GOOD_STATE).pairs, SLASettings(), origin={"data": "real"})
    twin = tmp_path / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(good, pt_sha256=""))
    assert titles(tmp_path) == ["state written from its twin", "twin written"]
    assert (tmp_path / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()
    assert dict(read_twin(twin).origin) == {"data": "real"}
    assert migrate(tmp_path).plan.is_empty


def test_a_twin_follows_its_state_and_keeps_its_origin(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/tie_missing")
    state = read_state(folder / "sla_attention.pt")
    state = SLAState(state.pairs, state.settings, origin={"tool": "x"})
    sha256 = read_payload(folder / "sla_attention.pt").sha256
    twin = folder / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(state, pt_sha256=sha256))
    assert titles(folder) == ["settings completed from the trainer's defaults", "twin written"]
    assert twin_pt_sha256(twin) == read_payload(folder / "sla_attention.pt").sha256
    assert dict(read_twin(twin).origin) == {"tool": "x"}
    assert migrate(folder).plan.is_empty


def test_a_twin_of_another_state_is_rewritten_without_its_origin(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "one_pair_128_bf16")
    other = read_state(STATES / "three_pairs" / "sla_attention.pt")
    twin = folder / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(SLAState(other.pairs, origin={"tool": "x"}), pt_sha256=""))
    assert titles(folder) == ["twin written"]
    back = read_twin(twin)
    assert back.equals(read_state(GOOD_STATE))
    assert dict(back.origin) == {}


def test_a_twin_is_made_on_request(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "three_pairs")
    assert titles(folder, to="safetensors") == ["twin written"]
    assert read_twin(folder / "sla_attention.safetensors").equals(
        read_state(folder / "sla_attention.pt")
    )
    assert titles(folder, to="safetensors") == []


def test_a_torch_file_under_the_twins_name_becomes_a_state(tmp_path: Path) -> None:
    """Public report 25: a torch zip under .safetensors."""
    shutil.copy(GOOD_STATE, tmp_path / "sla_attention.safetensors")
    assert titles(tmp_path) == ["state written from its twin", "twin written"]
    assert (tmp_path / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()
    assert read_twin(tmp_path / "sla_attention.safetensors").equals(read_state(GOOD_STATE))
    assert titles(tmp_path) == []


@pytest.mark.parametrize("with_state", [True, False])
def test_metadata_that_is_no_text_becomes_text_and_foreign_entries_stay(
    with_state: bool, tmp_path: Path
) -> None:
    """Public reports 29 and 31: metadata that is no text; the user's entries are kept."""
    good = SLAState(read_state(GOOD_STATE).pairs, SLASettings(), origin={"data": "real"})
    twin = tmp_path / "sla_attention.safetensors"
    raw = encode_twin(good, pt_sha256="", extra={"step": "77777", "author": "me"})
    twin.write_bytes(raw.replace(b'"step":"77777"', b'"step":7777777'))
    if with_state:
        shutil.copy(GOOD_STATE, tmp_path / "sla_attention.pt")
    assert "twin written" in titles(tmp_path)
    metadata = foreign_metadata(twin)
    assert metadata == {"step": "7777777", "author": "me"}
    assert read_twin(twin).equals(good)
    assert titles(tmp_path) == []


def test_an_unsafe_state_is_a_problem_by_name_and_stays_untouched(tmp_path: Path) -> None:
    """Public report 38: a foreign class is named, never unpickled."""
    import argparse

    folder = saved(tmp_path / "c", payload(settings=argparse.Namespace(topk=0.2)))
    before = (folder / "sla_attention.pt").read_bytes()
    result = migrate(folder)
    assert result.plan.is_empty
    assert result.plan.problems[0].code == "SLA003"
    assert "argparse.Namespace" in result.plan.problems[0].message
    assert (folder / "sla_attention.pt").read_bytes() == before
