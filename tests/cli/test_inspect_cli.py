"""sla-ckpt inspect: the numbers are right and the picture is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sla_ckpt import SLAState, encode_state
from sla_ckpt.cli.inspect import command
from sla_ckpt.formats.twin import write_state
from sla_ckpt.state import PairKey, ProjectionTensors
from tests import factories


def rank_two(head_dim: int) -> ProjectionTensors:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(head_dim, 2)) @ rng.normal(size=(2, head_dim))
    return ProjectionTensors(weight.astype(np.float32), np.ones(head_dim, np.float32))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-7")
    pairs = {
        PairKey(128, "bf16"): rank_two(128),
        PairKey(64, "fp16"): ProjectionTensors.zeros(64),
    }
    write_state(folder, SLAState(pairs, origin={"tool": "test", "sla_variant": "main"}))
    return folder


def test_json_has_norms_rank_zeros_and_origin(checkpoint: Path) -> None:
    result = CliRunner().invoke(command, [str(checkpoint), "--format", "json"])
    value = json.loads(result.stdout)
    trained, zero = value["pairs"]
    weight = rank_two(128).weight.astype(np.float64)
    assert trained["rank"] == 2
    assert trained["norm"] == pytest.approx(np.linalg.norm(weight))
    assert trained["bias_norm"] == pytest.approx(np.sqrt(128))
    assert trained["spectral_norm"] == pytest.approx(np.linalg.norm(weight, 2))
    assert trained["trained"] and trained["zeros"] == 0
    assert not zero["trained"] and zero["zeros"] == 1 and zero["stray"]
    assert value["origin"] == {"tool": "test", "sla_variant": "main"}
    assert value["settings"]["topk"] == 0.2
    assert value["expected"] == ["128:bf16"]


def test_text_says_what_was_never_trained(checkpoint: Path) -> None:
    text = CliRunner().invoke(command, [str(checkpoint)]).stdout
    assert "128:bf16" in text and "rank 2/128" in text
    assert "all zero, never trained" in text


def test_plot_draws_a_png_and_an_svg(checkpoint: Path, tmp_path: Path) -> None:
    png = tmp_path / "state.png"
    assert CliRunner().invoke(command, [str(checkpoint), "--plot", str(png)]).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = tmp_path / "state.svg"
    assert CliRunner().invoke(command, [str(checkpoint), "--plot", str(svg)]).exit_code == 0
    assert b"<svg" in svg.read_bytes()
    from sla_ckpt.errors import UsageError

    wrong = CliRunner().invoke(command, [str(checkpoint), "--plot", str(tmp_path / "x.docx")])
    assert isinstance(wrong.exception, UsageError)


def test_a_state_with_nan_is_described_and_drawn(tmp_path: Path) -> None:
    weight = factories.projection(16).weight.copy()
    weight[0, 0] = np.nan
    tensors = ProjectionTensors(weight, np.zeros(16, np.float32))
    path = tmp_path / "sla_attention.pt"
    path.write_bytes(encode_state(SLAState({PairKey(16, "bf16"): tensors})))
    result = CliRunner().invoke(command, [str(path), "--plot", str(tmp_path / "nan.png")])
    assert result.exit_code == 0
    assert "NaN or Inf" in result.stdout
