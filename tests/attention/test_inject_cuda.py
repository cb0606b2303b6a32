"""What only a CUDA device shows: autograd's own threads, and parameters on several devices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sla_ckpt.attention.inject import SLASession, disable_sla, enable_sla, use_sla
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS, HEAD_DIM, LAYERS = 2, 64, 3
KEY = PairKey(HEAD_DIM, "bf16")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.qkv.weight.device)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class OwnCheckpoint(torch.autograd.Function):
    """A trainer's own checkpointing, which knows nothing of torch.utils.checkpoint."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor) -> Any:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.block(x)
        torch.autograd.backward(output, grad)
        return None, x.grad


RUN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda block, x: block(x),
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "not-reentrant": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "own-function": OwnCheckpoint.apply,
}


class Model(nn.Module):
    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.requires_grad_(False).to("cuda", torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = RUN[self.how](block, x)
        return x


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 512, HEADS * HEAD_DIM, generator=generator)
    return x.to("cuda", torch.bfloat16).requires_grad_()


def state() -> SLAState:
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.1, (HEAD_DIM, HEAD_DIM)).astype(np.float32)
    bias = random.normal(0, 0.1, HEAD_DIM).astype(np.float32)
    return SLAState({KEY: ProjectionTensors(weight, bias)}, SLASettings())


def gradients(session: SLASession) -> list[Tensor]:
    return [p.grad.cpu() for p in session.parameters() if p.grad is not None]


def expected() -> list[Tensor]:
    with use_sla(state(), trainable=True) as session:
        Model()(inputs()).float().square().mean().backward()
    found = gradients(session)
    assert len(found) == 2 and all(grad.norm() > 0 for grad in found)
    return found


def assert_same(got: list[Tensor], want: list[Tensor], tolerance: float = 5e-3) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        # dK and dV may be accumulated in another order.
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant", "own-function"])
def test_recompute_in_autograds_thread_sees_use_sla(how: str) -> None:
    want = expected()
    with use_sla(state(), trainable=True) as session:
        Model(how)(inputs()).float().square().mean().backward()
    assert_same(gradients(session), want)
    assert (session.stats.sparse_calls, session.stats.recomputed_calls) == (LAYERS, LAYERS)


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant"])
def test_recompute_in_autograds_thread_after_the_use_ended(how: str) -> None:
    want = expected()
    with use_sla(state(), trainable=True) as session:
        loss = Model(how)(inputs()).float().square().mean()
    original = F.scaled_dot_product_attention
    loss.backward()
    assert F.scaled_dot_product_attention is original
    assert_same(gradients(session), want)


@pytest.mark.parametrize("how", ["reentrant", "not-reentrant", "own-function"])
def test_recompute_in_autograds_thread_sees_enable_sla(how: str) -> None:
    want = expected()
    model = Model(how)
    session = enable_sla(model, state(), trainable=True)
    model(inputs()).float().square().mean().backward()
    disable_sla(model)
    assert_same(gradients(session), want)
    assert session.stats.recomputed_calls == LAYERS


def test_parameters_given_to_an_optimizer_before_the_first_call_are_those_that_run() -> None:
    with use_sla(state(), trainable=True) as session:
        parameters = list(session.parameters())
        Model()(inputs()).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    assert all(parameter.device.type == "cuda" for parameter in parameters)


@pytest.mark.parametrize("how", ["plain", "reentrant", "not-reentrant"])
def test_layers_on_two_devices_train_one_set_of_parameters(how: str) -> None:
    want = expected()
    model = Model(how)
    model.blocks[1].to("cuda:1" if torch.cuda.device_count() > 1 else "cpu")
    with use_sla(state(), trainable=True) as session:
        model(inputs()).float().square().mean().backward()
    # The CPU runs another kernel.
    assert_same(gradients(session), want, tolerance=2e-2)
    assert [p.device for p in session.parameters()] == [torch.device("cuda:0")] * 2
    assert session.stats.sparse_calls == LAYERS
    assert session.to_state().equals(state())


def test_two_backwards_at_once_never_mix_sessions() -> None:
    """PyTorch's engine does not say whose recomputation it runs; wrong silently it must not be."""
    want = expected()
    rounds = 5
    outcomes: list[str] = []

    def train(model: nn.Module) -> None:
        for _ in range(rounds):
            with use_sla(state(), trainable=True) as session:
                try:
                    model(inputs()).float().square().mean().backward()
                except AttentionError as error:
                    outcomes.append("refused" if "run at once" in error.message else str(error))
                    continue
            got = gradients(session)
            right = len(got) == len(want) and all(
                (one - other).norm() <= 5e-3 * other.norm()
                for one, other in zip(got, want, strict=True)
            )
            outcomes.append("right" if right else "wrong")

    # Made here: the seed is the whole process's.
    threads = [
        threading.Thread(target=train, args=(model,))
        for model in (Model("own-function"), Model("own-function"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2 * rounds
    assert set(outcomes) <= {"right", "refused"}
