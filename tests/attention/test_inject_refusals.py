"""What use_sla refuses, and what has to be asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

from .tiny_models import make_model, make_state, qkv, run_model, state_for

pytestmark = pytest.mark.usefixtures("patch_is_undone")


KEY = PairKey(16, "bf16")


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    return make_model("flux")


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
