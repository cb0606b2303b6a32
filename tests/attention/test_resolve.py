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
from tools.loopback_hub import LoopbackHub

from .tiny_models import make_state

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("name", ["/no/such/checkpoint", "no-such-checkpoint", "./a/b", "~x/y"])
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


READ_REPOSITORIES = """
import sys
from sla_ckpt.attention.resolve import resolve
from sla_ckpt.errors import SlaCkptError
for name in sys.argv[1:]:
    try:
        resolved = resolve(name)
        print(*resolved.state.pairs, resolved.variant, resolved.label)
    except SlaCkptError as error:
        print(type(error).__name__, error.message, "|", error.hint)
"""


def read_repositories(cache: Path, *names: str, **environment: str) -> list[str]:
    """In a process of its own: huggingface_hub reads its settings once."""
    done = subprocess.run(
        [sys.executable, "-c", READ_REPOSITORIES, *names],
        env=os.environ | {"HF_HOME": str(cache), "PYTHONPATH": str(ROOT)} | environment,
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_repositories_are_read_and_then_also_offline(folder: Path, tmp_path: Path) -> None:
    state, twin = ((folder / name).read_bytes() for name in (STATE_FILE, TWIN_FILE))
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("org/both", files={STATE_FILE: state, TWIN_FILE: twin})
        hub.add_repo("org/plain", files={STATE_FILE: state})
        hub.add_repo("org/deep", files={f"lora/{TWIN_FILE}": twin})
        hub.add_repo("org/empty", files={"config.json": b"{}"})
        lines = read_repositories(
            tmp_path,
            "org/both",
            "org/plain",
            "org/plain@main",
            "org/deep/lora",
            f"{hub.url}/org/both",
            "org/empty",
            "org/absent",
            "org/both@v9",
            HF_ENDPOINT=hub.url,
        )
    assert lines[:5] == [
        "16:bf16 64:fp16 sla-1 org/both",
        "16:bf16 64:fp16 main org/plain",
        "16:bf16 64:fp16 main org/plain@main",
        "16:bf16 64:fp16 sla-1 org/deep/lora",
        f"16:bf16 64:fp16 sla-1 {hub.url}/org/both",
    ]
    empty, absent, revision = lines[5:]
    assert empty.startswith(f"TargetNotFoundError no {STATE_FILE} in the Hub repository org/empty")
    assert absent.startswith("HubError no path org/absent here, and cannot read org/absent")
    assert revision.startswith("HubError no path org/both@v9 here, and org/both has no such rev")
    cached = read_repositories(tmp_path, "org/both", "org/never", HF_HUB_OFFLINE="1")
    assert cached[0] == lines[0]
    assert cached[1].startswith("HubError no path org/never here, and cannot read org/never: off")
