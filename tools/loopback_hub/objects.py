"""Content on disk: small blobs by git id, large objects by sha256.

Large objects are only ever streamed. A "virtual" one is a sparse file, so a repo of 24 GB costs a
few kilobytes of disk and its ranged reads take the same path as everybody's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import HubError

CHUNK = 1 << 18


def git_blob_id(data: bytes) -> str:
    """The id that git gives this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """Writes `target` through a temporary file; nothing is left behind when the body raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.parent / f".tmp-{os.urandom(8).hex()}"
    try:
        with staged.open("wb") as out:
            yield out
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


class ObjectStore:
    """Blobs under `blobs/`, large objects under `lfs/`, parts of uploads under `parts/`."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._lfs = root / "lfs"
        self._parts = root / "parts"

    def blob_path(self, oid: str) -> Path:
        return self._blobs / oid[:2] / oid

    def lfs_path(self, sha256: str) -> Path:
        return self._lfs / sha256[:2] / sha256

    def part_path(self, sha256: str, number: int) -> Path:
        return self._parts / f"{sha256}.{number}"

    def add_blob(self, data: bytes) -> str:
        oid = git_blob_id(data)
        path = self.blob_path(oid)
        if not path.exists():
            with new_file(path) as out:
                out.write(data)
        return oid

    def blob(self, oid: str) -> bytes:
        return self.blob_path(oid).read_bytes()

    def lfs_size(self, sha256: str) -> int | None:
        """Size in bytes of a stored large object; None when it is not here."""
        try:
            return self.lfs_path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    async def receive(self, target: Path, chunks: AsyncIterator[bytes], sha256: str | None) -> str:
        """Streams an upload to `target`; refuses it when its sha256 is not the one announced."""
        digest = hashlib.sha256()
        with new_file(target) as out:
            async for chunk in chunks:
                out.write(chunk)
                digest.update(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise HubError(400, f"BadDigest: the content does not have the sha256 {sha256}")
        return digest.hexdigest()

    def join_parts(self, sha256: str, count: int) -> None:
        parts = [self.part_path(sha256, number) for number in range(1, count + 1)]
        self.add_lfs(_chunks_of(parts), expected=sha256)
        for part in parts:
            part.unlink()

    def add_lfs(self, chunks: Iterable[bytes], expected: str | None = None) -> tuple[str, int]:
        """Stores a large object from local content; its sha256 and size in bytes."""
        digest, size = hashlib.sha256(), 0
        self._lfs.mkdir(parents=True, exist_ok=True)
        staged = self._lfs / f".staged-{os.urandom(8).hex()}"
        try:
            with new_file(staged) as out:
                for chunk in chunks:
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            sha256 = digest.hexdigest()
            if expected is not None and sha256 != expected:
                raise HubError(400, f"BadDigest: the content does not have the sha256 {expected}")
            self.lfs_path(sha256).parent.mkdir(parents=True, exist_ok=True)
            staged.replace(self.lfs_path(sha256))
        finally:
            staged.unlink(missing_ok=True)
        return sha256, size

    def add_lfs_file(self, path: Path) -> tuple[str, int]:
        return self.add_lfs(_chunks_of([path]))

    def add_virtual(self, size: int, header: bytes, sha256: str | None = None) -> str:
        """A sparse object: `header`, then zeros up to `size` bytes.

        Unless given, its sha256 is made up (from header and size), since hashing gigabytes of
        zeros is what a virtual file is there to avoid: downloading it whole fails a hash check.
        """
        if sha256 is None:
            sha256 = hashlib.sha256(b"virtual %d\0" % size + header).hexdigest()
        with new_file(self.lfs_path(sha256)) as out:
            out.write(header)
            out.truncate(size)
        return sha256


def _chunks_of(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk
