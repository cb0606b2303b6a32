"""Out of memory: once more with gradient checkpointing, then one line that says what helps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.errors import RegenError
from sla_ckpt.regen import projections as proj
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.train import Runner
from sla_ckpt.regen.workload import Workload
from sla_ckpt.state import PairKey, SLASettings, SLAState

KEY = PairKey(16, "bf16")


class Hungry(nn.Module):
    """Has no memory for a backward pass without gradient checkpointing, or for any."""

    _supports_gradient_checkpointing = True
    is_gradient_checkpointing = False
    forward_fits = True

    def enable_gradient_checkpointing(self) -> None:
        self.is_gradient_checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        fits = self.is_gradient_checkpointing or not torch.is_grad_enabled()
        if not (fits and self.forward_fits):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return F.scaled_dot_product_attention(x, x, x)


class OneDraw:
    positions = (0,)

    def losses(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        x = torch.randn(1, 2, 256, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        return (model(x).float() - 1).square().mean().reshape(1)


def gradients_of(model: nn.Module) -> proj.Projections:
    zero = proj.zeros((KEY,))
    with use_sla(SLAState({}, SLASettings(topk=0.5)), trainable=True, missing="zero") as session:
        session.materialise([KEY])
        runner = Runner(model, session, torch.device("cpu"), torch.bfloat16, Group())
        runner.losses(Workload((OneDraw(),)), zero, lambda: None)
        return runner.loss_and_gradients(Workload((OneDraw(),)), zero, lambda: None)[1]


def test_a_backward_that_does_not_fit_is_repeated_with_checkpointing() -> None:
    model = Hungry()
    gradients = gradients_of(model)
    assert model.is_gradient_checkpointing
    roomy = Hungry()
    roomy.is_gradient_checkpointing = True
    torch.testing.assert_close(gradients[KEY], gradients_of(roomy)[KEY])
    assert float(gradients[KEY].norm()) > 0


def test_a_model_without_checkpointing_says_what_helps() -> None:
    model = Hungry()
    model._supports_gradient_checkpointing = False
    with pytest.raises(RegenError, match="too little memory for training") as caught:
        gradients_of(model)
    assert "--offload" in str(caught.value.hint)


def test_a_forward_that_does_not_fit_says_what_helps() -> None:
    model = Hungry()
    model.forward_fits = False
    with pytest.raises(RegenError, match="too little memory for a single forward pass") as caught:
        gradients_of(model)
    assert "--resolution" in str(caught.value.hint)
