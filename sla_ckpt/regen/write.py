"""Putting the new state into a checkpoint: backup, state, twin, manifest, in an order that leaves
a valid checkpoint behind whenever it is cut short."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checkpoint.manifest import add_to_manifest
from sla_ckpt.errors import FormatError, WriteError
from sla_ckpt.formats.twin import write_state
from sla_ckpt.fsio import atomic_write, backup, directory_lock, fsync_directory
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: The new state file.
        backups: Copies of the old files, for those that were there.
        manifest_updated: Whether checkpoint_manifest.json now lists files it did not.
    """

    path: Path
    backups: tuple[Path, ...]
    manifest_updated: bool


def write_result(directory: Path, state: SLAState, *, keep_old: bool = True) -> Written:
    """Write the state and its twin into a checkpoint directory.

    The old twin goes first, then the state is replaced in one step, then the new twin comes: at
    every moment the state is the old or the new one, and a twin that is there belongs to it.

    Args:
        directory: The checkpoint.
        state: What to write, its origin included.
        keep_old: Copy the old files to ``<name>.bak-<timestamp>`` first.

    Raises:
        WriteError: Read-only, disk full, …; the state is then the old one.
        LockedError: Another process is writing there.
    """
    with directory_lock(directory):
        backups: list[Path] = []
        if keep_old:
            made = (backup(directory / name) for name in (STATE_FILE, TWIN_FILE))
            backups = [path for path in made if path is not None]
        _remove(directory / TWIN_FILE)
        write_state(directory, state)
        updated = _update_manifest(directory / MANIFEST_FILE)
    return Written(directory / STATE_FILE, tuple(backups), updated)


def check_writable(directory: Path) -> None:
    """Find out before the long work whether its result can be written.

    Raises:
        WriteError: The directory takes no files.
        LockedError: Another process is writing there.
    """
    with directory_lock(directory):
        pass


def _remove(path: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            fsync_directory(path.parent)
    except OSError as error:
        raise WriteError(
            f"cannot replace {path}: {error.strerror or error}",
            hint="check its permissions; the old state is untouched",
            path=str(path),
        ) from error


def _update_manifest(path: Path) -> bool:
    """Add the two files to SimpleTuner's manifest, which S3 resume downloads by."""
    try:
        updated, added = add_to_manifest(path.read_bytes(), (STATE_FILE, TWIN_FILE))
    except (OSError, FormatError):
        return False  # absent, or verify reports what is wrong with it
    if added:
        atomic_write(path, updated)
    return bool(added)
