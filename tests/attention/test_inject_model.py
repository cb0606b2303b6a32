"""enable_sla: SLA inside one model and nowhere else."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from sla_ckpt.attention.binding import session_of
from sla_ckpt.attention.inject import SLAUnusedWarning, disable_sla, enable_sla, use_sla
from sla_ckpt.errors import AttentionError, UsageError
from sla_ckpt.state import SLASettings

from .tiny_models import TINY_MODELS, make_model, make_state, run_model, state_for

pytestmark = pytest.mark.usefixtures("patch_is_undone")


@pytest.fixture
def flux() -> nn.Module:
    return make_model("flux")


@pytest.fixture(scope="module")
def dense() -> Tensor:
    return run_model(make_model("flux"), "flux")


@pytest.fixture(scope="module")
def sparse() -> Tensor:
    with use_sla(state_for("flux")):
        return run_model(make_model("flux"), "flux")


@pytest.mark.parametrize("name", TINY_MODELS)
def test_an_enabled_model_runs_sparse_until_disabled(name: str) -> None:
    model = make_model(name)
    before = run_model(model, name)
    with use_sla(state_for(name)):
        expected = run_model(model, name)
    session = enable_sla(model, state_for(name))
    assert torch.equal(run_model(model, name), expected)
    disable_sla(model)
    assert torch.equal(run_model(model, name), before)
    assert {str(key): n for key, n in session.stats.pairs.items()} == TINY_MODELS[name].pairs
    assert dict(session.stats.dense_calls) == TINY_MODELS[name].dense


def test_another_model_is_not_affected(flux: nn.Module, dense: Tensor, sparse: Tensor) -> None:
    other = make_model("flux")
    enable_sla(flux, state_for("flux"))
    original = F.scaled_dot_product_attention
    assert torch.equal(run_model(other, "flux"), dense)
    assert torch.equal(run_model(flux, "flux"), sparse)
    assert torch.equal(run_model(other, "flux"), dense)
    assert F.scaled_dot_product_attention is original
    disable_sla(flux)


def test_two_models_keep_their_own_states(flux: nn.Module, sparse: Tensor) -> None:
    other = make_model("flux")
    enable_sla(flux, state_for("flux"))
    session = enable_sla(other, state_for("flux", seed=9))
    theirs = run_model(other, "flux")
    assert torch.equal(run_model(flux, "flux"), sparse)
    assert not torch.equal(theirs, sparse)
    disable_sla(flux)
    assert torch.equal(run_model(other, "flux"), theirs)
    assert session.stats.sparse_calls == 4
    disable_sla(other)


def test_every_thread_that_calls_the_model_gets_sla(flux: nn.Module, sparse: Tensor) -> None:
    enable_sla(flux, state_for("flux"))
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(run_model(flux, "flux")))
    thread.start()
    thread.join()
    disable_sla(flux)
    assert torch.equal(results[0], sparse)


def test_the_models_own_state_wins_inside_a_use(flux: nn.Module, sparse: Tensor) -> None:
    session = enable_sla(flux, state_for("flux"))
    with use_sla(state_for("flux", seed=4)) as outer:
        assert torch.equal(run_model(flux, "flux"), sparse)
    disable_sla(flux)
    assert (session.stats.sparse_calls, outer.stats.sparse_calls) == (2, 0)


def test_enabling_again_replaces_the_state(flux: nn.Module, dense: Tensor, sparse: Tensor) -> None:
    first = enable_sla(flux, state_for("flux", seed=4))
    second = enable_sla(flux, state_for("flux"))
    assert torch.equal(run_model(flux, "flux"), sparse)
    assert first.closed and not second.closed
    disable_sla(flux)
    assert torch.equal(run_model(flux, "flux"), dense)
    assert session_of(flux) is None


def test_a_refused_state_leaves_the_running_one(flux: nn.Module, sparse: Tensor) -> None:
    enable_sla(flux, state_for("flux"))
    with pytest.raises(AttentionError, match="hedgehog"):
        enable_sla(flux, state_for("flux", settings=SLASettings(feature_map="hedgehog")))
    assert torch.equal(run_model(flux, "flux"), sparse)
    disable_sla(flux)


def test_disabling_is_harmless_when_nothing_is_enabled(flux: nn.Module, dense: Tensor) -> None:
    disable_sla(flux)
    disable_sla(flux)
    assert torch.equal(run_model(flux, "flux"), dense)


def test_what_has_no_denoiser_is_refused() -> None:
    with pytest.raises(UsageError, match="has no denoiser"):
        enable_sla(object(), make_state("16:bf16"))


def test_an_exception_in_the_model_leaves_nothing_behind(flux: nn.Module, dense: Tensor) -> None:
    enable_sla(flux, state_for("flux"))
    inputs = TINY_MODELS["flux"].inputs() | {"encoder_hidden_states": torch.zeros(1, 2, 3)}
    with pytest.raises(RuntimeError):
        flux(**inputs)
    assert torch.equal(run_model(make_model("flux"), "flux"), dense)
    disable_sla(flux)


def test_an_interrupted_call_leaves_nothing_behind(flux: nn.Module, dense: Tensor) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    enable_sla(flux, state_for("flux"), observer=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_model(flux, "flux")
    assert torch.equal(run_model(make_model("flux"), "flux"), dense)
    disable_sla(flux)


def test_a_missing_pair_raises_at_the_first_call(flux: nn.Module) -> None:
    enable_sla(flux, make_state("64:bf16"))
    with pytest.raises(AttentionError, match="no pair 16:bf16"):
        run_model(flux, "flux")
    disable_sla(flux)


def test_a_model_that_only_runs_dense_is_warned_about_once() -> None:
    model = make_model("flux", dtype=torch.float32)
    inputs = {name: value.float() for name, value in TINY_MODELS["flux"].inputs().items()}
    enable_sla(model, state_for("flux"))
    with pytest.warns(SLAUnusedWarning, match="dtype × 2"):
        model(**inputs)
    model(**inputs)
    disable_sla(model)


def test_a_copy_of_the_model_is_plain(flux: nn.Module, dense: Tensor, sparse: Tensor) -> None:
    enable_sla(flux, state_for("flux"))
    clone = copy.deepcopy(flux)
    assert type(clone) is FluxTransformer2DModel
    assert torch.equal(run_model(clone, "flux"), dense)
    assert torch.equal(run_model(flux, "flux"), sparse)
    disable_sla(flux)


def test_an_enabled_model_can_be_saved(flux: nn.Module, dense: Tensor, tmp_path: Path) -> None:
    enable_sla(flux, state_for("flux"))
    assert isinstance(flux, FluxTransformer2DModel)
    assert type(flux).__name__ == "FluxTransformer2DModel"
    flux.save_pretrained(tmp_path)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert torch.equal(run_model(loaded, "flux"), dense)
    buffer = io.BytesIO()
    torch.save(flux, buffer)
    buffer.seek(0)
    unpickled = torch.load(buffer, weights_only=False)
    assert type(unpickled) is FluxTransformer2DModel
    assert torch.equal(run_model(unpickled, "flux"), dense)
    disable_sla(flux)


def test_the_parameters_of_the_model_do_not_change(flux: nn.Module) -> None:
    names = list(flux.state_dict())
    enable_sla(flux, state_for("flux"), trainable=True)
    run_model(flux, "flux")
    assert list(flux.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in flux.parameters())
    disable_sla(flux)


def test_a_wrapper_that_calls_forward_directly_gets_sla(flux: nn.Module, sparse: Tensor) -> None:
    """As PEFT's tuners do; the blocks are bound too."""
    session = enable_sla(flux, state_for("flux"))
    got = flux.forward(**TINY_MODELS["flux"].inputs(), return_dict=False)[0]
    disable_sla(flux)
    assert torch.equal(got, sparse)
    assert session.stats.sparse_calls == 2


