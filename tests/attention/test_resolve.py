"""From a path, a repository or plain data to a state that can run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.attention.resolve import resolve
from sla_ckpt.errors import (
    AttentionError,
    FormatError,
    SlaCkptError,
    StructureError,
    TargetNotFoundError,
)
from sla_ckpt.formats.simpletuner_writer import encode_state
from sla_ckpt.formats.twin import write_state
from sla_ckpt.state import STATE_FILE, TWIN_FILE, PairKey, SLASettings, SLAState

from .tiny_models import make_state

STATE = make_state("16:bf16", "64:fp16", sla_variant="sla-1", tool="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint-500"
    target.mkdir()
    write_state(target, STATE)
    return target


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("what", ["folder", "output", STATE_FILE, TWIN_FILE])
def test_every_path_to_a_state_is_taken(folder: Path, what: str, as_text: bool) -> None:
    path = {"folder": folder, "output": folder.parent}.get(what, folder / what)
    resolved = resolve(str(path) if as_text else path)
    assert resolved.state.equals(STATE)
    assert resolved.label == str(path)


def test_a_relative_path_that_looks_like_a_repository_is_a_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert resolve(f"{folder.parent.name}/checkpoint-500").state.equals(STATE)


def test_the_newest_checkpoint_of_an_output_folder_is_meant(folder: Path) -> None:
    newer = folder.parent / "checkpoint-1000"
    newer.mkdir()
    state = make_state("16:bf16", seed=8)
    write_state(newer, state)
    assert resolve(folder.parent).state.equals(state)


def test_the_twin_tells_which_variant_made_the_state(folder: Path) -> None:
    assert resolve(folder).variant == "sla-1"
    (folder / TWIN_FILE).unlink()
    assert resolve(folder).variant == "main"
    assert resolve(folder, variant="sla-1").variant == "sla-1"


def test_a_twin_alone_is_enough(folder: Path) -> None:
    (folder / STATE_FILE).unlink()
    resolved = resolve(folder)
    assert resolved.state.equals(STATE)
    assert resolved.variant == "sla-1"


def test_a_twin_that_differs_is_ignored_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_on = make_state("16:bf16", "64:fp16", seed=9)
    (folder / STATE_FILE).write_bytes(encode_state(trained_on))
    with caplog.at_level(logging.WARNING):
        resolved = resolve(folder)
    assert resolved.state.equals(trained_on)
    assert resolved.variant == "main"
    assert "differs" in caplog.text


def test_use_sla_takes_a_folder_and_gives_its_state_back(folder: Path) -> None:
    with use_sla(folder) as session:
        assert session.to_state().equals(STATE)
    assert session.label == str(folder)


def test_a_folder_without_a_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetNotFoundError, match=f"no {STATE_FILE} in {tmp_path}") as caught:
        resolve(tmp_path)
    assert "sla-ckpt verify" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["/no/such/checkpoint", "no-such-checkpoint", "a/b/c", "~x/y"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(TargetNotFoundError, match="no such file or folder"):
        resolve(name)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", FormatError),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", FormatError),
        (encode_state(STATE)[:-4000], FormatError),
    ],
    ids=["empty", "lfs-pointer", "truncated"],
)
def test_a_file_that_is_no_state_is_an_error(
    folder: Path, content: bytes, error: type[SlaCkptError]
) -> None:
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(error) as caught:
        resolve(folder)
    assert STATE_FILE in caught.value.message
    assert "\n" not in caught.value.message


def test_a_state_of_the_wrong_shape_is_an_error_before_any_call(folder: Path) -> None:
    key, other = PairKey(16, "bf16"), PairKey(64, "fp16")
    mixed = SLAState({key: STATE.pairs[other]}, STATE.settings)
    with pytest.raises((StructureError, AttentionError), match="16:bf16"):
        resolve(mixed)


def test_the_label_of_a_refused_file_is_its_path(folder: Path) -> None:
    write_state(folder, replace(STATE, settings=SLASettings(blkq=32)))
    with pytest.raises(AttentionError, match=f"{folder}: blkq 32"):
        resolve(folder)


@pytest.mark.parametrize("checkpoint", [None, 3, "", b"x"])
def test_what_cannot_be_a_state_is_refused(checkpoint: object) -> None:
    with pytest.raises(AttentionError, match="cannot take an SLA state"):
        resolve(checkpoint)  # type: ignore[arg-type]


def test_a_repository_that_cannot_be_reached_is_an_error_that_says_so(tmp_path: Path) -> None:
    script = (
        "from sla_ckpt.attention.resolve import resolve\n"
        "from sla_ckpt.errors import HubError\n"
        "try:\n    resolve('org/model@v1')\n"
        "except HubError as error:\n    print(error.message, '|', error.hint)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no path org/model here, and the Hub cannot be reached" in done.stdout
    assert "a local copy of the checkpoint works offline" in done.stdout
