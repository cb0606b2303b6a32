"""Writing a result into a checkpoint: the manifest, whatever it holds."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sla_ckpt import read_state
from sla_ckpt.errors import WriteError
from sla_ckpt.regen.write import write_result
from tests import factories


def test_the_manifest_lists_state_and_twin_and_keeps_the_rest(tmp_path: Path) -> None:
    manifest = {"version": 1, "files": ["b.bin", "a.bin"], "metadata": {"model": "modèle"}}
    path = tmp_path / "checkpoint_manifest.json"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert write_result(tmp_path, factories.state()).manifest_updated
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after.pop("files") == ["a.bin", "b.bin", "sla_attention.pt", "sla_attention.safetensors"]
    assert after == {"version": 1, "metadata": {"model": "modèle"}}
    assert not write_result(tmp_path, factories.state(seed=1)).manifest_updated


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 1}', b"[" * 200_000, b"\xff"])
def test_a_broken_manifest_neither_stops_the_write_nor_changes(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "checkpoint_manifest.json"
    path.write_bytes(content)
    saved = factories.state()
    assert not write_result(tmp_path, saved).manifest_updated
    assert path.read_bytes() == content
    assert read_state(tmp_path / "sla_attention.pt").equals(saved)


def test_a_state_that_cannot_be_replaced_keeps_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(tmp_path, factories.state())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if Path(target).name == "sla_attention.pt":
            raise PermissionError(1, "Operation not permitted")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(WriteError, match="not permitted"):
        write_result(tmp_path, factories.state(seed=1), keep_old=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_fills_up_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint_manifest.json").write_text('{"version": 1, "files": []}')
    write_result(tmp_path, factories.state())
    (tmp_path / "checkpoint_manifest.json").write_text('{"version": 1, "files": []}')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.fsync
    # State, twin, manifest, then two backups with the folder's sync each.
    for fail_at in range(1, 8):
        calls = itertools.count(1)

        def full(descriptor: int, at: int = fail_at, calls: Iterator[int] = calls) -> None:
            if next(calls) == at:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="No space"):
            write_result(tmp_path, factories.state(seed=1))
        monkeypatch.setattr(os, "fsync", real)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
