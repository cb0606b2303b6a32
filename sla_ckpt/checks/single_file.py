"""A bare file as a target: its folder, reduced to that one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sla_ckpt.checkpoint.source import Source, read_range
from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.state import STATE_FILE, TWIN_FILE


def is_twin(path: Path) -> bool:
    """Whether a .safetensors file is a twin, by its name or by the metadata in its header."""
    if path.name == TWIN_FILE:
        return True
    try:
        with path.open("rb") as handle:
            return b'"sla_ckpt.version"' in handle.read(64 * 1024)
    except OSError:
        return False


class SingleFileSource:
    """One state file, whatever its name; shown to the rules under the name it plays.

    Args:
        path: The file. A ``.safetensors`` is taken for the twin, all else for the state.

    Raises:
        TargetNotFoundError: It cannot be opened.
    """

    is_remote = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)
        self._name = TWIN_FILE if path.suffix == ".safetensors" else STATE_FILE
        try:
            self._size = os.stat(path).st_size  # noqa: PTH116 - also names with surrogates
        except OSError as error:
            raise TargetNotFoundError(
                f"cannot open {path}: {error.strerror or error}", path=str(path)
            ) from error

    def files(self) -> Mapping[str, int]:
        return {self._name: self._size}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return read_range(self.path, start, length, name=str(self.path))

    def subsource(self, prefix: str) -> Source:
        raise TargetNotFoundError(f"{self.path} is a file and has no folder {prefix}")
