"""SLA301: what belongs together is there, and the save was finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, verify
from tests import factories
from tests.checks.reports import codes, only


def test_sla301_points_to_the_last_complete_checkpoint(tmp_path: Path) -> None:
    """Public report 15: the newest checkpoint is not whole."""
    factories.write_full_checkpoint(tmp_path / "checkpoint-10", trainer=True)
    broken = factories.write_full_checkpoint(tmp_path / "checkpoint-20", trainer=True)
    (broken / ".guard").unlink()
    finding = only(verify(broken), "SLA301")
    assert "guard" in finding.message
    assert "checkpoint-10" in (finding.help or "")


def test_sla301_knows_a_temporary_folder(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-30-tmp")
    assert "never finished" in only(verify(folder), "SLA301").message


def test_sla301_lists_files_that_the_manifest_has_and_the_folder_lacks(good: Path) -> None:
    manifest = json.loads((good / "checkpoint_manifest.json").read_text())
    manifest["files"].append("optimizer.bin")
    (good / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    assert "optimizer.bin" in only(verify(good), "SLA301").message
    assert verify(good, VerifyOptions(purpose="inference")).ok


def test_sla301_warns_of_leftovers_of_a_killed_save(good: Path) -> None:
    (good / "transformer" / "model.safetensors.tmp").write_bytes(b"x")
    finding = only(verify(good), "SLA301")
    assert finding.level == "warning"
    assert "model.safetensors.tmp" in finding.message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_sla301_an_unreadable_training_state_is_one_finding(good: Path, content: bytes) -> None:
    (good / "training_state.json").write_bytes(content)
    assert "training_state.json" in only(verify(good), "SLA301").message


def test_sla301_an_interrupted_pull_is_an_error_until_it_has_finished(good: Path) -> None:
    staging = good / ".sla_ckpt_pull"
    staging.mkdir()
    assert "SLA301" not in codes(verify(good), "error")
    (staging / "placing").write_text("sla_attention.pt")
    found = only(verify(good), "SLA301")
    assert found.level == "error"
    assert "a pull was interrupted" in found.message
    assert found.help is not None and "pull" in found.help
