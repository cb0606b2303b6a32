"""Options and variables as people know them from `hf`, against the loopback Hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sla_ckpt.cli.main import main
from tests import factories
from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"

#: Options of `hf upload` and `hf download` that have no counterpart, and why.
WITHOUT_COUNTERPART = {
    "--delete": "push removes only weights that others replace",
    "--every": "the trainer's hook pushes after each save",
    "--cache-dir": "pull fills a folder that a trainer resumes from, no cache",
    "--force-download": "pull compares hashes; --force replaces files that differ",
    "--max-workers": "chosen by pull",
    "--no-truncate": "nothing is truncated",
    "--no-create-pr": "the default",
    "--no-private": "--public",
    "--no-force-download": "the default",
    "--no-dry-run": "the default",
    "--help": "of every command",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path) -> Runner:
    (tmp_path / "home").mkdir()
    return Runner(tmp_path / "home")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path / "checkpoint-500")


def options(command: str) -> set[str]:
    found = main.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    return {name for item in found.params for name in (*item.opts, *item.secondary_opts)}


@pytest.mark.parametrize(("theirs", "ours"), [("upload", "push"), ("download", "pull")])
def test_every_option_of_hf_is_ours_or_has_a_reason(theirs: str, ours: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hf", theirs, "--help"],
        capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines()]
    heads = " ".join(line.split("  ")[0] for line in lines if line.startswith("-"))
    known = set(re.findall(r"--[a-z][a-z-]+", heads))
    assert {"--revision", "--include", "--token", "--json"} <= known, "the help is read"
    assert known - options(ours) - set(WITHOUT_COUNTERPART) == set()


def test_a_push_as_people_upload_works(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    done = cli(
        "push", REPO, checkpoint, "--repo-type", "model", "--private", "--exclude", "*.txt",
        "--commit-message=Epoch 34/50", "--commit-description=Val accuracy: 68%", "--json",
        hub=hub,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    commit = hub.commits(REPO)[0]
    assert (commit.title, commit.message) == ("Epoch 34/50", "Val accuracy: 68%")
    assert hub.is_private(REPO)
    wrong = cli("push", REPO, checkpoint, "--repo-type", "dataset", hub=hub)
    assert wrong.returncode == 2 and "model repositories" in wrong.stderr


def test_a_pull_as_people_download_works(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    assert cli("push", REPO, checkpoint, hub=hub).returncode == 0
    target = tmp_path / "here"
    args = ("pull", REPO, "--type=model", "--revision", "main", "--local-dir", target)
    assert cli(*args, hub=hub).returncode == 0
    assert (target / "sla_attention.pt").is_file()
    both = cli("pull", REPO, target, "--local-dir", target, hub=hub)
    assert both.returncode == 2 and "name one of them" in both.stderr


def test_verify_and_inspect_take_a_revision(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    assert cli("push", REPO, checkpoint, hub=hub).returncode == 0
    first = hub.commits(REPO)[0].id
    hub.add_files(REPO, {"sla_attention.pt": None, "sla_attention.safetensors": None})
    assert cli("verify", REPO, hub=hub).returncode == 1
    old = cli("verify", REPO, "--revision", first, "--json", hub=hub)
    assert old.returncode == 0
    assert json.loads(old.stdout)["target"] == f"{REPO}@{first}"
    assert cli("inspect", REPO, "--revision", first, hub=hub).returncode == 0
    twice = cli("verify", f"{REPO}@main", "--revision", first, hub=hub)
    assert twice.returncode == 2 and "names a revision" in twice.stderr
    local = cli("verify", checkpoint, "--revision", "main", hub=hub)
    assert local.returncode == 2 and "is for Hub repositories" in local.stderr


def test_offline_mode_is_said_in_one_line_and_local_work_goes_on(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    env = {"HF_HUB_OFFLINE": "1"}
    assert cli("verify", checkpoint, hub=hub, env=env).returncode == 0
    for args in (("verify", REPO), ("push", REPO, checkpoint)):
        done = cli(*args, hub=hub, env=env)
        assert done.returncode == 2, args
        assert "offline mode is on" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert hub.requests == []
