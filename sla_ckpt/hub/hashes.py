"""sha256 and git ids of local files, with a cache of the sha256 in the user's cache folder.

An entry is used only while device, inode, size, modification and change time are what they were
when the file was hashed. Nothing is ever written into the checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sla_ckpt.errors import TargetNotFoundError, WriteError
from sla_ckpt.fsio import atomic_write

CACHE_VARIABLE = "SLA_CKPT_CACHE"
_MAX_ENTRIES = 20_000
#: A file changed this recently may change again within the resolution of its timestamps.
_SETTLED_SECONDS = 2.0
_THREADS = 4


def cache_directory() -> Path:
    """Where hashes are kept: ``SLA_CKPT_CACHE``, else the platform's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser() / "sla-ckpt"
    if os.name == "nt" and (chosen := os.environ.get("LOCALAPPDATA")):
        return Path(chosen) / "sla-ckpt" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/sla-ckpt").expanduser()
    return Path("~/.cache/sla-ckpt").expanduser()


def signature(path: Path) -> str:
    """What identifies a file's content without reading it.

    Raises:
        TargetNotFoundError: The file is gone.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    return ":".join(
        str(part)
        for part in (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    )


class HashCache:
    """sha256 by file signature. A cache that cannot be read or written is as good as empty."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or cache_directory() / "sha256.json"
        self._known = _load(self._file)
        self._changed = False

    def get(self, path: Path) -> str | None:
        """The sha256 of a file, if it is known without reading it."""
        return self._known.get(signature(path))

    def put(self, path: Path, sha256: str, *, at: str) -> None:
        """Remember a hash.

        Args:
            path: The file.
            sha256: Hex digest.
            at: The file's signature from before it was read; nothing is remembered if it changed.
        """
        if signature(path) != at or time.time() - path.stat().st_mtime < _SETTLED_SECONDS:
            return
        self._known[at] = sha256
        self._changed = True

    def sha256(self, path: Path) -> str:
        """The sha256 of a file, from the cache or by reading it.

        Raises:
            TargetNotFoundError: The file cannot be read.
        """
        before = signature(path)
        if known := self._known.get(before):
            return known
        try:
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise TargetNotFoundError(
                f"cannot read {path}: {error.strerror or error}", path=str(path)
            ) from error
        self.put(path, digest, at=before)
        return digest

    def sha256_of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Several files at once."""
        listed = list(paths)
        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(zip(listed, pool.map(self.sha256, listed), strict=True))

    def save(self) -> None:
        """Write what was learnt. Never fails: the cache is only there to save time."""
        if not self._changed:
            return
        newest = dict(list({**_load(self._file), **self._known}.items())[-_MAX_ENTRIES:])
        with contextlib.suppress(OSError, WriteError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._file, json.dumps(newest).encode())
            self._changed = False


def _load(file: Path) -> dict[str, str]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {
        key: digest
        for key, digest in value.items()
        if isinstance(digest, str) and len(digest) == 64
    }


def git_blob_id(data: bytes) -> str:
    """git's object id of a regular file: SHA-1 of ``blob <size>\\0`` and its content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
