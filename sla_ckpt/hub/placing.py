"""The local side of a pull: which files are there, where new ones go, and what is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from sla_ckpt.checkpoint.layout import GUARD_FILE, PULL_MARKER, PULL_STAGING
from sla_ckpt.errors import HubError, WriteError
from sla_ckpt.fsio import atomic_write, fsync_directory
from sla_ckpt.hub.files import Role, case_collisions, role_of
from sla_ckpt.hub.hashes import HashCache
from sla_ckpt.hub.plan import same_content
from sla_ckpt.hub.remote import HubSource
from sla_ckpt.hub.repo import RepoRef
from sla_ckpt.text import count, join_some

STAGING = PULL_STAGING
#: Bytes; every common file system's limit.
MAX_NAME = 255
#: Left free beside what arrives: the temporary files of the download itself are in the sum.
SPARE_BYTES = 64 * 1024 * 1024


def check_names(paths: Iterable[str], ref: RepoRef) -> None:
    """Names in a repository are somebody else's input: none may leave the target folder."""
    for path in paths:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in path or ":" in parts[0]:
            raise HubError(
                f"{ref.repo_id} has a file with an unsafe name: {path!r}",
                hint="do not use this repository; tell its owner",
            )


def check_collisions(paths: Iterable[str], ref: RepoRef) -> None:
    """Refuse names that the local file system cannot hold, or cannot tell apart."""
    for path in paths:
        if any(len(os.fsencode(part)) > MAX_NAME for part in path.split("/")):
            raise HubError(
                f"{ref.repo_id}: the name is too long for a file system: {path}",
                hint="leave it out with --exclude",
            )
    collisions = case_collisions(paths)
    if collisions:
        one, other = collisions[0]
        raise HubError(
            f"{ref.repo_id}: {one} and {other} differ only by case: one would overwrite the other",
            hint="leave one out with --exclude",
        )


def compare_local(
    root: HubSource, target: Path, paths: Mapping[str, str], *, force: bool
) -> tuple[tuple[str, ...], dict[str, str], list[str]]:
    """Files that are there already, those to fetch (local -> repository path), those replaced."""
    present, wanted, differing = [], {}, []
    with HashCache() as hashes:
        for path, full in paths.items():
            local = target / path
            try:
                _refuse_linked_folder(target, local.parent)
                if local.is_file():
                    if same_content(hashes.hash(local), root.listing[full]):
                        present.append(path)
                        continue
                    differing.append(path)
                elif local.exists():
                    raise WriteError(
                        f"{local} is in the way: it is not a file", hint="move it away"
                    )
            except OSError as error:
                raise WriteError(
                    f"cannot look at {local}: {error.strerror or error}",
                    hint="choose another folder",
                ) from error
            wanted[path] = full
    if differing and not force:
        raise WriteError(
            f"{target} differs from the repository in {count(len(differing), 'file')}: "
            f"{join_some(differing)}",
            hint="use another folder, or --force to replace them",
        )
    return tuple(present), wanted, differing


def _refuse_linked_folder(target: Path, folder: Path) -> None:
    """Nothing is written through a link: it may lead into a shared cache."""
    while folder != target and folder != folder.parent:
        if folder.is_symlink():
            raise WriteError(
                f"{folder} is a link; writing through it could damage what it points to",
                hint="remove the link or choose another folder",
                path=str(folder),
            )
        folder = folder.parent


def make_directory(target: Path) -> None:
    """Make the target with its staging folder."""
    staging = target / STAGING
    try:
        if staging.is_symlink():
            raise WriteError(
                f"{staging} is a link; writing through it could damage what it points to",
                hint="remove the link or choose another folder",
                path=str(staging),
            )
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make {target}: {error.strerror or error}",
            hint="choose another folder",
            path=str(target),
        ) from error


def check_space(target: Path, needed: int) -> None:
    """Refuse before the download what the disk cannot hold; what is staged already counts."""
    free = shutil.disk_usage(target).free
    staged = sum(f.stat().st_size for f in (target / STAGING).rglob("*") if f.is_file())
    if free + staged < needed + SPARE_BYTES:
        raise WriteError(
            f"not enough space for {target}: {needed:,} bytes are needed, {free:,} are free",
            hint="free some space or choose a folder on another disk",
        )


def _order(path: str) -> tuple[bool, bool]:
    """The state first, so that weights are never there without it; the guard last."""
    return path == GUARD_FILE, role_of(path) is not Role.STATE


def place(target: Path, parts: Mapping[str, Path]) -> None:
    """Move everything to its place, each file in one step.

    While that lasts, a marker says that old and new files may be mixed: after a crash verify
    reports it until a pull has come to its end.
    """
    ordered = sorted(parts, key=_order)
    atomic_write(target / STAGING / PULL_MARKER, "\n".join(ordered).encode())
    try:
        for path in ordered:
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            parts[path].replace(destination)
        for folder in sorted({f for path in ordered for f in _folders(target, target / path)}):
            fsync_directory(folder)
        with contextlib.suppress(PermissionError):  # enough to pass through, not to open
            fsync_directory(target.absolute().parent)
    except OSError as error:
        raise WriteError(
            f"cannot write to {target}: {error.strerror or error}",
            hint="run the command again; what was fetched is kept",
            path=str(target),
        ) from error


def _folders(target: Path, file: Path) -> list[Path]:
    """The folders up to the target whose entries a new file may have changed."""
    return [folder for folder in file.parents if folder.is_relative_to(target)]


def remove_staging(target: Path) -> None:
    """End a pull: the marker first, so that it never outlives what it speaks of."""
    with contextlib.suppress(OSError):
        (target / STAGING / PULL_MARKER).unlink(missing_ok=True)
        fsync_directory(target / STAGING)
    shutil.rmtree(target / STAGING, ignore_errors=True)
