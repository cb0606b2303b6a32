"""torch.compile: the model keeps its graphs, SLA runs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from sla_ckpt.attention.inject import disable_sla, enable_sla, use_sla

from .tiny_models import TINY_MODELS, make_model, run_model, state_for

NAME = "flux"
# Dynamo's own, while it traces diffusers; as errors they would break the compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


def make_small() -> nn.Module:
    """Compiling takes its time, so one block only."""
    model = make_model(NAME)
    del model.single_transformer_blocks[:]
    return model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def dense() -> Tensor:
    return run_model(make_small(), NAME)


@pytest.fixture(scope="module")
def sparse() -> Tensor:
    with use_sla(state_for(NAME)):
        return run_model(make_small(), NAME)


def compile_copy(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend="eager")
    return compiled


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compile_blocks(model: nn.Module) -> nn.Module:
    model.compile_repeated_blocks(backend="eager")
    return model


@pytest.mark.parametrize("compile_model", [compile_copy, compile_in_place, compile_blocks])
@torch.no_grad()
def test_sla_reaches_a_model_compiled_before_and_leaves_it_again(
    compile_model: Callable[[nn.Module], nn.Module], dense: Tensor, sparse: Tensor
) -> None:
    model = compile_model(make_small())
    assert torch.equal(run_model(model, NAME), dense)
    for _ in range(2):
        with use_sla(state_for(NAME)) as use:
            assert torch.equal(run_model(model, NAME), sparse)
        assert use.stats.sparse_calls == 1
        assert torch.equal(run_model(model, NAME), dense)
    enabled = enable_sla(model, state_for(NAME))
    assert torch.equal(run_model(model, NAME), sparse)
    assert enabled.stats.sparse_calls == 1
    disable_sla(model)
    assert torch.equal(run_model(model, NAME), dense)


@pytest.mark.parametrize("compile_model", [compile_copy, compile_blocks])
@torch.no_grad()
def test_an_enabled_model_can_be_compiled(
    compile_model: Callable[[nn.Module], nn.Module], dense: Tensor, sparse: Tensor
) -> None:
    plain = make_small()
    session = enable_sla(plain, state_for(NAME))
    model = compile_model(plain)
    assert torch.equal(run_model(model, NAME), sparse)
    assert session.stats.sparse_calls == 1
    disable_sla(plain)
    assert torch.equal(run_model(model, NAME), dense)


@pytest.mark.parametrize("enable", [True, False])
@torch.no_grad()
def test_fullgraph_is_refused_with_the_reason(enable: bool) -> None:
    plain = make_small()
    model = torch.compile(plain, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="compile without fullgraph=True"):
        if enable:
            enable_sla(model, state_for(NAME))
            run_model(model, NAME)
        else:
            with use_sla(state_for(NAME)):
                run_model(model, NAME)
    disable_sla(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_compiled_model_are_those_of_the_plain_one(checkpointing: bool) -> None:
    def gradient(compiled: bool) -> Tensor:
        model = make_small().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        session = enable_sla(model, state_for(NAME), trainable=True)
        if compiled:
            model = torch.compile(model, backend="aot_eager")
        inputs = TINY_MODELS[NAME].inputs()
        model(**inputs, return_dict=False)[0].float().square().mean().backward()
        assert session.stats.sparse_calls == 1
        assert session.stats.recomputed_calls == (1 if checkpointing else 0)
        weight, _ = session.parameters()
        assert weight.grad is not None
        return weight.grad

    expected, got = gradient(False), gradient(True)
    assert expected.norm() > 0
    assert (got - expected).norm() <= 1e-2 * expected.norm()
