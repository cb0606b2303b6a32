"""Files are replaced whole or not at all, and what killed writers left goes away."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt import fsio
from sla_ckpt.errors import LockedError, WriteError
from sla_ckpt.fsio import LOCK_NAME, atomic_write, backup, directory_lock, staged_file


def test_the_old_file_stays_until_the_new_one_is_placed(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with staged_file(target, b"new") as staged:
        assert target.read_bytes() == b"old"
        staged.place()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_staged_file_that_is_not_placed_disappears(tmp_path: Path) -> None:
    with staged_file(tmp_path / "state", b"new"):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def full(handle: Any) -> None:
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "state").write_bytes(b"old")
    with pytest.raises(WriteError, match="No space left") as caught:
        atomic_write(tmp_path / "state", full)
    assert caught.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"state": b"old"}


def test_a_link_is_replaced_and_what_it_points_to_is_not_touched(tmp_path: Path) -> None:
    blob, link, second = tmp_path / "blob", tmp_path / "state", tmp_path / "second"
    blob.write_bytes(b"cached")
    link.symlink_to("blob")
    atomic_write(link, b"new")
    assert blob.read_bytes() == b"cached" and link.read_bytes() == b"new" and not link.is_symlink()
    os.link(blob, second)
    atomic_write(second, b"new")
    assert blob.read_bytes() == b"cached"


def test_the_lock_removes_what_killed_writers_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sla_ckpt.fsio import staged_file\n"
        "with staged_file(Path(sys.argv[1]) / 'state', b'half'):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(".sla_ckpt-*.tmp"))) == 1
    with directory_lock(tmp_path):
        assert not list(tmp_path.glob(".sla_ckpt-*.tmp"))


def test_the_lock_leaves_the_files_of_living_writers(tmp_path: Path) -> None:
    with staged_file(tmp_path / "plot.png", b"whole") as staged:
        with directory_lock(tmp_path):
            pass
        staged.place()
    assert (tmp_path / "plot.png").read_bytes() == b"whole"


def test_the_lock_is_not_made_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(elsewhere)
    with pytest.raises(WriteError, match="cannot lock"), directory_lock(folder):
        pass
    assert not elsewhere.exists()


def test_a_held_lock_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    with directory_lock(tmp_path):
        with pytest.raises(LockedError), directory_lock(tmp_path):
            pass
        with pytest.raises(LockedError), directory_lock(tmp_path, timeout=0.1):
            pass
    with directory_lock(tmp_path):
        pass


def test_many_writers_hold_the_lock_one_at_a_time(tmp_path: Path) -> None:
    holders, most = 0, 0

    def work() -> None:
        nonlocal holders, most
        with directory_lock(tmp_path, timeout=30):
            holders += 1
            most = max(most, holders)
            time.sleep(0.002)
            holders -= 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / LOCK_NAME).exists()


@pytest.mark.skipif(fsio.fcntl is None, reason="flock is POSIX")
def test_a_file_system_without_locks_still_takes_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    leftover = tmp_path / ".sla_ckpt-living.tmp"
    leftover.write_bytes(b"perhaps another machine is writing this")
    monkeypatch.setattr(fsio.fcntl, "flock", unsupported)
    with directory_lock(tmp_path):
        atomic_write(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    assert leftover.exists(), "without a lock nobody knows whether it is a leftover"


def test_backups_survive_a_clock_that_stands_or_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, real = tmp_path / "state", time.gmtime
    made = []
    for number, now in enumerate((1_700_003_600, 1_700_003_600, 1_700_000_000, 1_700_000_000, 1)):
        monkeypatch.setattr(time, "gmtime", lambda now=now: real(now))
        state.write_bytes(b"%d" % number)
        made.append(backup(state))
    assert [path and path.read_bytes() for path in made] == [b"0", b"1", b"2", b"3", b"4"]
    assert len(set(made)) == 5


def test_a_backup_of_a_link_holds_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"cached")
    (tmp_path / "state").symlink_to("blob")
    made = backup(tmp_path / "state")
    assert made is not None and made.read_bytes() == b"cached" and not made.is_symlink()
    assert backup(tmp_path / "absent") is None


def test_a_file_that_is_placed_but_not_synced_is_not_called_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_bytes(b"old")

    def broken(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fsio, "fsync_directory", broken)
    with pytest.raises(
        WriteError, match="is written, but its folder could not be synced"
    ) as caught:
        atomic_write(tmp_path / "state", b"new")
    assert "untouched" not in str(caught.value.hint)
    assert (tmp_path / "state").read_bytes() == b"new"
