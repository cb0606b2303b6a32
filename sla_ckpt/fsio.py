"""Crash-safe file writing: atomic replacement, backups and a lock per directory.

A reader sees the old bytes or the new bytes, never a mix, also after a power cut: the temporary
file lives in the target's directory, is fsynced, renamed over the target, and the directory is
fsynced after that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from sla_ckpt.errors import LockedError, WriteError

try:
    import fcntl
except ImportError:  # Windows has no flock; msvcrt is used instead
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".sla_ckpt.lock"
#: Of files that are not in their places yet.
TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".sla_ckpt-", ".tmp"


def fsync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` durable. A no-op where directories cannot be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class StagedFile:
    """A whole new file beside the one that it will replace.

    Attributes:
        target: What it will replace.
        temporary: Where it is until then.
        placed: Whether it has.
    """

    target: Path
    temporary: Path
    placed: bool = False

    def place(self) -> None:
        """Replace the target in one step, durably."""
        self.temporary.replace(self.target)
        self.placed = True
        fsync_directory(self.target.parent)


@contextlib.contextmanager
def staged_file(path: Path, data: bytes | Callable[[BinaryIO], None]) -> Iterator[StagedFile]:
    """Write a new file beside ``path``; it disappears again unless it is placed in the block.

    For several files that belong together: what can fail, a full disk above all, fails before the
    first of them is replaced.

    Args:
        path: Target file. Its directory must exist.
        data: The bytes, or a function that writes them to an open binary file.

    Raises:
        WriteError: Also for an OSError in the block. A target that was not placed is unchanged;
            of one that was, the message says so.
    """
    path = Path(path)
    staged: StagedFile | None = None
    try:
        mode = _mode_of(path)
        descriptor, name = tempfile.mkstemp(
            prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX, dir=path.parent
        )
        staged = StagedFile(path, Path(name))
        with os.fdopen(descriptor, "wb") as handle:
            _try_lock(descriptor)  # says that this is no leftover
            if callable(data):
                data(handle)
            else:
                handle.write(data)
            handle.flush()
            staged.temporary.chmod(mode)
            os.fsync(handle.fileno())
            if os.name == "nt":
                handle.close()  # an open file cannot be renamed there
            yield staged
    except OSError as error:
        if staged is not None and staged.placed:
            what = f"{path} is written, but its folder could not be synced"
            hint = "check the disk, then the file: sla-ckpt verify"
        else:
            what = f"cannot write {path}"
            hint = "check free space and permissions; the old file is untouched"
        raise WriteError(f"{what}: {error.strerror or error}", hint=hint, path=str(path)) from error
    finally:
        if staged is not None and not staged.placed:
            with contextlib.suppress(OSError):
                staged.temporary.unlink()


def atomic_write(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Replace ``path`` by ``data`` in one step.

    A symbolic link is replaced, not followed: checkpoints often link into a shared download
    cache, and writing through the link would change that cache.

    Args:
        path: Target file. Its directory must exist.
        data: The bytes, or a function that writes them to an open binary file.

    Raises:
        WriteError: The directory is missing or read-only, the disk is full, … ``path`` is then
            unchanged, unless the message says that it is written and only not synced.
    """
    with staged_file(path, data) as staged:
        staged.place()


def _mode_of(path: Path) -> int:
    """Permission bits for the new file: the old file's, else what the umask leaves of 0666."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def backup(path: Path) -> Path | None:
    """Copy ``path`` to ``<name>.bak-<UTC timestamp>`` beside it and return the copy.

    A copy, not a rename, so that the original is never absent. An existing backup is never
    overwritten: a counter is added. Returns None when there is nothing to back up.

    Raises:
        WriteError: The copy could not be made.
    """
    if not path.is_file():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for attempt in range(1000):
        suffix = f".bak-{stamp}" if attempt == 0 else f".bak-{stamp}-{attempt}"
        target = path.with_name(path.name + suffix)
        if os.path.lexists(target):
            continue

        def copy(handle: BinaryIO) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, handle)

        try:
            atomic_write(target, copy)
        except WriteError:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
            raise
        return target
    raise WriteError(f"cannot back up {path}: a thousand backups of this second exist")


@contextlib.contextmanager
def directory_lock(directory: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of a checkpoint directory.

    An advisory lock on ``.sla_ckpt.lock``, released by the system when the process dies. What
    killed writers left half-written is removed.

    Raises:
        LockedError: Another process holds it and did not let go within ``timeout`` seconds.
        WriteError: The lock file cannot be made (read-only directory, …).
    """
    lock_path = directory / LOCK_NAME
    deadline = time.monotonic() + timeout
    while (descriptor := _acquire(lock_path)) is None:
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{directory} is being written by another sla-ckpt process",
                hint="wait for it to finish, then run the command again",
                path=str(directory),
            )
        time.sleep(0.05)
    try:
        _remove_leftovers(directory)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock_path.unlink()
        os.close(descriptor)


def _acquire(lock_path: Path) -> int | None:
    """Open and lock the file; None while somebody else holds it."""
    while True:
        try:
            # A link would have the lock file made wherever it leads.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(lock_path, flags, 0o666)
        except OSError as error:
            raise WriteError(
                f"cannot lock {lock_path.parent}: {error.strerror or error}",
                hint="check that the directory exists and is writable",
                path=str(lock_path.parent),
            ) from error
        if _try_lock(descriptor) is _Lock.HELD:
            os.close(descriptor)
            return None
        # The last holder may have unlinked the file between our open and our lock; a lock on
        # that orphan would exclude nobody.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), lock_path.stat()):
                return descriptor
        os.close(descriptor)


class _Lock(Enum):
    OURS = 1
    HELD = 2
    #: Some network file systems have no locks; then each write is still atomic by itself.
    UNSUPPORTED = 3


def _try_lock(descriptor: int) -> _Lock:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        held = error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
        return _Lock.HELD if held else _Lock.UNSUPPORTED
    return _Lock.OURS


def _remove_leftovers(directory: Path) -> None:
    """Remove temporary files of writers that were killed; a living writer's is locked."""
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                is_dead = _try_lock(descriptor) is _Lock.OURS
            finally:
                os.close(descriptor)
            if is_dead:
                leftover.unlink()
