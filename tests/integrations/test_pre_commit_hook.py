"""The pre-commit hook, run by the real pre-commit from .pre-commit-hooks.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hatchling
import pytest
import yaml

from tests import factories

ROOT = Path(__file__).parents[2]
SHIPPED = (".pre-commit-hooks.yaml", "pyproject.toml", "README.md", "LICENSE")


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of this project, as pre-commit would clone it."""
    folder = tmp_path_factory.mktemp("sla-ckpt")
    for name in SHIPPED:
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(
        ROOT / "sla_ckpt", folder / "sla_ckpt", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("docs/rules", "man"):
        shutil.copytree(ROOT / name, folder / name)
    return repository(folder)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository of models, as a user keeps it."""
    folder = tmp_path / "my models"
    folder.mkdir()
    factories.write_full_checkpoint(folder / "flux" / "checkpoint-500")
    factories.write_full_checkpoint(folder / "wan")
    (folder / "notes.txt").write_text("nothing\n")
    return repository(folder)


def pre_commit(
    models: Path, cache: Path, *args: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", *args],
        cwd=models,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**clean, "PATH": path, "PRE_COMMIT_HOME": str(cache), **(env or {})},
    )


def configure(models: Path, hooks: Path, **hook: object) -> None:
    repo = {
        "repo": str(hooks),
        "rev": git(hooks, "rev-parse", "HEAD"),
        "hooks": [{"id": "sla-ckpt-verify", **hook}],
    }
    (models / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [repo]}))
    git(models, "add", ".pre-commit-config.yaml")
    git(models, "commit", "--quiet", "--message", "hook")


def test_the_manifest_is_valid(hooks: Path) -> None:
    done = pre_commit(ROOT, hooks, "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_commit_that_breaks_a_checkpoint_is_stopped(
    models: Path, hooks: Path, tmp_path: Path
) -> None:
    """With `language: system`, which uses the sla-ckpt of the environment."""
    configure(models, hooks, language="system")
    cache = tmp_path / "cache"
    (models / "notes.txt").write_text("something\n")
    git(models, "add", "--all")
    assert "Skipped" in pre_commit(models, cache, "run").stdout

    folder = models / "flux" / "checkpoint-500"
    (folder / "sla_attention.pt").unlink()
    (folder / "transformer" / "config.json").write_text("{}")
    (models / "wan" / "sla_attention.pt").touch()
    git(models, "add", "--all")
    stopped = pre_commit(models, cache, "run")
    assert stopped.returncode == 1
    assert stopped.stdout.count("SLA001") == 1, "the checkpoint is looked at once"
    assert "flux/checkpoint-500" in stopped.stdout
    assert "wan" not in stopped.stdout, "it did not change"

    every = pre_commit(models, cache, "run", "--all-files")
    assert every.returncode == 1 and "Failed" in every.stdout
    factories.write_full_checkpoint(folder)
    git(models, "add", "--all")
    good = pre_commit(models, cache, "run", "--all-files")
    assert good.returncode == 0 and "Passed" in good.stdout, good.stdout


@pytest.mark.slow
def test_pre_commit_installs_the_hook_by_itself(models: Path, hooks: Path, tmp_path: Path) -> None:
    """`language: python`: pre-commit makes an environment and installs this project into it.

    Without network: build backend and dependencies come from the environment that runs the test.
    """
    configure(models, hooks, args=["--strict"])
    env = {
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: no isolation
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": str(Path(hatchling.__file__).parents[1]),
    }
    done = pre_commit(models, tmp_path / "cache", "run", "--all-files", env=env)
    assert done.returncode == 0 and "Passed" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "cache").glob("*/py_env-*/bin/sla-ckpt")), "it has its own command"
