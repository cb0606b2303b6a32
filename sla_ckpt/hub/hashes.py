"""Hashes of local files, remembered between runs.

Hashing is most of the time of a push in which nothing changed. A file whose device, inode, size,
modification and change time are as they were is taken to be the same, as git and make do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sla_ckpt.errors import TargetNotFoundError, WriteError
from sla_ckpt.fsio import atomic_write

CHUNK = 4 * 1024 * 1024
MAX_ENTRIES = 20_000
#: Below this, hashing costs less than the bookkeeping.
SMALL = 64 * 1024
#: A file changed this recently may change again within the resolution of its timestamps.
SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class FileHash:
    """Content hashes of one file; empty while it is to be hashed when it is sent.

    Attributes:
        size: Bytes.
        sha256: Hex digest, as LFS and xet name a file.
        git: Hex SHA-1 of the git blob, as the Hub names a regular file.
    """

    size: int
    sha256: str
    git: str

    @property
    def is_pending(self) -> bool:
        return not self.sha256


def cache_path() -> Path:
    """Where hashes are remembered: the user's cache folder, never the checkpoint."""
    if override := os.environ.get("SLA_CKPT_CACHE"):
        return Path(override) / "hashes.json"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "sla-ckpt" / "hashes.json"


class HashCache:
    """Hashes by path, valid while the file's stamp stays. Use as a context manager."""

    def __init__(self) -> None:
        self._path = cache_path()
        self._entries: dict[str, list[object]] = {}
        self._changed = False

    def __enter__(self) -> HashCache:
        try:
            loaded = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            loaded = {}
        if isinstance(loaded, dict):
            self._entries = {k: v for k, v in loaded.items() if isinstance(v, list)}
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._changed:
            return
        kept = dict(list(self._entries.items())[-MAX_ENTRIES:])
        # A cache that cannot be written only costs time next run.
        with contextlib.suppress(OSError, WriteError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, json.dumps(kept).encode())

    def known(self, path: Path) -> FileHash | None:
        """The hash of a file if it is remembered; nothing is read.

        Raises:
            TargetNotFoundError: It is gone.
        """
        stamp = stamp_of(path)
        entry = self._entries.get(os.fspath(path.resolve()))
        if entry is None or entry[:-2] != stamp or len(entry) != len(stamp) + 2:
            return None
        return FileHash(stamp[2], str(entry[-2]), str(entry[-1]))

    def learn(self, path: Path, found: FileHash, *, stamp: list[int]) -> None:
        """Remember a hash that somebody else made, of the file as ``stamp`` describes it."""
        if found.size > SMALL and time.time() - stamp[3] / 1e9 > SETTLED_SECONDS:
            self._entries[os.fspath(path.resolve())] = [*stamp, found.sha256, found.git]
            self._changed = True

    def hash(self, path: Path, progress: Callable[[int], None] | None = None) -> FileHash:
        """Hash a file, or remember it.

        Args:
            path: The file; links are followed.
            progress: Called with the number of bytes of each piece.

        Raises:
            TargetNotFoundError: It cannot be read, or changed while it was.
        """
        stamp = stamp_of(path)
        if (known := self.known(path)) is not None:
            if progress is not None:
                progress(known.size)
            return known
        try:
            found = _hash(path, stamp[2], progress)
        except OSError as error:
            raise TargetNotFoundError(
                f"cannot read {path}: {error.strerror or error}", path=str(path)
            ) from error
        if stamp_of(path) != stamp:
            raise TargetNotFoundError(
                f"{path} changed while it was read",
                hint="wait until the trainer has finished saving, then run the command again",
                path=str(path),
            )
        self.learn(path, found, stamp=stamp)
        return found


def stamp_of(path: Path) -> list[int]:
    """What tells one content of a file from another without reading it.

    Raises:
        TargetNotFoundError: It is gone or cannot be looked at.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    # The change time also tells an edit whose author set the modification time back.
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _hash(path: Path, size: int, progress: Callable[[int], None] | None) -> FileHash:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    # Regular files are small; the Hub never names a large one by its git hash.
    both = size <= 64 * 1024 * 1024
    with path.open("rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK):
            sha256.update(chunk)
            if both:
                git.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return FileHash(size, sha256.hexdigest(), git.hexdigest() if both else "")


def hash_bytes(data: bytes) -> FileHash:
    """The same for bytes in memory."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return FileHash(len(data), hashlib.sha256(data).hexdigest(), git.hexdigest())
