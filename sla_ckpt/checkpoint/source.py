"""Where a checkpoint's bytes come from: a local folder, or (in ``sla_ckpt.hub``) a Hub repo.

Everything above reads through this small Protocol, so that a rule written for a local folder
also runs on a repository of which only headers are ever transferred.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from sla_ckpt.errors import TargetNotFoundError

#: Deep enough for pipelines and dataset caches beside a checkpoint; bounds symlink loops.
MAX_DEPTH = 4
#: A checkpoint has dozens of files. An output directory full of caches may have many more; they
#: are listed breadth first, so that a checkpoint's own folders come before what lies deep in them.
MAX_FILES = 20_000


class Source(Protocol):
    """A read-only tree of files.

    Attributes:
        label: How messages name it: the path as the user gave it, or ``org/model@revision``.
        is_remote: Whether reads cost network traffic.
    """

    @property
    def label(self) -> str: ...

    @property
    def is_remote(self) -> bool: ...

    def files(self) -> Mapping[str, int]:
        """POSIX relative path -> size in bytes, of every regular file."""
        ...

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes from ``start`` (to the end when None); fewer where the file ends.

        Raises:
            TargetNotFoundError: The file is absent, vanished or cannot be read.
        """
        ...

    def subsource(self, prefix: str) -> Source:
        """The same tree below ``prefix``."""
        ...


class LocalSource:
    """A folder on disk.

    Directories are listed at construction, so one report describes one moment. Links are
    followed (the Hub's cache is made of them); a dangling link is kept in ``broken``.

    Args:
        root: The folder.
        label: How messages name it; the path itself by default.

    Raises:
        TargetNotFoundError: Not a directory, or it cannot be listed.
    """

    is_remote = False

    def __init__(self, root: Path, *, label: str | None = None) -> None:
        self.root = root
        self.label = label if label is not None else str(root)
        self.broken: dict[str, str] = {}
        self.directories: set[str] = set()
        self.truncated_listing = False
        self._files: dict[str, int] = {}
        try:
            self._walk(root)
        except OSError as error:
            raise TargetNotFoundError(
                f"cannot list {self.label}: {error.strerror or error}",
                hint="check the path and its permissions",
                path=str(root),
            ) from error

    def _walk(self, root: Path) -> None:
        pending = deque([(root, PurePosixPath(), 0)])
        while pending:
            directory, prefix, depth = pending.popleft()
            try:
                below = self._list(directory, prefix, depth)
            except OSError as error:
                if not depth:
                    raise
                self.broken[str(prefix)] = error.strerror or str(error)
                continue
            if depth + 1 < MAX_DEPTH:
                pending += [(directory / name, prefix / name, depth + 1) for name in below]
        self._files = dict(sorted(self._files.items()))

    def _list(self, directory: Path, prefix: PurePosixPath, depth: int) -> list[str]:
        """Record one directory's entries; the names of the directories to go on with."""
        below: list[str] = []
        with os.scandir(directory) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            relative = str(prefix / entry.name)
            try:
                info = entry.stat()
            except OSError as error:
                self.broken[relative] = _describe_broken(Path(entry.path), error)
                continue
            if stat.S_ISDIR(info.st_mode):
                self.directories.add(relative)
                if not _skipped(entry.name):
                    below.append(entry.name)
            elif not stat.S_ISREG(info.st_mode):
                self.broken[relative] = "not a regular file"
            elif depth > 1 and len(self._files) >= MAX_FILES:
                self.truncated_listing = True
                return []
            else:
                self._files[relative] = info.st_size
        return below

    def files(self) -> Mapping[str, int]:
        return self._files

    def leave_out(self, unwanted: Callable[[str], bool]) -> None:
        """Forget files that are not part of what the user named."""
        self._files = {path: size for path, size in self._files.items() if not unwanted(path)}

    def local_path(self, path: str) -> Path:
        return self.root / path

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return read_range(self.root / path, start, length, name=path)

    def subsource(self, prefix: str) -> LocalSource:
        return LocalSource(self.root / prefix, label=str(Path(self.label) / prefix))


def read_range(path: Path, start: int, length: int | None, *, name: str) -> bytes:
    """Bytes of a local file, to its end when ``length`` is None.

    Args:
        path: The file.
        start: First byte.
        length: How many.
        name: What the error calls its path.

    Raises:
        TargetNotFoundError: It cannot be read.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(start)
            return handle.read() if length is None else handle.read(length)
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot read {path}: {error.strerror or error}",
            hint="check that the file still exists and its permissions",
            path=name,
        ) from error


def _skipped(name: str) -> bool:
    """Folders that never belong to a checkpoint and may hold very many files."""
    return name in {".git", ".cache", "__pycache__", "node_modules", ".venv"}


def _describe_broken(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"dangling link to {path.readlink()}"
    return error.strerror or str(error)
