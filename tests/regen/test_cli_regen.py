"""``sla-ckpt regen``: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.cli.main import run
from sla_ckpt.formats.twin import write_state
from sla_ckpt.state import STATE_FILE
from tests.regen.lost_state import make_calls, make_lost_checkpoint, true_state
from tests.regen.tiny_models import hashes

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calls(tmp_path_factory.mktemp("calls") / "calls.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_lost_checkpoint(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        run(["regen", *map(str, args)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def cpu(calls: Path, *more: object) -> list[object]:
    return ["--device", "cpu", "--inputs", calls, "--topk", "0.5", "--evaluations", "6", *more]


def test_regen_reports_before_and_after(
    checkpoint: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, checkpoint, *cpu(calls))
    assert code == 0
    assert (checkpoint / STATE_FILE).is_file()
    for text in (
        "held-out loss",
        "attention error 16:bf16, 2 layers",
        "worst layer",
        "the backbone was not adapted",
        "kernel reference",
        "seed 0",
        "time ",
        "verify      no errors",
        f"written     {checkpoint / STATE_FILE}",
    ):
        assert text in out
    stages = [line.split()[0] for line in err.splitlines() if line.endswith("…")]
    assert stages[:1] == ["import"]
    assert {"load", "samples", "calibrate", "train", "judge", "write", "verify"} <= set(stages)


def test_the_output_directory_means_its_newest_checkpoint(
    checkpoint: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = call(capsys, checkpoint.parent, *cpu(calls, "-q"))
    assert code == 0
    assert (checkpoint / STATE_FILE).is_file()


def test_json_is_one_document_with_the_whole_result(
    checkpoint: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, checkpoint, *cpu(calls, "--format", "json", "--seed", "3"))
    report: dict[str, Any] = json.loads(out)
    assert code == 0
    assert report["schema"] == 1
    assert report["ok"] is True
    assert report["options"]["seed"] == 3
    assert report["passes"][0]["pairs"][0]["pair"] == "16:bf16"
    assert report["passes"][0]["after"] < report["passes"][0]["before"]
    assert report["written"] == str(checkpoint / STATE_FILE)
    assert {"import", "load", "calibrate", "train", "judge", "write"} <= set(report["seconds"])


def test_exit_code_1_and_no_change_when_nothing_is_better(
    checkpoint: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state(checkpoint, true_state())
    before = hashes(checkpoint)
    code, out, _ = call(capsys, checkpoint, *cpu(calls, "--method", "calibrate"))
    assert code == 1
    assert "not written: nothing beat what is there" in out
    assert hashes(checkpoint) == before


def test_quiet_leaves_only_the_result(
    checkpoint: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = call(capsys, checkpoint, *cpu(calls, "--quiet", "--dry-run"))
    assert out
    assert "…" not in err
    assert not (checkpoint / STATE_FILE).exists()


def test_made_up_samples_are_warned_about_on_stderr(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(
        capsys,
        *(checkpoint, "--device", "cpu", "--samples", 1, "--tokens", 100, "--topk", 0.5),
        *("--draws", 2, "--evaluations", 3, "--sla-config", "{'blkq': 64, 'blkk': 64}"),
    )
    assert code in (0, 1)
    assert "NOT confirmed" in err
    assert "made-up samples" in out


def test_plot_draws_a_picture(
    checkpoint: Path, calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "regen.png"
    code, _, _ = call(capsys, checkpoint, *cpu(calls, "--plot", picture, "--dry-run"))
    assert code == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "big"], "not WxH"),
        (["--sla-config", "nonsense"], "neither JSON nor a Python dict"),
        (["--topk", "1.5"], "not in (0, 1]"),
        (["--lr", "0.1"], "belongs to --optimizer adamw"),
        (["--device", "toaster"], "not a device"),
        (["--data", "nowhere"], "nowhere"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_wrong_options_are_one_line_with_the_next_step(
    checkpoint: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = call(capsys, checkpoint, "--device", "cpu", *arguments)
    assert code == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_without_cuda_the_error_names_device_cpu(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, checkpoint)
    assert code == 2
    assert "no CUDA device" in err
    assert "--device cpu" in err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_the_checkpoint_is_as_it_was(
    checkpoint: Path, calls: Path, sent: signal.Signals, code: int
) -> None:
    write_state(checkpoint, true_state(seed=99))
    before = hashes(checkpoint)
    command = [sys.executable, "-m", "sla_ckpt", "regen", str(checkpoint)]
    command += map(str, cpu(calls, "--steps", "500"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train"):
            process.send_signal(sent)
            break
    process.stderr.read()
    assert process.wait(60) == code
    process.stderr.close()
    after = hashes(checkpoint)
    after.pop(".sla_ckpt.lock", None)
    assert after == before
