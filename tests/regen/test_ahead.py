"""Work made ahead: the same results in the same order, one at a time, and failures where due."""

from __future__ import annotations

import threading
import time

import pytest

from sla_ckpt.regen.ahead import made_ahead


def test_results_come_in_order_and_each_is_made_once() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number**2

    with made_ahead(make, 5) as get:
        assert [get(number) for number in range(5)] == [0, 1, 4, 9, 16]
    assert made == [0, 1, 2, 3, 4]


def test_the_next_is_made_while_the_present_is_in_use() -> None:
    started = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            started.set()
        return number

    with made_ahead(make, 2) as get:
        get(0)
        assert started.wait(30)


def test_a_failure_is_raised_where_its_result_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("no second")
        return number

    with made_ahead(make, 3) as get:
        assert get(0) == 0
        with pytest.raises(ValueError, match="no second"):
            get(1)


def test_leaving_early_leaves_no_thread_and_makes_nothing_more() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        time.sleep(0.01)
        return number

    with pytest.raises(KeyboardInterrupt), made_ahead(make, 1000) as get:
        get(0)
        raise KeyboardInterrupt
    count = len(made)
    assert count <= 2
    assert not any(t.name.startswith("sla-ckpt-draws") for t in threading.enumerate())
