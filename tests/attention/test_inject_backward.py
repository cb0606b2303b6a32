"""Gradient checkpointing: backward runs the forward again, maybe elsewhere and later."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sla_ckpt.attention.inject import SLASession, disable_sla, enable_sla, use_sla

from .tiny_models import TINY_MODELS, make_model, state_for

pytestmark = pytest.mark.usefixtures("patch_is_undone")

Run = Callable[[], Tensor]


class OwnCheckpoint(torch.autograd.Function):
    """A trainer's own checkpointing, which knows nothing of torch.utils.checkpoint."""

    @staticmethod
    def forward(ctx: Any, function: Any, *args: Any) -> Any:
        ctx.function, ctx.arguments = function, args
        with torch.no_grad():
            return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs = [
            a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
            for a in ctx.arguments
        ]
        with torch.enable_grad():
            outputs = ctx.function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return (None, *(getattr(value, "grad", None) for value in inputs))


CHECKPOINTS: dict[str, Callable[..., Any]] = {
    "reentrant": lambda block, *args: checkpoint(block.__call__, *args, use_reentrant=True),
    "not-reentrant": lambda block, *args: checkpoint(block.__call__, *args, use_reentrant=False),
    "own-function": OwnCheckpoint.apply,
}
MODELS = ("flux", "sd3", "wan", "unet")


def training_model(name: str, how: str | None) -> nn.Module:
    model = make_model(name).train()
    if how is not None:
        model.enable_gradient_checkpointing(CHECKPOINTS[how])
    return model


def loss_of(model: nn.Module, name: str) -> Tensor:
    inputs = TINY_MODELS[name].inputs()
    # Reentrant checkpointing needs an input that requires grad, as full training has.
    first = next(iter(inputs))
    inputs[first].requires_grad_()
    return model(**inputs, return_dict=False)[0].float().square().mean()


def gradients(session: SLASession) -> list[Tensor]:
    found = [parameter.grad for parameter in session.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found)
    return [grad.clone() for grad in found if grad is not None]


def expected_gradients(name: str) -> list[Tensor]:
    with use_sla(state_for(name), trainable=True) as session:
        loss_of(training_model(name, None), name).backward()
    assert session.stats.recomputed_calls == 0
    return gradients(session)


def in_thread(function: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def target() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_gives_the_gradients_of_no_checkpointing(name: str, how: str) -> None:
    expected = expected_gradients(name)
    with use_sla(state_for(name), trainable=True) as session:
        loss_of(training_model(name, how), name).backward()
    # Reentrant checkpointing adds the bf16 gradients of a UNet's skip connections in another order.
    assert_same(gradients(session), expected, tolerance=5e-3 if name == "unet" else 1e-6)
    calls = sum(TINY_MODELS[name].pairs.values())
    assert session.stats.sparse_calls == calls
    assert 0 < session.stats.recomputed_calls <= calls


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
def test_backward_in_another_thread_sees_the_session_of_its_forward(how: str) -> None:
    expected = expected_gradients("flux")
    with use_sla(state_for("flux"), trainable=True) as session:
        loss = loss_of(training_model("flux", how), "flux")
        in_thread(loss.backward)
    assert_same(gradients(session), expected)
    assert session.stats.recomputed_calls == 2


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
@pytest.mark.parametrize("thread", [False, True])
def test_backward_after_the_use_ended_sees_the_session_of_its_forward(
    how: str, thread: bool
) -> None:
    expected = expected_gradients("flux")
    with use_sla(state_for("flux"), trainable=True) as session:
        loss = loss_of(training_model("flux", how), "flux")
    if thread:
        in_thread(loss.backward)
    else:
        loss.backward()
    assert_same(gradients(session), expected)


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
def test_backward_inside_another_use_sees_the_session_of_its_forward(how: str) -> None:
    expected = expected_gradients("flux")
    with use_sla(state_for("flux"), trainable=True) as session:
        loss = loss_of(training_model("flux", how), "flux")
    with use_sla(state_for("flux", seed=5), trainable=True) as other:
        loss.backward()
    assert_same(gradients(session), expected)
    assert all(parameter.grad is None for parameter in other.parameters())
    assert other.stats.recomputed_calls == 0


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
def test_a_forward_of_another_thread_without_sla_stays_dense_in_backward(how: str) -> None:
    losses: list[Tensor] = []
    inputs = TINY_MODELS["flux"].inputs()
    model = training_model("flux", how)
    hidden = inputs.pop("hidden_states").requires_grad_()

    def dense_forward() -> None:
        losses.append(model(hidden, **inputs, return_dict=False)[0].float().square().mean())

    dense_forward()
    losses.pop().backward()
    expected, hidden.grad = hidden.grad, None
    with use_sla(state_for("flux"), trainable=True) as session:
        in_thread(dense_forward)
        losses.pop().backward()
    assert expected is not None and hidden.grad is not None
    assert torch.equal(hidden.grad, expected)
    assert session.stats.recomputed_calls == 0


@pytest.mark.parametrize("how", list(CHECKPOINTS))
@pytest.mark.parametrize("thread", [False, True])
def test_an_enabled_model_recomputes_with_sla_in_any_thread(how: str, thread: bool) -> None:
    expected = expected_gradients("flux")
    model = training_model("flux", how)
    session = enable_sla(model, state_for("flux"), trainable=True)
    loss = loss_of(model, "flux")
    if thread:
        in_thread(loss.backward)
    else:
        loss.backward()
    disable_sla(model)
    assert_same(gradients(session), expected)
    assert session.stats.recomputed_calls == 2


@pytest.mark.parametrize("thread", [False, True])
def test_a_trainers_own_checkpointing_works_inside_a_use(thread: bool) -> None:
    expected = expected_gradients("flux")
    with use_sla(state_for("flux"), trainable=True) as session:
        loss = loss_of(training_model("flux", "own-function"), "flux")

        def backward() -> None:
            loss.backward()

        if thread:
            # Like a device thread of autograd: it gets the caller's context from PyTorch.
            context = contextvars.copy_context()
            in_thread(lambda: context.run(backward))
        else:
            backward()
    assert_same(gradients(session), expected)


def test_backward_under_autocast_with_checkpointing() -> None:
    def run(how: str | None) -> list[Tensor]:
        with use_sla(state_for("flux"), trainable=True) as session:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(training_model("flux", how), "flux")
            loss.backward()
        return gradients(session)

    expected = run(None)
    assert_same(run("reentrant"), expected)
    assert_same(run("not-reentrant"), expected)


def test_backward_of_the_whole_graph_reaches_frozen_inputs() -> None:
    inputs = TINY_MODELS["flux"].inputs()
    hidden = inputs.pop("hidden_states").requires_grad_()
    model = make_model("flux")
    with use_sla(state_for("flux")):
        model(hidden, **inputs, return_dict=False)[0].float().square().mean().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
