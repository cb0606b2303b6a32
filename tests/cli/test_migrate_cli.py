"""``sla-ckpt migrate`` from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from sla_ckpt.cli.migrate import command
from sla_ckpt.errors import MigrationError
from sla_ckpt.formats.simpletuner import read_state
from tests.formats.zip_builders import GOOD_STATE, STATES
from tests.migrate.layout_files import layer_tensors, save_pth


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        command, [str(item) for item in arguments], standalone_mode=False, catch_exceptions=False
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    shutil.copy(STATES / "wrong/tie_missing/sla_attention.pt", folder)
    return folder


def test_a_dry_run_shows_each_step_and_writes_nothing(broken: Path) -> None:
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    result = run(broken, "--dry-run")
    assert result.return_value == 0
    assert "settings completed" in result.output
    assert "no tie_feature_map_qk -> topk=0.2" in result.output
    assert "[SLA101]" in result.output
    assert "nothing was written" in result.output
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == before


def test_the_run_says_what_it_wrote_and_kept(broken: Path) -> None:
    result = run(broken)
    assert result.return_value == 0
    assert "wrote sla_attention.pt" in result.output
    assert "kept sla_attention.pt.bak-" in result.output
    assert (broken / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()
    assert "nothing to do" in run(broken).output


def test_json_is_machine_readable(broken: Path) -> None:
    value = json.loads(run(broken, "--format", "json", "--dry-run").stdout)
    assert value["schema"] == 1
    assert value["dry_run"] is True
    assert value["steps"][0]["code"] == "SLA101"
    assert value["writes"] == ["sla_attention.pt"]
    assert value["written"] == value["backups"] == []
    value = json.loads(run(broken, "--format", "json").stdout)
    assert [Path(path).name for path in value["written"]] == ["sla_attention.pt"]
    assert len(value["backups"]) == 1


def test_what_cannot_be_repaired_is_said_with_the_way_out(tmp_path: Path) -> None:
    shutil.copy(STATES / "wrong/missing_bias/sla_attention.pt", tmp_path)
    result = run(tmp_path)
    assert result.return_value == 1
    assert "left SLA208" in result.output
    assert "sla-ckpt regen" in result.output


def test_an_output_directory_means_its_newest_checkpoint(broken: Path) -> None:
    older = broken.with_name("checkpoint-1")
    shutil.copytree(broken, older)
    result = run(broken.parent)
    assert "checkpoint-5" in result.output
    assert read_state(older / "sla_attention.pt")
    assert (older / "sla_attention.pt").read_bytes() != GOOD_STATE.read_bytes()


def test_a_foreign_file_is_detected_and_converted(tmp_path: Path) -> None:
    source = save_pth(tmp_path / "TurboWan.pth", {"state_dict": layer_tensors("turbodiffusion")})
    result = run(source)
    assert result.return_value == 0
    assert "TurboDiffusion, per layer (3 layers)" in result.output
    assert "warning:" in result.stderr
    assert read_state(tmp_path / "sla_attention.pt")


def test_layers_that_differ_need_an_explicit_reduction(tmp_path: Path) -> None:
    source = save_pth(tmp_path / "model.pth", layer_tensors("sglang", equal=False))
    with pytest.raises(MigrationError, match="different projections"):
        run(source)
    assert run(source, "--reduce", "mean", "--topk", "0.1").return_value == 0


def test_options_that_lose_something_have_their_own_heading() -> None:
    _, _, lossy = run("--help").output.partition("Options that lose something:")
    assert all(name in lossy for name in ("--reduce", "--overwrite", "--drop-strays"))
    assert "--dry-run" not in lossy


def test_a_state_is_written_per_layer(tmp_path: Path) -> None:
    target = tmp_path / "sla.pth"
    result = run(GOOD_STATE, "--to", "turbodiffusion", "--layers", 3, "-o", target)
    assert result.return_value == 0
    assert len(torch.load(target, weights_only=True)) == 6


def test_the_real_command_exits_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"")
    for arguments, words in (
        ([str(tmp_path / "absent")], "absent"),
        ([str(tmp_path / "model.pth")], "is empty"),
        (["--pair", "x", str(tmp_path)], "not a pair"),
        (["--to", "nothing", str(tmp_path)], "--to"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sla_ckpt", "migrate", *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_repairing_a_state_does_not_import_torch(broken: Path) -> None:
    code = (
        "import sys; from sla_ckpt.migrate import migrate; migrate(sys.argv[1]);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(broken)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
