"""Silence for parsers of the standard library that warn about how hostile input is spelled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The warning filters are the whole process's, and checkpoints are verified in threads.
_LOCK = threading.RLock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """No warning from the block reaches the user; one thread at a time."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
