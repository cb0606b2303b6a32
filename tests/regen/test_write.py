"""Writing a result into a checkpoint: the manifest, whatever it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sla_ckpt import read_state
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
