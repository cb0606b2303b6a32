"""use_sla in threads and tasks: it holds where it was entered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sla_ckpt.attention.inject import SLASession, use_sla

from .tiny_models import make_model, run_model, state_for

pytestmark = pytest.mark.usefixtures("patch_is_undone")


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    return make_model("flux")


def in_thread(function: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def target() -> None:
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def test_a_thread_that_entered_nothing_sees_no_sla(flux: nn.Module) -> None:
    dense = run_model(flux, "flux")
    with use_sla(state_for("flux")) as session:
        elsewhere = in_thread(lambda: run_model(flux, "flux"))
        assert session.stats.sparse_calls == 0
        run_model(flux, "flux")
    assert torch.equal(elsewhere, dense)
    assert session.stats.sparse_calls == 2


def test_threads_with_their_own_uses_do_not_mix(flux: nn.Module) -> None:
    states = [state_for("flux", seed=seed) for seed in range(3)]
    expected = []
    for state in states:
        with use_sla(state):
            expected.append(run_model(flux, "flux"))
    entered = threading.Barrier(len(states))
    wrong: list[int] = []

    def work(index: int) -> None:
        with use_sla(states[index]) as session:
            entered.wait()
            for _ in range(2 + index):  # so that they leave one after the other
                if not torch.equal(run_model(flux, "flux"), expected[index]):
                    wrong.append(index)
            if session.stats.sparse_calls != 2 * (2 + index):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_use_may_end_in_another_thread(flux: nn.Module) -> None:
    dense = run_model(flux, "flux")
    use = use_sla(state_for("flux"))
    use.__enter__()
    run_model(flux, "flux")
    in_thread(lambda: use.__exit__(None, None, None))
    assert torch.equal(run_model(flux, "flux"), dense)


def test_a_task_started_inside_is_dense_once_the_use_ended(flux: nn.Module) -> None:
    dense = run_model(flux, "flux")

    async def main() -> tuple[Tensor, Tensor, SLASession]:
        ended = asyncio.Event()

        async def task() -> tuple[Tensor, Tensor]:
            inside = run_model(flux, "flux")
            await ended.wait()
            return inside, run_model(flux, "flux")

        with use_sla(state_for("flux")) as session:
            running = asyncio.create_task(task())
            await asyncio.sleep(0)
        ended.set()
        return (*await running, session)

    inside, after, session = asyncio.run(main())
    assert not torch.equal(inside, dense)
    assert torch.equal(after, dense)
    assert session.stats.sparse_calls == 2
