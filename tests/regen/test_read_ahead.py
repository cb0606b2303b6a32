"""Reading ahead: the weights that loading will read, and nothing to say where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sla_ckpt.regen import read_ahead as module
from sla_ckpt.regen.read_ahead import read_ahead
from tests.regen.lost_state import make_lost_checkpoint
from tests.regen.tiny_models import hashes


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were handed to the reading thread."""
    seen: list[Path] = []
    read = module._read

    def recording(files: tuple[Path, ...]) -> None:
        seen.extend(files)
        read(files)

    monkeypatch.setattr(module, "_read", recording)
    return seen


def test_it_reads_the_denoisers_weights_and_changes_nothing(
    tmp_path: Path, opened: list[Path]
) -> None:
    checkpoint = make_lost_checkpoint(tmp_path)
    before = hashes(checkpoint)
    for target in (checkpoint, tmp_path):
        opened.clear()
        thread = read_ahead(target)
        assert thread is not None
        thread.join(60)
        assert not thread.is_alive()
        assert opened
        assert {path.suffix for path in opened} == {".safetensors"}
        assert {path.parent.parent for path in opened} == {checkpoint}
    assert hashes(checkpoint) == before


def test_for_a_lora_it_reads_the_base(tmp_path: Path, opened: list[Path]) -> None:
    base = make_lost_checkpoint(tmp_path / "base")
    lora = tmp_path / "checkpoint-7"
    lora.mkdir()
    (lora / "pytorch_lora_weights.safetensors").write_bytes(b"not read")
    thread = read_ahead(lora, base_model=str(base), ema=True)
    assert thread is not None
    thread.join(60)
    assert {path.parent.parent for path in opened} == {base}


def test_a_full_model_is_read_although_its_base_is_named_for_the_pipeline(
    tmp_path: Path, opened: list[Path]
) -> None:
    checkpoint = make_lost_checkpoint(tmp_path)
    base = make_lost_checkpoint(tmp_path / "base")
    thread = read_ahead(checkpoint, base_model=str(base))
    assert thread is not None
    thread.join(60)
    assert {path.parent.parent for path in opened} == {checkpoint}


def test_where_there_is_nothing_to_read_it_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_ahead(tmp_path / "missing") is None
    assert read_ahead(tmp_path) is None
    assert read_ahead(tmp_path, base_model="org/model") is None
    checkpoint = make_lost_checkpoint(tmp_path)
    assert read_ahead(checkpoint, denoiser="transformer_2") is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert read_ahead(checkpoint) is None


def test_files_that_vanish_meanwhile_end_it_quietly(tmp_path: Path) -> None:
    module._read((tmp_path / "gone.safetensors",))


def test_it_needs_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None; "
        "import sla_ckpt.regen.read_ahead"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
