"""Putting the new state into a checkpoint: state, twin and manifest, with backups, in an order that
leaves a valid checkpoint behind whenever it is cut short."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checkpoint.manifest import add_to_manifest
from sla_ckpt.errors import FormatError, WriteError
from sla_ckpt.formats.twin import staged_state
from sla_ckpt.fsio import backup, directory_lock, staged_file
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

    Everything is written beside its place first, so that a full disk changes nothing. At every
    moment the state is the old or the new one, and a twin that is there belongs to it.

    Args:
        directory: The checkpoint.
        state: What to write, its origin included.
        keep_old: Copy the old files to ``<name>.bak-<timestamp>`` first.

    Raises:
        WriteError: Read-only, disk full, …; the checkpoint is then as it was.
        LockedError: Another process is writing there.
    """
    with directory_lock(directory), contextlib.ExitStack() as stack:
        place = stack.enter_context(staged_state(directory, state))
        manifest = _new_manifest(directory / MANIFEST_FILE)
        staged = manifest and stack.enter_context(staged_file(directory / MANIFEST_FILE, manifest))
        backups: list[Path] = []
        try:
            if keep_old:
                for name in (STATE_FILE, TWIN_FILE):
                    made = backup(directory / name)
                    backups += [made] if made is not None else []
        except WriteError:
            for made in backups:
                made.unlink(missing_ok=True)
            raise
        place()
        if staged:
            staged.place()
    return Written(directory / STATE_FILE, tuple(backups), bool(staged))


def check_writable(directory: Path) -> None:
    """Find out before the long work whether its result can be written.

    Raises:
        WriteError: The directory takes no files.
        LockedError: Another process is writing there.
    """
    with directory_lock(directory):
        pass


def _new_manifest(path: Path) -> bytes | None:
    """SimpleTuner's manifest, which S3 resume downloads by, with the two files; None if it has
    them, is not there, or cannot be read (which verify reports)."""
    try:
        updated, added = add_to_manifest(path.read_bytes(), (STATE_FILE, TWIN_FILE))
    except (OSError, FormatError):
        return None
    return updated if added else None
