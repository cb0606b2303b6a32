"""What the tests of the rules ask of a report, and changes to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from sla_ckpt import SLAState, encode_state
from sla_ckpt.checks.report import Finding, Report


def codes(report: Report, level: str | None = None) -> list[str]:
    return [f.code for f in report.findings if level is None or f.level == level]


def only(report: Report, code: str) -> Finding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, report.findings
    return found[0]


def rewrite(checkpoint: Path, saved: SLAState) -> None:
    (checkpoint / "sla_attention.pt").write_bytes(encode_state(saved))


def weights_of(checkpoint: Path) -> Path:
    return checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