@pytest.mark.parametrize("lora_first", [True, False])
def test_a_lora_may_be_added_before_or_after(flux: nn.Module, lora_first: bool) -> None:
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(1)
    if lora_first:
        flux.add_adapter(lora)
    session = enable_sla(flux, state_for("flux"))
    if not lora_first:
        flux.add_adapter(lora)
    got = run_model(flux, "flux")
    assert session.stats.sparse_calls == 2
    disable_sla(flux)
    with use_sla(state_for("flux")):
        assert torch.equal(run_model(flux, "flux"), got)


@pytest.mark.parametrize("hook_first", [True, False])
def test_offload_hooks_come_and_go(
    flux: nn.Module, dense: Tensor, sparse: Tensor, hook_first: bool
) -> None:
    """diffusers takes its offload hooks off and on again after every pipeline call."""
    if hook_first:
        add_hook_to_module(flux, ModelHook())
    enable_sla(flux, state_for("flux"))
    if not hook_first:
        add_hook_to_module(flux, ModelHook())
    assert torch.equal(run_model(flux, "flux"), sparse)
    remove_hook_from_module(flux)
    assert torch.equal(run_model(flux, "flux"), sparse)
    add_hook_to_module(flux, ModelHook())
    assert torch.equal(run_model(flux, "flux"), sparse)
    disable_sla(flux)
    assert torch.equal(run_model(flux, "flux"), dense)


def test_a_class_derived_from_ours_while_enabled_survives(
    flux: nn.Module, dense: Tensor, sparse: Tensor
) -> None:
    """FSDP, for one, swaps the class too."""
    enable_sla(flux, state_for("flux"))
    derived = type("Derived", (type(flux),), {})
    flux.__class__ = derived
    assert torch.equal(run_model(flux, "flux"), sparse)
    disable_sla(flux)
    assert type(flux) is derived
    assert torch.equal(run_model(flux, "flux"), dense)


def test_the_replicas_that_data_parallel_makes_are_enabled_too(flux: nn.Module) -> None:
    session = enable_sla(flux, state_for("flux"))
    assert session_of(flux._replicate_for_data_parallel()) is session
    disable_sla(flux)


def test_an_enabled_model_can_be_collected() -> None:
    model = make_model("flux")
    enable_sla(model, state_for("flux"))
    run_model(model, "flux")
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_pipeline_like_object_shares_one_session_among_its_denoisers() -> None:
    class Pipeline:
        transformer = make_model("flux")
        transformer_2 = make_model("flux")
        vae = make_model("flux")

    pipe = Pipeline()
    dense = run_model(pipe.vae, "flux")
    session = enable_sla(pipe, state_for("flux"))
    run_model(pipe.transformer, "flux")
    run_model(pipe.transformer_2, "flux")
    assert torch.equal(run_model(pipe.vae, "flux"), dense)
    assert session.stats.sparse_calls == 4
    disable_sla(pipe)
    assert torch.equal(run_model(pipe.transformer_2, "flux"), dense)
