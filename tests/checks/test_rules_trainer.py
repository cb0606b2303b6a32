"""SLA304 to SLA306 and SLA308: what stops the training from going on."""

from __future__ import annotations

import json
from pathlib import Path

from sla_ckpt import VerifyOptions, verify
from tests import factories
from tests.checks.reports import codes, only

DATA = factories.DATA


def test_sla304_depends_on_the_purpose() -> None:
    """Public report 14: trainer state that a fresh process refuses."""
    trap = DATA / "checkpoints/optimizer_trap/checkpoint-3"
    assert only(verify(trap), "SLA304").level == "warning"
    assert only(verify(trap, VerifyOptions(purpose="resume")), "SLA304").level == "error"
    assert "SLA304" not in codes(verify(trap, VerifyOptions(purpose="inference")))


def test_sla305_when_the_configuration_uses_another_attention(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('attention_mechanism = "diffusers"\n')
    finding = only(verify(good, VerifyOptions(config=config)), "SLA305")
    assert "attention_mechanism diffusers" in finding.message


def test_sla306_when_the_manifest_lacks_the_file(good: Path) -> None:
    manifest = json.loads((good / "checkpoint_manifest.json").read_text())
    manifest["files"].remove("sla_attention.pt")
    (good / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    assert only(verify(good), "SLA306").fixable


def test_sla308_names_the_optimizer(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"attention_mechanism": "sla", "optimizer": "adamw_bf16"}')
    assert "adamw_bf16" in only(verify(good, VerifyOptions(config=config)), "SLA308").message
