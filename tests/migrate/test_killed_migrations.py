"""A migration that is killed leaves all or nothing, and the next run finishes it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import WriteError
from sla_ckpt.migrate import finish_interrupted, migrate
from sla_ckpt.migrate.transaction import STAGING
from tests.formats.zip_builders import STATES
from tests.migrate.states import OPTIONS, broken_checkpoint, contents


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The contents before and after a whole migration."""
    folder = broken_checkpoint(tmp_path_factory.mktemp("whole") / "c")
    before = contents(folder)
    migrate(folder, OPTIONS)
    after = contents(folder)
    assert before.keys() < after.keys()
    assert all(before[name] != after[name] for name in before)
    return before, after


KILLER = """
import os, signal, sys
from pathlib import Path
calls = 0
def counted(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
from sla_ckpt.migrate import MigrateOptions, migrate
for owner, name in ((os, "fsync"), (os, "replace"), (os, "link"), (Path, "replace"),
                    (Path, "unlink"), (Path, "mkdir"), (Path, "write_bytes")):
    setattr(owner, name, counted(getattr(owner, name)))
migrate(sys.argv[1], MigrateOptions(to="safetensors"))
print("calls", calls)
"""


def run_killed(folder: Path, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLER, str(folder), str(at)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migration that died when it had decided, and before it had replaced anything."""
    root = tmp_path_factory.mktemp("killed")
    for at in range(10, 60):
        folder = broken_checkpoint(root / f"at{at}")
        assert run_killed(folder, at).returncode == -signal.SIGKILL
        if (folder / STAGING / "journal.json").is_file():
            return folder
    pytest.fail("the journal was never seen")


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "c", copy_function=shutil.copy2)
    return tmp_path / "c"


@pytest.mark.slow
def test_kill_at_any_point_leaves_all_or_nothing(
    tmp_path: Path, both: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    before, after = both
    whole = run_killed(broken_checkpoint(tmp_path / "count"), 0)
    assert whole.returncode == 0, whole.stderr
    total = int(whole.stdout.split()[-1])
    assert total > 15
    seen = set()
    for at in range(1, total + 1):
        folder = broken_checkpoint(tmp_path / f"at{at}")
        done = run_killed(folder, at)
        assert done.returncode == -signal.SIGKILL, done.stderr
        # Each file by itself is always the old one or the new one.
        for name, data in contents(folder).items():
            assert data in (before.get(name), after.get(name))
        finish_interrupted(folder)
        now = contents(folder)
        assert now in (before, after)
        seen.add(now == after)
        assert not (folder / STAGING).exists()
        migrate(folder, OPTIONS)
        assert contents(folder) == after
        assert migrate(folder, OPTIONS).plan.is_empty
    assert seen == {True, False}


def test_verify_fix_finishes_what_was_interrupted(
    interrupted: Path, both: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    from sla_ckpt.checks.context import VerifyOptions
    from sla_ckpt.migrate.verify_fix import verify_and_fix

    _, after = both
    folder = interrupted
    notes: list[str] = []
    list(verify_and_fix([str(folder)], VerifyOptions(), note=notes.append))
    assert contents(folder) == after
    assert any("finished an interrupted migration" in note for note in notes)


def test_what_was_written_after_the_kill_is_not_overwritten(interrupted: Path) -> None:
    folder = interrupted
    newer = (STATES / "three_pairs" / "sla_attention.pt").read_bytes()
    (folder / "sla_attention.pt").unlink()
    (folder / "sla_attention.pt").write_bytes(newer)
    before = contents(folder)
    assert finish_interrupted(folder) == ()
    assert contents(folder) == before
    assert not (folder / STAGING).exists()


def test_verify_says_that_a_migration_was_interrupted(interrupted: Path) -> None:
    from sla_ckpt.checks.verify import verify

    journal = f"{STAGING}/journal.json"
    (found,) = [f for f in verify(interrupted).findings if f.path == journal]
    assert (found.code, found.level) == ("SLA301", "error")
    assert found.help is not None and "verify --fix" in found.help
    finish_interrupted(interrupted)
    assert not [f for f in verify(interrupted).findings if f.path == journal]


def test_an_error_while_finishing_keeps_the_journal(
    interrupted: Path,
    both: tuple[dict[str, bytes], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, after = both
    folder = interrupted
    real, calls = Path.replace, 0

    def failing(self: Path, target: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(WriteError, match="Input/output"):
        finish_interrupted(folder)
    monkeypatch.undo()
    finish_interrupted(folder)
    assert contents(folder) == after
