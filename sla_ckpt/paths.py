"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with a leading ``~`` replaced.

    Unlike ``Path.expanduser``, which raises for ``~nobody``, an unknown user's name stays as it
    is, so that the path is reported as missing like any other.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
