"""Our files in SimpleTuner's own controller: its code, from PyPI, loads what we write."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import write_state
from sla_ckpt.migrate import MigrateOptions, migrate
from sla_ckpt.state import PairKey, SLASettings, SLAState
from tests.formats.zip_builders import GOOD_STATE, STATES
from tests.interop.simpletuner_wheel import downloaded_wheel
from tests.migrate.layout_files import layer_tensors, save_pth

pytestmark = pytest.mark.interop

MODULE = "simpletuner/helpers/training/attention_backend.py"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class StandInSLA(torch.nn.Module):
    """What the controller needs of thu-ml/SLA's module: its constructor and its ``proj_l``."""

    def __init__(self, head_dim: int, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.proj_l = torch.nn.Linear(head_dim, head_dim)
        torch.nn.init.zeros_(self.proj_l.weight)
        torch.nn.init.zeros_(self.proj_l.bias)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """The module of SimpleTuner that has the controller, with what it imports stubbed."""
    wheel = downloaded_wheel()
    folder = tmp_path_factory.mktemp("simpletuner")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(MODULE, folder)
    stubs: dict[str, types.ModuleType] = {}
    for name in ("simpletuner", "simpletuner.helpers", "simpletuner.helpers.logging",
                 "sparse_linear_attention"):  # fmt: skip
        stubs[name] = types.ModuleType(name)
    import logging

    stubs["simpletuner.helpers.logging"].get_logger = logging.getLogger  # type: ignore[attr-defined]
    stubs["sparse_linear_attention"].SparseLinearAttention = StandInSLA  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        name = "simpletuner.helpers.training.attention_backend"
        spec = importlib.util.spec_from_file_location(name, folder / MODULE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        # Enabling SLA replaces it; undone with the patch.
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                      torch.nn.functional.scaled_dot_product_attention)  # fmt: skip
        yield module
    for name in ("scaled_dot_product_attention_sla", "scaled_dot_product_attention_sdpa"):
        vars(torch.nn.functional).pop(name, None)


@pytest.fixture
def controller(backend: types.ModuleType) -> Iterator[Any]:
    """The controller as in a fresh process."""
    controller = backend.AttentionBackendController
    reset(controller)
    yield controller
    reset(controller)


def reset(controller: Any) -> None:
    controller._sla_cache = {}
    controller._sla_state_store = {}
    controller._sla_settings = None
    controller._active_backend = None
    controller._optimizer = None
    controller._parameter_sink = None
    controller._sink_param_ids = set()
    controller._optimizer_param_ids = set()


def enable(controller: Any, backend: types.ModuleType, settings: SLASettings) -> None:
    config = types.SimpleNamespace(sla_config=settings.to_dict())
    controller._enable_sla(config, backend.AttentionPhase.TRAIN)


def module_for(controller: Any, pair: PairKey) -> Any:
    """The module the controller makes when queries of this kind arrive."""
    query = torch.zeros(1, 1, 4, pair.head_dim, dtype=DTYPES[pair.dtype])
    return controller._get_sla_module(StandInSLA, query)


def assert_controller_holds(controller: Any, state: SLAState) -> None:
    for pair, projection in state.pairs.items():
        module = module_for(controller, pair)
        assert module.proj_l.weight.dtype == torch.float32
        assert torch.equal(module.proj_l.weight, torch.from_numpy(projection.weight.copy()))
        assert torch.equal(module.proj_l.bias, torch.from_numpy(projection.bias.copy()))


def migrated(name: str, folder: Path, **options: Any) -> SLAState:
    shutil.copy(STATES / name / "sla_attention.pt", folder)
    result = migrate(folder, MigrateOptions(**options))
    assert result.applied.written
    return read_state(folder / "sla_attention.pt")


REPAIRED: list[tuple[str, dict[str, Any]]] = [
    ("wrong/tie_missing", {}),
    ("wrong/settings_none", {}),
    ("wrong/bf16_tensors", {}),
    ("legacy_bf16_proj_l", {}),
    ("wrong/renamed_keys_module_prefix", {}),
    ("wrong/legacy_nonzip_torch_save", {}),
    ("wrong/key_no_dtype", {"expect": (PairKey(128, "bf16"),)}),
    ("wrong/key_int", {"expect": (PairKey(128, "bf16"),)}),
    ("wrong/state_flat", {"expect": (PairKey(128, "bf16"),)}),
    ("one_pair_128_bf16", {"expect": (PairKey(128, "fp16"),)}),
]


@pytest.mark.parametrize("order", ["enable_then_load", "load_then_enable"])
@pytest.mark.parametrize(("name", "options"), REPAIRED, ids=[name for name, _ in REPAIRED])
def test_a_repaired_state_arrives_whole_in_either_order(
    name: str, options: dict[str, Any], order: str, controller: Any, backend: Any, tmp_path: Path
) -> None:
    state = migrated(name, tmp_path, **options)
    assert state.settings is not None
    if order == "enable_then_load":
        enable(controller, backend, state.settings)
    controller.on_load_checkpoint(str(tmp_path))
    if order == "load_then_enable":
        enable(controller, backend, state.settings)
    assert_controller_holds(controller, state)
    assert controller._sla_settings == state.settings.to_dict()
    for pair in options.get("expect", ()):
        assert module_for(controller, pair).proj_l.weight.abs().sum() > 0


def test_the_broken_file_really_loses_its_state_there(
    controller: Any, backend: Any, tmp_path: Path
) -> None:
    shutil.copy(STATES / "wrong/tie_missing/sla_attention.pt", tmp_path)
    controller.on_load_checkpoint(str(tmp_path))
    enable(controller, backend, SLASettings())
    assert not module_for(controller, PairKey(128, "bf16")).proj_l.weight.any()


def test_what_it_saves_again_is_byte_for_byte_what_we_wrote(
    controller: Any, backend: Any, tmp_path: Path
) -> None:
    for name in ("one_pair_128_bf16", "three_pairs"):
        reset(controller)
        ours = tmp_path / name
        ours.mkdir()
        write_state(ours, read_state(STATES / name / "sla_attention.pt"))
        enable(controller, backend, read_state(ours / "sla_attention.pt").settings or SLASettings())
        controller.on_load_checkpoint(str(ours))
        theirs = tmp_path / f"{name}-saved"
        controller.on_save_checkpoint(str(theirs))
        assert (theirs / "sla_attention.pt").read_bytes() == (
            ours / "sla_attention.pt"
        ).read_bytes()


@pytest.mark.parametrize("layout", ["turbodiffusion", "turbowan", "sglang", "fastvideo", "mindie"])
def test_a_converted_foreign_layout_arrives(
    layout: str, controller: Any, backend: Any, tmp_path: Path
) -> None:
    source = save_pth(tmp_path / "model.pth", layer_tensors(layout, dim=16))
    migrate(source, MigrateOptions(topk=0.1, pair=PairKey(16, "bf16")))
    state = read_state(tmp_path / "sla_attention.pt")
    assert state.settings is not None
    enable(controller, backend, state.settings)
    controller.on_load_checkpoint(str(tmp_path))
    assert_controller_holds(controller, state)
    module = module_for(controller, PairKey(16, "bf16"))
    assert module.options["topk"] == 0.1
    weight = next(value for name, value in layer_tensors(layout, dim=16).items()
                  if name.endswith("proj_l.weight"))  # fmt: skip
    assert torch.equal(module.proj_l.weight, weight)


def test_a_file_made_by_its_own_save_is_read_here(
    controller: Any, backend: Any, tmp_path: Path
) -> None:
    enable(controller, backend, SLASettings(topk=0.3, feature_map="relu", blkq=128))
    expected = {}
    for pair in (PairKey(128, "bf16"), PairKey(64, "fp16")):
        module = module_for(controller, pair)
        with torch.no_grad():
            module.proj_l.weight.normal_()
            module.proj_l.bias.normal_()
        expected[pair] = module
    controller.on_save_checkpoint(str(tmp_path))
    state = read_state(tmp_path / "sla_attention.pt")
    assert state.settings == SLASettings(topk=0.3, feature_map="relu", blkq=128)
    assert list(state.pairs) == list(expected)
    assert_controller_holds(controller, state)
    assert GOOD_STATE.read_bytes() != (tmp_path / "sla_attention.pt").read_bytes()
