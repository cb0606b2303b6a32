"""Random access to bytes in memory, in a file or behind ranged requests, under one interface."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sla_ckpt.errors import FormatError, TargetNotFoundError

ReadAt = Callable[[int, int], bytes]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bytes:
    """A readable thing of known size.

    Attributes:
        read: ``read(start, length)`` returns that many bytes, fewer where the data ends.
        size: Total bytes.
        name: How messages name it.
    """

    read: ReadAt
    size: int
    name: str

    def exactly(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes.

        Raises:
            FormatError: They are not there (the file shrank, or the caller's bounds are wrong).
        """
        data = self.read(start, length) if length else b""
        if len(data) != length:
            raise FormatError(
                f"{self.name} ends at {start + len(data):,} bytes, where {start + length:,} are "
                "needed",
                kind="truncated",
                path=self.name,
            )
        return data

    def sha256(self) -> str:
        """Hex digest of all bytes, read in chunks."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK):
            digest.update(self.exactly(start, min(_CHUNK, self.size - start)))
        return digest.hexdigest()


def from_bytes(data: bytes, name: str) -> Bytes:
    return Bytes(lambda start, length: data[start : start + length], len(data), name)


def from_stream(stream: BinaryIO, name: str) -> Bytes:
    """A seekable binary stream, read from its beginning.

    Raises:
        TargetNotFoundError: It cannot be read.
    """

    def read(start: int, length: int) -> bytes:
        try:
            stream.seek(start)
            return stream.read(length)
        except OSError as error:
            raise _unreadable(name, error) from error

    try:
        size = stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise _unreadable(name, error) from error
    return Bytes(read, size, name)


@contextmanager
def opened(source: Path | bytes | BinaryIO, name: str | None = None) -> Iterator[Bytes]:
    """Any of the three as :class:`Bytes`; a path is opened and closed again.

    Raises:
        FormatError: The path is a directory or a device (kind ``"directory"``).
        TargetNotFoundError: The path does not exist or cannot be read.
    """
    if isinstance(source, bytes):
        yield from_bytes(source, name or "the given bytes")
    elif isinstance(source, Path):
        label = name or str(source)
        try:
            handle = open(source, "rb", opener=_without_blocking)  # noqa: SIM115
        except IsADirectoryError as error:
            raise _not_a_file(label, "a directory") from error
        except (OSError, ValueError) as error:
            raise _unreadable(label, error) from error
        with handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise _not_a_file(label, "a device, pipe or socket")
            yield from_stream(handle, label)
    else:
        yield from_stream(source, name or str(getattr(source, "name", "the given stream")))


def _without_blocking(path: str, flags: int) -> int:
    # Opening a named pipe that nobody writes to would wait for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _not_a_file(label: str, what: str) -> FormatError:
    return FormatError(
        f"{label} is {what}, not a file",
        kind="directory" if what == "a directory" else "device",
        hint="move it away; the trainer writes a file of this name",
        path=label,
    )


def _unreadable(label: str, error: OSError | ValueError) -> TargetNotFoundError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return TargetNotFoundError(
        f"cannot read {label}: {reason}", hint="check the path and its permissions", path=label
    )
