"""Making the next piece of work while the present one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def made_ahead(make: Callable[[int], T], count: int) -> Iterator[Callable[[int], T]]:
    """``make`` for 0, 1, …, ``count`` - 1 in order, each made in a thread while the one before is
    in use.

    Drawing noise for an update of a small model takes a fifth as long as running it.

    Args:
        make: Called on one thread only, in order; what it raises is raised where its result is
            asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="sla-ckpt-draws") as pool:
        waiting: dict[int, Future[T]] = {}

        def get(number: int) -> T:
            future = waiting.pop(number, None) or pool.submit(make, number)
            result = future.result()
            if number + 1 < count:
                waiting[number + 1] = pool.submit(make, number + 1)
            return result

        try:
            yield get
        finally:
            for future in waiting.values():
                future.cancel()
