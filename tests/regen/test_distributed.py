"""Two gloo processes give what one gives, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sla_ckpt.errors import RegenError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.regen.distributed import Group, process_group
from sla_ckpt.regen.engine import regenerate
from sla_ckpt.regen.options import RegenOptions
from sla_ckpt.state import STATE_FILE
from tests.regen.lost_state import KEY, SETTINGS, make_calls, make_lost_checkpoint
from tests.regen.sample_makers import make_cache

torch.set_num_threads(1)
EVALUATIONS = 4


def run(checkpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "-m", "sla_ckpt", "regen", str(checkpoint)),
        *("--device", "cpu", "--format", "json"),
        *("--topk", str(SETTINGS.topk), "--evaluations", str(EVALUATIONS), *options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    calls = make_calls(tmp_path / "calls.safetensors", count=5)
    alone, together = (make_lost_checkpoint(tmp_path / name) for name in ("one", "two"))
    options = RegenOptions(device="cpu", settings=SETTINGS, inputs=calls, evaluations=EVALUATIONS)
    expected = regenerate(alone, options)
    done = run(together, "--inputs", str(calls))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)  # one process reports, so this is one document
    assert report["options"]["processes"] == 2
    assert report["device"] == "2 × cpu"
    item = report["passes"][0]
    assert item["before"] == pytest.approx(expected.passes[0].before, rel=1e-9)
    assert item["after"] == pytest.approx(expected.passes[0].after, rel=1e-3)
    assert item["calls"] != ""
    one, two = (read_state(path / STATE_FILE).pairs[KEY] for path in (alone, together))
    np.testing.assert_allclose(two.weight, one.weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(two.bias, one.bias, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_anneal_as_one_does(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", count=5)
    checkpoint = make_lost_checkpoint(tmp_path / "lost")
    options = RegenOptions(
        device="cpu",
        settings=SETTINGS,
        data=tmp_path / "cache",
        evaluations=EVALUATIONS,
        draws=4,
        dry_run=True,
    )
    expected = regenerate(checkpoint, options).passes[0]
    done = run(checkpoint, "--data", str(tmp_path / "cache"), "--draws", "4", "--dry-run")
    assert done.returncode == (0 if expected.after < expected.before else 1), done.stderr[-2000:]
    item = json.loads(done.stdout)["passes"][0]
    assert item["before"] == pytest.approx(expected.before, rel=1e-6)
    for name, losses in expected.train_losses.items():
        assert item["train_losses"][name] == pytest.approx(list(losses), rel=1e-3)


def test_shares_cover_everything_once() -> None:
    items = "abcdefg"
    shares = [Group(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(enumerate(items))


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as group:
        assert group == Group()
        assert group.sum(torch.tensor([1.5])).tolist() == [1.5]
        assert group.gather("x") == ["x"]


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RegenError, match="2 processes cannot be joined"), process_group("cpu"):
        pass
