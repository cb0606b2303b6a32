"""use_sla on real diffusers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sla_ckpt.attention.inject import SLAUnusedWarning, use_sla, without_sla
from sla_ckpt.attention.module import SparseLinearAttention
from sla_ckpt.state import PairKey, SLASettings

from .tiny_models import TINY_MODELS, make_model, make_state, qkv, run_model, state_for

pytestmark = pytest.mark.usefixtures("patch_is_undone")


KEY = PairKey(16, "bf16")


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    return make_model("flux")


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
