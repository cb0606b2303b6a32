"""All files of a migration change, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import LockedError, WriteError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.fsio import directory_lock
from sla_ckpt.migrate import apply_plan, finish_interrupted, migrate, plan_migration
from sla_ckpt.migrate.transaction import STAGING
from tests.formats.zip_builders import STATES
from tests.migrate.states import OPTIONS, broken_checkpoint, contents


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
