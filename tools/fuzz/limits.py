"""The bounds on one input: two seconds, and ten times its size and 64 MB of memory.

Memory is bounded by the kernel: the address space may grow by that much and no further
(``RLIMIT_AS``), which costs microseconds and turns any excess into a MemoryError at the place
that wanted it. tracemalloc, which costs twice the time, measures a sample for the figures.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 2.0
_PAGE = resource.getpagesize()
_STATM = Path("/proc/self/statm")


def memory_bound(size: int) -> int:
    """Bytes that an input of this size may cost."""
    return 10 * size + (64 << 20)


@contextmanager
def memory_limited(size: int) -> Iterator[None]:
    """Let the address space grow by :func:`memory_bound` only (Linux; elsewhere no limit)."""
    if not _STATM.exists():
        yield
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(_STATM.read_bytes().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bound(size), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def processor_seconds(action: Callable[[], None]) -> float:
    """What an action takes of this thread's time, however busy the machine is.

    Asking for it costs as much as reading a small input, so the clock is looked at first.
    """
    started = time.thread_time()
    action()
    return time.thread_time() - started


def traced_peak(action: Callable[[], None]) -> int:
    """Peak bytes that Python and numpy allocate during an action."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
