"""use_sla on real diffusers models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sla_ckpt.attention.inject import SLASession, SLAUnusedWarning, use_sla, without_sla
from sla_ckpt.attention.module import SparseLinearAttention
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

from .tiny_models import TINY_MODELS, make_model, make_state, run_model, state_for

KEY = PairKey(16, "bf16")


@pytest.fixture(autouse=True)
def patch_is_undone() -> Iterator[None]:
    original = F.scaled_dot_product_attention
    checkpoint_function = torch.utils.checkpoint.CheckpointFunction
    yield
    assert F.scaled_dot_product_attention is original
    assert torch.utils.checkpoint.CheckpointFunction is checkpoint_function


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    return make_model("flux")


def qkv(length: int = 256, head_dim: int = 16, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 2, length, head_dim, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_each_model_runs_sparse_and_is_as_before_afterwards(name: str) -> None:
    tiny, model = TINY_MODELS[name], make_model(name)
    before = run_model(model, name)
    with use_sla(state_for(name)) as session:
        sparse = run_model(model, name)
    after = run_model(model, name)
    assert {str(key): n for key, n in session.stats.pairs.items()} == tiny.pairs
    assert dict(session.stats.dense_calls) == tiny.dense
    assert not torch.equal(sparse, before)
    assert torch.isfinite(sparse).all()
    assert torch.equal(after, before)


def test_a_call_gives_what_the_module_gives() -> None:
    state = make_state("16:bf16")
    module = SparseLinearAttention.from_settings(16, SLASettings())
    module.load_projection(state.pairs[KEY])
    q, k, v = qkv()
    with use_sla(state), torch.no_grad():
        through_sdpa = F.scaled_dot_product_attention(q, k, v)
        by_keyword = F.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.25)
    assert torch.equal(through_sdpa, module(q, k, v))
    assert torch.equal(by_keyword, through_sdpa)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attn_mask": torch.ones(256, 256, dtype=torch.bool).tril()},
        {"is_causal": True},
        {"scale": 0.5, "is_causal": True},
        {"enable_gqa": True},
    ],
    ids=str,
)
def test_a_dense_call_is_bitwise_what_it_is_without_sla(arguments: dict[str, Any]) -> None:
    q, k, v = qkv()
    expected = F.scaled_dot_product_attention(q, k, v, **arguments)
    with pytest.warns(SLAUnusedWarning), use_sla(make_state("16:bf16")) as session:
        got = F.scaled_dot_product_attention(q, k, v, **arguments)
    assert torch.equal(got, expected)
    assert session.stats.sparse_calls == 0


def test_one_module_per_pair_serves_all_layers(flux: nn.Module) -> None:
    with use_sla(SLASettings(), missing="zero") as session:
        run_model(flux, "flux")
    assert list(session.modules) == [KEY]
    assert session.stats.pairs[KEY] == 2
    assert session.stats.materialised == (KEY,)
    assert session.stats.summary() == "2 sparse (16:bf16 × 2), 0 dense"
    assert session.modules[KEY].proj_l.weight.dtype == torch.float32


def test_the_state_comes_back_out_unchanged(flux: nn.Module) -> None:
    state = make_state("16:bf16", "64:fp16", sla_variant="main", tool="test")
    with use_sla(state) as session:
        run_model(flux, "flux")
    assert session.to_state().equals(state)
    assert session.to_state().origin == state.origin


def test_a_model_that_only_runs_dense_is_warned_about() -> None:
    model = make_model("flux", dtype=torch.float32)
    inputs = {name: value.float() for name, value in TINY_MODELS["flux"].inputs().items()}
    with pytest.warns(SLAUnusedWarning, match="dtype × 2"), use_sla(state_for("flux")):
        model(**inputs)


def test_sla_is_undone_after_an_exception(flux: nn.Module) -> None:
    before = run_model(flux, "flux")
    with pytest.raises(ZeroDivisionError), use_sla(state_for("flux")):
        run_model(flux, "flux")
        raise ZeroDivisionError
    assert torch.equal(run_model(flux, "flux"), before)


def test_the_inner_of_two_nested_uses_counts(flux: nn.Module) -> None:
    with use_sla(state_for("flux")) as outer:
        first = run_model(flux, "flux")
        with use_sla(state_for("flux", settings=SLASettings(topk=0.6))) as inner:
            second = run_model(flux, "flux")
        third = run_model(flux, "flux")
    assert (outer.stats.sparse_calls, inner.stats.sparse_calls) == (4, 2)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_without_sla_is_dense_inside_a_use(flux: nn.Module) -> None:
    dense = run_model(flux, "flux")
    with use_sla(state_for("flux")) as session:
        run_model(flux, "flux")
        with without_sla():
            assert torch.equal(run_model(flux, "flux"), dense)
        assert session.stats.sparse_calls == 2


def test_uses_may_end_in_the_order_they_began(flux: nn.Module) -> None:
    dense = run_model(flux, "flux")
    first, second = use_sla(state_for("flux")), use_sla(state_for("flux", seed=1))
    a = first.__enter__()
    b = second.__enter__()
    first.__exit__(None, None, None)
    run_model(flux, "flux")
    assert (a.stats.sparse_calls, b.stats.sparse_calls) == (0, 2)
    second.__exit__(None, None, None)
    assert torch.equal(run_model(flux, "flux"), dense)


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


def test_a_patch_put_over_ours_is_left_in_place(flux: nn.Module) -> None:
    original = F.scaled_dot_product_attention
    calls = 0

    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        result: Tensor = below(*args, **kwargs)
        return result

    try:
        with use_sla(state_for("flux")) as first:
            below = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = theirs
            run_model(flux, "flux")
        assert F.scaled_dot_product_attention is theirs
        with use_sla(state_for("flux")) as second:
            run_model(flux, "flux")
        assert F.scaled_dot_product_attention is theirs
        assert (first.stats.sparse_calls, second.stats.sparse_calls, calls) == (2, 2, 2)
        F.scaled_dot_product_attention = below
        with use_sla(state_for("flux")):
            run_model(flux, "flux")
        assert F.scaled_dot_product_attention is original
    finally:
        F.scaled_dot_product_attention = original


def test_the_observer_sees_each_sparse_call_and_may_compute_dense_attention(
    flux: nn.Module,
) -> None:
    seen: list[tuple[PairKey, torch.Size, Tensor]] = []

    def observer(key: PairKey, q: Tensor, k: Tensor, v: Tensor) -> None:
        seen.append((key, q.shape, F.scaled_dot_product_attention(q, k, v)))

    with use_sla(state_for("flux"), observer=observer) as session:
        run_model(flux, "flux")
    assert [(key, shape[2]) for key, shape, _ in seen] == [(KEY, 280), (KEY, 280)]
    assert session.stats.sparse_calls == 2
    assert not session.stats.dense_calls


@pytest.mark.parametrize("trainable", [True, False])
def test_projections_get_gradients_only_if_trainable(flux: nn.Module, trainable: bool) -> None:
    with use_sla(state_for("flux"), trainable=trainable) as session:
        weight, bias = session.parameters()
        assert weight.requires_grad is bias.requires_grad is trainable
        output = run_model(flux, "flux")
        assert output.requires_grad is trainable
        if trainable:
            output.float().square().mean().backward()
            assert weight.grad is not None and weight.grad.abs().sum() > 0
            assert bias.grad is not None and bias.grad.abs().sum() > 0
    assert [name for name, _ in session.named_parameters()] == [
        "16:bf16/proj_l.weight",
        "16:bf16/proj_l.bias",
    ]


def test_a_session_that_began_in_inference_mode_can_train_later(flux: nn.Module) -> None:
    with use_sla(SLASettings(), missing="zero", trainable=True) as session:
        with torch.inference_mode():
            run_model(flux, "flux")
        run_model(flux, "flux").float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in session.parameters())


def test_a_default_device_or_dtype_does_not_reach_the_projections() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), use_sla(make_state("16:bf16")) as session:
            pass
    finally:
        torch.set_default_dtype(torch.float32)
    weight, _ = session.parameters()
    assert (weight.device.type, weight.dtype) == ("cpu", torch.float32)


def test_pairs_can_be_materialised_before_the_first_call() -> None:
    keys = [PairKey(24, "fp16"), KEY]
    with use_sla(SLASettings(), missing="zero", trainable=True) as session:
        session.materialise(keys)
        parameters = list(session.parameters())
    assert [tuple(p.shape) for p in parameters] == [(16, 16), (16,), (24, 24), (24,)]
    assert session.stats.materialised == ()


def test_autocast_gives_the_same_pairs_and_nearly_the_same_output(flux: nn.Module) -> None:
    with use_sla(state_for("flux")) as session:
        plain = run_model(flux, "flux")
        with torch.autocast("cpu", torch.bfloat16):
            q, k, v = qkv()
            under_autocast = F.scaled_dot_product_attention(q, k, v)
            model_output = run_model(flux, "flux")
        assert under_autocast.dtype == torch.bfloat16
        assert torch.equal(under_autocast, F.scaled_dot_product_attention(q, k, v))
    assert set(session.stats.pairs) == {KEY}
    assert torch.allclose(plain.float(), model_output.float(), atol=0.05)


def test_float32_queries_under_autocast_stay_dense_as_in_training() -> None:
    q, k, v = qkv(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), without_sla():
        expected = F.scaled_dot_product_attention(q, k, v)
    with (
        pytest.warns(SLAUnusedWarning),
        use_sla(make_state("16:bf16")) as session,
        torch.autocast("cpu", torch.bfloat16),
    ):
        got = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(got, expected)
    assert dict(session.stats.dense_calls) == {"dtype": 1}


def broken(**changes: np.ndarray) -> SLAState:
    state = make_state("16:bf16")
    return replace(state, pairs={KEY: replace(state.pairs[KEY], **changes)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (make_state("16:bf16", settings=SLASettings(topk=0.0)), "topk"),
        (make_state("16:bf16", settings=SLASettings(topk=1.5)), "topk"),
        (make_state("16:bf16", settings=SLASettings(topk=float("nan"))), "topk"),
        (make_state("16:bf16", settings=SLASettings(feature_map="hedgehog")), "hedgehog"),
        (make_state("16:bf16", settings=SLASettings(blkq=32)), "blkq 32"),
        (make_state("16:bf16", settings=SLASettings(blkk=32)), "blkk 32"),
        (replace(make_state("16:bf16"), settings=None), "no settings"),
        (make_state("16:bf16", sla_variant="other"), "variant 'other'"),
        (broken(weight=np.full((16, 16), np.nan, np.float32)), "weight of pair 16:bf16 holds NaN"),
        (broken(bias=np.full(16, np.inf, np.float32)), "bias of pair 16:bf16 holds NaN or Inf"),
        (broken(weight=np.zeros((16, 8), np.float32)), r"weight .*\[16, 8\], not \[16, 16\]"),
        (broken(bias=np.zeros(8, np.float32)), r"bias .*\[8\], not \[16\]"),
    ],
)
def test_a_state_that_cannot_run_is_refused_before_the_first_call(
    state: SLAState, message: str
) -> None:
    with pytest.raises(AttentionError, match=message) as caught, use_sla(state):
        pytest.fail("the block was entered")
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "cuda"}, "kernel 'cuda'"),
        ({"missing": "ignore"}, "missing='ignore'"),
        ({"variant": "sla-2"}, "sla-2"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(AttentionError, match=message), use_sla(make_state("16:bf16"), **arguments):
        pytest.fail("the block was entered")


def test_settings_alone_need_missing_zero() -> None:
    with pytest.raises(AttentionError, match="no projections"), use_sla(SLASettings()):
        pytest.fail("the block was entered")


def test_a_missing_pair_is_an_error_that_names_it(flux: nn.Module) -> None:
    with use_sla(make_state("64:bf16")), pytest.raises(AttentionError) as caught:
        run_model(flux, "flux")
    assert caught.value.message == "the SLA state has no pair 16:bf16 (it has: 64:bf16)"
    assert "enable_sla" in str(caught.value.hint)


def test_a_pair_in_the_wrong_dtype_is_an_error_that_says_so(flux: nn.Module) -> None:
    with use_sla(make_state("16:fp16")), pytest.raises(AttentionError) as caught:
        run_model(flux, "flux")
    assert "in the dtype of the state" in str(caught.value.hint)


def test_a_missing_pair_can_start_from_zero(flux: nn.Module) -> None:
    with use_sla(make_state("64:bf16"), missing="zero") as session:
        run_model(flux, "flux")
    assert session.to_state().pairs[KEY].equals(ProjectionTensors.zeros(16))


def test_a_kernel_that_cannot_run_is_an_error_not_dense_attention() -> None:
    q, k, v = qkv()
    with use_sla(make_state("16:bf16"), kernel="external"), pytest.raises(AttentionError):
        F.scaled_dot_product_attention(q, k, v)


def test_settings_can_be_given_for_a_state_without_them(flux: nn.Module) -> None:
    state = state_for("flux")
    with use_sla(state):
        expected = run_model(flux, "flux")
    with use_sla(replace(state, settings=None), settings=SLASettings()):
        assert torch.equal(run_model(flux, "flux"), expected)


@pytest.mark.parametrize(
    ("recorded", "given", "used"),
    [(None, None, "main"), (None, "sla-1", "sla-1"), ("sla-1", None, "sla-1")],
)
def test_the_variant_is_the_recorded_one_else_the_given_one(
    recorded: str | None, given: str | None, used: str
) -> None:
    origin = {} if recorded is None else {"sla_variant": recorded}
    with use_sla(make_state("16:bf16", **origin), variant=given) as session:
        assert session.variant == used
        assert session.modules[KEY].variant == used


def test_a_variant_that_contradicts_the_state_is_refused() -> None:
    state = make_state("16:bf16", sla_variant="sla-1")
    with pytest.raises(AttentionError, match="made by SLA variant 'sla-1', not 'main'"):
        use_sla(state, variant="main").__enter__()
