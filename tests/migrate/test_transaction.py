"""All files of a migration change, or none; also when the process is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import LockedError, WriteError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.fsio import directory_lock
from sla_ckpt.migrate import MigrateOptions, apply_plan, finish_interrupted, migrate, plan_migration
from sla_ckpt.migrate.transaction import STAGING
from tests.formats.zip_builders import STATES

OPTIONS = MigrateOptions(to="safetensors")


def broken_checkpoint(folder: Path) -> Path:
    """Three files change: the state, a new twin, the manifest."""
    folder.mkdir()
    shutil.copy(STATES / "wrong/tie_missing/sla_attention.pt", folder)
    manifest = {"version": 1, "files": ["a"]}
    (folder / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What a trainer sees: everything but backups and our own working files."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and ".bak-" not in path.name and not path.name.startswith(".sla_ckpt")
    }


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


def test_a_full_disk_in_the_middle_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fail_at in range(1, 8):
        folder = broken_checkpoint(tmp_path / f"c{fail_at}")
        before = contents(folder)
        original, count = Path.replace, 0

        def failing(self: Path, target: Any, at: int = fail_at, real: Any = original) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(28, "No space left on device")
            return real(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        if count_of_moves(folder) < fail_at:
            monkeypatch.undo()
            break
        with pytest.raises(WriteError, match="No space left"):
            migrate(folder, OPTIONS)
        monkeypatch.undo()
        assert contents(folder) == before
        assert not [path for path in folder.iterdir() if path.name.startswith(STAGING)]
    else:
        pytest.fail("more moves than there are files")


def count_of_moves(folder: Path) -> int:
    return len(plan_migration(folder, OPTIONS).changes)


def test_a_failure_while_staging_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left") as caught:
        migrate(folder, OPTIONS)
    assert caught.value.hint
    assert contents(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


def test_what_reads_back_differently_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)
    original = Path.write_bytes

    def flipping(self: Path, data: bytes) -> int:
        return original(self, data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(Path, "write_bytes", flipping)
    with pytest.raises(WriteError, match="reads back differently"):
        migrate(folder, OPTIONS)
    assert contents(folder) == before


def test_a_file_that_changed_after_planning_is_not_overwritten(tmp_path: Path) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    plan = plan_migration(folder, OPTIONS)
    newer = STATES / "three_pairs" / "sla_attention.pt"
    shutil.copy(newer, folder)
    with pytest.raises(WriteError, match="changed while its migration was planned"):
        apply_plan(plan)
    assert (folder / "sla_attention.pt").read_bytes() == newer.read_bytes()


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)
    with directory_lock(folder), pytest.raises(LockedError):
        migrate(folder, OPTIONS)
    assert contents(folder) == before


def test_a_read_only_checkpoint_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)

    def refused(*args: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    # Permission bits do not stop root, so the system call itself refuses here.
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(WriteError, match="Permission denied"):
        migrate(folder, OPTIONS)
    assert contents(folder) == before


def test_backups_never_overwrite_each_other(tmp_path: Path) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    original = (folder / "sla_attention.pt").read_bytes()
    for _ in range(3):
        (folder / "sla_attention.pt").write_bytes(original)
        migrate(folder, OPTIONS)
    backups = [path for path in folder.iterdir() if path.name.startswith("sla_attention.pt.bak-")]
    assert [path.read_bytes() for path in backups] == [original] * 3


def test_permissions_are_kept(tmp_path: Path) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    (folder / "sla_attention.pt").chmod(0o640)
    migrate(folder, OPTIONS)
    assert (folder / "sla_attention.pt").stat().st_mode & 0o777 == 0o640


def test_a_foreign_journal_cannot_point_outside(tmp_path: Path) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    victim = tmp_path / "victim"
    victim.write_text("safe")
    staging = folder / STAGING
    staging.mkdir()
    (staging / "evil").write_text("evil")
    for target in ("../victim", str(victim)):
        staging.mkdir(exist_ok=True)
        (staging / "evil").write_text("evil")
        move = {"staged": "evil", "target": target, "backup": None}
        (staging / "journal.json").write_text(json.dumps({"version": 1, "moves": [move]}))
        finish_interrupted(folder)
        assert victim.read_text() == "safe"
    assert read_state(folder / "sla_attention.pt")


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


def test_ctrl_c_between_two_files_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)
    real, calls = Path.replace, 0

    def interrupted(self: Path, target: Any) -> Any:
        nonlocal calls
        calls += "journal" not in str(target)
        if calls == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        migrate(folder, OPTIONS)
    monkeypatch.undo()
    assert contents(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


def test_a_backup_that_cannot_be_made_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither linked nor copied: the disk is full where files cannot be linked."""
    folder = broken_checkpoint(tmp_path / "c")
    before = contents(folder)

    def refused(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", refused)
    monkeypatch.setattr(shutil, "copyfileobj", refused)
    with pytest.raises(WriteError, match="No space left"):
        migrate(folder, OPTIONS)
    monkeypatch.undo()
    assert contents(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)
