"""Replace several files of a checkpoint together: all of them or none.

1. The new files are written into ``.sla_ckpt-migrate/``, fsynced and read back.
2. A journal that names every replacement is written there, atomically. Until then nothing
   outside that folder has changed, and a later run just removes the folder.
3. Each original gets a backup and is replaced by a rename.
4. The folder is removed.

A process killed after 2 leaves the journal; the next run finishes the replacement from it before
it does anything else, unless somebody has written one of the files since: those stay. An error in
3 (a full disk, Ctrl-C, …) puts the originals back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sla_ckpt.checkpoint.layout import MIGRATION_JOURNAL, MIGRATION_STAGING
from sla_ckpt.errors import WriteError
from sla_ckpt.fsio import atomic_write, directory_lock, fsync_directory
from sla_ckpt.migrate.plan import FileChange, Plan, fingerprint

STAGING = MIGRATION_STAGING
_JOURNAL = MIGRATION_JOURNAL
_JOURNAL_LIMIT = 1 << 20


@dataclass(frozen=True)
class Applied:
    """What a migration did.

    Attributes:
        written: The files that changed.
        backups: Copies of what they were.
    """

    written: tuple[Path, ...] = ()
    backups: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Move:
    staged: Path
    target: Path
    backup: Path | None
    seen: tuple[int, int] | None


def apply_plan(plan: Plan) -> Applied:
    """Carry a plan out.

    Args:
        plan: From :func:`~.repairs.plan_repairs` or :func:`~.convert.plan_conversion`.

    Returns:
        What was written; empty for an empty plan.

    Raises:
        LockedError: Another process is writing to this checkpoint.
        WriteError: Something could not be written or read back differently; nothing changed.
    """
    if plan.is_empty:
        return Applied()
    with directory_lock(plan.root):
        recover(plan.root)
        _refuse_changed(plan)
        staging = plan.root / STAGING
        try:
            moves = _stage(staging, plan.root, plan.changes)
            _write_journal(staging, moves)
        except BaseException:
            _remove(staging)
            raise
        try:
            _carry_out(moves)
        except BaseException:
            _put_back(moves)
            _remove(staging)
            raise
        _remove(staging)
    backups = tuple(move.backup for move in moves if move.backup is not None)
    return Applied(tuple(move.target for move in moves), backups)


def _refuse_changed(plan: Plan) -> None:
    for change in plan.changes:
        if fingerprint(plan.root / change.path) != change.seen:
            raise WriteError(
                f"{change.path} changed while its migration was planned; nothing was written",
                hint="run the command again",
                path=str(plan.root / change.path),
            )


def recover(root: Path) -> tuple[Path, ...]:
    """Finish or discard what an interrupted migration left; call with the lock held.

    Returns:
        The files whose replacement was finished; empty when there was nothing to do.

    Raises:
        WriteError: It cannot be finished.
    """
    staging = root / STAGING
    if staging.is_symlink():
        raise WriteError(
            f"{staging} is a link; working through it could damage what it points to",
            hint="remove the link, then run the command again",
            path=str(staging),
        )
    if not staging.is_dir():
        return ()
    waiting = [move for move in _read_journal(staging, root) if move.staged.exists()]
    if any(fingerprint(move.target) != move.seen for move in waiting):
        _forget_backups(waiting)
        waiting = []
    # An error leaves the journal: the next run tries again.
    _carry_out(waiting)
    _remove(staging)
    return tuple(move.target for move in waiting)


def _forget_backups(moves: Sequence[_Move]) -> None:
    """Remove backups that are still second names of the files themselves."""
    for move in moves:
        with contextlib.suppress(OSError):
            if move.backup is not None and move.backup.samefile(move.target):
                move.backup.unlink()


def _stage(staging: Path, root: Path, changes: Sequence[FileChange]) -> list[_Move]:
    moves = []
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        staging.mkdir()
        for number, change in enumerate(changes):
            target = root / change.path
            # The file keeps its name: torch.save derives the folder in its archive from it.
            staged = staging / str(number) / target.name
            staged.parent.mkdir()
            change.write(staged)
            change.check(staged)
            if target.exists():
                staged.chmod(target.stat().st_mode & 0o777)
            with staged.open("rb") as handle:
                os.fsync(handle.fileno())
            fsync_directory(staged.parent)
            moves.append(_Move(staged, target, _backup_name(target, stamp), change.seen))
        fsync_directory(staging)
        fsync_directory(root)
    except OSError as error:
        raise _failed(root, error) from error
    return moves


def _failed(root: Path, error: OSError) -> WriteError:
    return WriteError(
        f"cannot migrate {root}: {error.strerror or error}",
        hint="check free space and permissions; the old files are untouched",
        path=str(root),
    )


def _backup_name(target: Path, stamp: str) -> Path | None:
    if not os.path.lexists(target):
        return None
    for attempt in range(1000):
        suffix = f".bak-{stamp}" if attempt == 0 else f".bak-{stamp}-{attempt}"
        name = target.with_name(target.name + suffix)
        if not os.path.lexists(name):
            return name
    raise WriteError(f"cannot back up {target}: a thousand backups of this second exist")


def _write_journal(staging: Path, moves: Sequence[_Move]) -> None:
    entries = [
        {
            "staged": f"{move.staged.parent.name}/{move.staged.name}",
            "target": str(move.target.relative_to(staging.parent)),
            "backup": move.backup.name if move.backup else None,
            "seen": move.seen,
        }
        for move in moves
    ]
    atomic_write(staging / _JOURNAL, json.dumps({"version": 1, "moves": entries}).encode())


def _read_journal(staging: Path, root: Path) -> list[_Move]:
    """The moves to finish; none when the process died before it had decided."""
    journal = staging / _JOURNAL
    try:
        if not journal.is_file() or journal.stat().st_size > _JOURNAL_LIMIT:
            return []
        moves = []
        for entry in json.loads(journal.read_bytes())["moves"]:
            target = root / entry["target"]
            staged = staging / entry["staged"]
            # A journal is ours; all the same, it may not point out of the checkpoint.
            if not (_is_inside(entry["target"]) and _is_inside(entry["staged"])):
                return []
            backup = target.with_name(Path(entry["backup"]).name) if entry["backup"] else None
            seen = None if entry["seen"] is None else (entry["seen"][0], entry["seen"][1])
            moves.append(_Move(staged, target, backup, seen))
    except OSError as error:
        raise _failed(root, error) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []
    return moves


def _is_inside(relative: str) -> bool:
    path = Path(relative)
    return not path.is_absolute() and ".." not in path.parts


def _carry_out(moves: Sequence[_Move]) -> None:
    try:
        for move in moves:
            if move.backup is not None and not os.path.lexists(move.backup):
                _copy(move.target, move.backup)
            move.staged.replace(move.target)
            fsync_directory(move.target.parent)
    except OSError as error:
        raise _failed(moves[0].target.parent, error) from error


def _copy(target: Path, backup: Path) -> None:
    """Back a file up, without copying its bytes where the file system can link."""
    if not target.is_symlink():
        with contextlib.suppress(OSError):
            os.link(target, backup)
            return

    def copy(handle: BinaryIO) -> None:
        with target.open("rb") as source:
            shutil.copyfileobj(source, handle)

    atomic_write(backup, copy)


def _put_back(moves: Sequence[_Move]) -> None:
    """Undo replacements: the originals return, what was new disappears."""
    for move in reversed(moves):
        with contextlib.suppress(OSError):
            if move.staged.exists():
                if move.backup is not None:
                    move.backup.unlink(missing_ok=True)
            elif move.backup is not None:
                move.backup.replace(move.target)
            else:
                move.target.unlink(missing_ok=True)


def _remove(staging: Path) -> None:
    """Remove the staging folder; the journal first, so that no half of it is ever replayed."""
    with contextlib.suppress(OSError):
        (staging / _JOURNAL).unlink(missing_ok=True)
        fsync_directory(staging)
    shutil.rmtree(staging, ignore_errors=True)
