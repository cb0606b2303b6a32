"""Every layout of other projects becomes a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sla_ckpt.errors import FormatError, MigrationError, SlaCkptError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.migrate import MigrateOptions, migrate, plan_migration
from sla_ckpt.state import PairKey
from tests.formats.zip_builders import GOOD_STATE
from tests.migrate.layout_files import (
    LAYER_NAMES,
    NESTINGS,
    layer_tensors,
    save_pth,
    save_safetensors,
    save_sharded,
)

LOCAL = "blocks.{}.self_attn.attn_op.local_attn"


def state_of(folder: Path) -> Any:
    return read_state(folder / "sla_attention.pt")


def assert_holds(folder: Path, tensors: dict[str, torch.Tensor], dim: int = 8) -> None:
    """The folder's state holds the (equal) projections of these tensors."""
    state = state_of(folder)
    assert list(state.pairs) == [PairKey(dim, "bf16")]
    projection = state.pairs[PairKey(dim, "bf16")]
    weight = next(value for name, value in tensors.items() if name.endswith("proj_l.weight"))
    bias = next(value for name, value in tensors.items() if name.endswith("proj_l.bias"))
    np.testing.assert_array_equal(projection.weight, weight.float().numpy())
    np.testing.assert_array_equal(projection.bias, bias.float().numpy())
    assert projection.weight_dtype == projection.bias_dtype == "float32"
    assert read_twin(folder / "sla_attention.safetensors").equals(state)


@pytest.mark.parametrize("layout", LAYER_NAMES)
@pytest.mark.parametrize("container", ["pth", "safetensors", "sharded", "folder"])
def test_equal_layers_become_one_pair(layout: str, container: str, tmp_path: Path) -> None:
    tensors = layer_tensors(layout)
    model = tmp_path / "model"
    model.mkdir()
    if container == "pth":
        source = save_pth(model / "model.pth", tensors)
    elif container == "safetensors":
        source = save_safetensors(model / "adapter.safetensors", tensors)
    else:
        index = save_sharded(model, tensors)
        source = model if container == "folder" else index
    result = migrate(tmp_path, MigrateOptions(source=source))
    assert_holds(tmp_path, tensors)
    assert "3 layers" in result.plan.source
    assert migrate(tmp_path, MigrateOptions(source=source)).plan.is_empty


@pytest.mark.parametrize("nesting", NESTINGS)
def test_training_dumps_are_unwrapped(nesting: str, tmp_path: Path) -> None:
    """Public report 42: weights under a top-level key, or under a prefix."""
    tensors = layer_tensors("turbodiffusion", dtype=torch.bfloat16)
    source = save_pth(tmp_path / "dump.pth", NESTINGS[nesting](tensors))
    migrate(source)
    assert_holds(tmp_path, tensors)


def test_the_average_is_taken_where_a_dump_holds_both(tmp_path: Path) -> None:
    raw = layer_tensors("turbodiffusion", prefix="net.", seed=1)
    average = layer_tensors("turbodiffusion", prefix="net_ema.", seed=2)
    source = save_pth(tmp_path / "dump.pth", {"model": {**raw, **average}})
    result = migrate(source)
    assert_holds(tmp_path, average)
    assert any("net_ema." in note and "net." in note for note in result.plan.notes)


def test_a_bare_module_becomes_a_state(tmp_path: Path) -> None:
    module = torch.nn.ModuleDict({"proj_l": torch.nn.Linear(8, 8)})
    source = save_pth(tmp_path / "sla.pt", module.state_dict())
    migrate(source)
    assert_holds(tmp_path, module.state_dict())


def test_a_legacy_torch_file_is_read_through_torchs_weights_only_loader(tmp_path: Path) -> None:
    tensors = layer_tensors("turbodiffusion")
    source = save_pth(tmp_path / "old.pth", tensors, _use_new_zipfile_serialization=False)
    migrate(source)
    assert_holds(tmp_path, tensors)


def test_quantised_neighbours_and_views_do_not_matter(tmp_path: Path) -> None:
    """Public reports 4 and 32: int8 neighbours are not needed, non-contiguous views are copied."""
    tensors = layer_tensors("turbodiffusion")
    for name in [name for name in tensors if "ffn" in name]:
        tensors[name.replace("weight", "int8_weight")] = torch.ones(4, 4, dtype=torch.int8)
        tensors[name.replace("weight", "scale")] = torch.ones(4, dtype=torch.float32)
    turned = {name: value.t().contiguous().t() if value.ndim == 2 else value
              for name, value in tensors.items()}  # fmt: skip
    migrate(save_pth(tmp_path / "quant.pth", turned))
    assert_holds(tmp_path, tensors)


def test_only_the_projections_leave_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    from sla_ckpt.formats import reading

    tensors = layer_tensors("turbodiffusion")
    for layer in range(20):
        tensors[f"blocks.{layer}.big.weight"] = torch.zeros(1 << 16)
    read = 0
    original = reading.Bytes.exactly

    def counting(self: Any, start: int, length: int) -> bytes:
        nonlocal read
        read += length
        return original(self, start, length)

    source = save_pth(tmp_path / "big.pth", tensors)
    twin = save_safetensors(tmp_path / "big.safetensors", tensors)
    monkeypatch.setattr(reading.Bytes, "exactly", counting)
    for path in (source, twin):
        read = 0
        plan_migration(tmp_path, MigrateOptions(source=path))
        assert path.stat().st_size > 5_000_000
        assert read < 200_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{LOCAL.format(1)}.proj_l.weight"), "no proj_l.weight"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.1.self")],
            "layers 1 have no projection; 2 of 3",
        ),
        (lambda t: t.update(layer_tensors("fastvideo")), "mixes the layouts"),
        (
            lambda t: t.update(
                {"blocks.0.self_attn.attn_op.local_attn.proj_l.weight": torch.zeros(8, 7)}
            ),
            "layer 0: proj_l.weight [8, 7]",
        ),
        (
            lambda t: t.update(
                {"blocks.2.self_attn.attn_op.local_attn.proj_l.bias": torch.full((8,), torch.nan)}
            ),
            "has 8 of 8 values NaN or Inf",
        ),
        (
            lambda t: t.update(
                {"blocks.2.self_attn.attn_op.local_attn.proj_l.bias": torch.ones(8).to(torch.int8)}
            ),
            "int8, not a plain float",
        ),
        (
            lambda t: t.update({
                f"module.{name}": value for name, value in list(t.items())
            }),
            "the same name once wrappers are stripped",
        ),
        (
            lambda t: t.update({f"{LOCAL.format(0)}.router.weight": torch.ones(1)}),
            "SLA2",
        ),
        (lambda t: t.update({"weird.proj_l.weight": torch.ones(8, 8)}), "not known"),
        (lambda t: [t.pop(name) for name in list(t) if "proj_l" in name], "nothing to migrate"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    """Public report 41 among others: names that collide once wrappers are stripped."""
    tensors = layer_tensors("turbodiffusion")
    change(tensors)
    source = save_pth(tmp_path / "model.pth", tensors)
    with pytest.raises(MigrationError, match=r"model\.pth") as caught:
        migrate(source)
    assert words in caught.value.message
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_layers_that_differ_are_refused_with_their_spread(tmp_path: Path) -> None:
    tensors = layer_tensors("fastvideo", equal=False)
    source = save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(MigrationError, match="different projections") as caught:
        migrate(source)
    assert "relative error" in caught.value.message
    assert "--reduce mean" in str(caught.value.hint)
    result = migrate(source, MigrateOptions(reduce="mean"))
    weights = [value.double() for name, value in tensors.items() if name.endswith("proj_l.weight")]
    mean = torch.stack(weights).mean(0).float()
    projection = state_of(tmp_path).pairs[PairKey(8, "bf16")]
    np.testing.assert_array_equal(projection.weight, mean.numpy())
    assert any("relative error" in note for note in result.plan.notes)
    assert (
        "mean of 3 layers" in read_twin(tmp_path / "sla_attention.safetensors").origin["reduction"]
    )


def test_layers_that_are_zero_are_counted_and_not_refused(tmp_path: Path) -> None:
    """Public report 2: a published file whose projections are all zero."""
    tensors = layer_tensors("turbodiffusion", layers=40)
    zeros = {name: torch.zeros_like(value) for name, value in tensors.items()}
    result = migrate(save_pth(tmp_path / "zeros.pth", zeros))
    assert any("40 of 40 layers are all zero" in note for note in result.plan.notes)


def test_a_file_of_another_geometry_is_refused(tmp_path: Path) -> None:
    """Public report 5: a 30-layer file for a 40-layer model."""
    import json

    transformer = tmp_path / "transformer"
    transformer.mkdir()
    config = {"_class_name": "WanTransformer3DModel", "num_layers": 40, "attention_head_dim": 128,
              "num_attention_heads": 40}  # fmt: skip
    (transformer / "config.json").write_text(json.dumps(config))
    source = save_pth(tmp_path / "wan.pth", layer_tensors("turbodiffusion", layers=30, dim=128))
    with pytest.raises(MigrationError, match="has 30 layers of head_dim 128") as caught:
        migrate(tmp_path, MigrateOptions(source=source))
    assert "has 40" in caught.value.message
    small = save_pth(tmp_path / "small.pth", layer_tensors("turbodiffusion", layers=40, dim=8))
    with pytest.raises(MigrationError, match="head_dim 8"):
        migrate(tmp_path, MigrateOptions(source=small))


def test_a_good_state_is_not_replaced_unasked(tmp_path: Path) -> None:
    import shutil

    shutil.copy(GOOD_STATE, tmp_path)
    source = save_pth(tmp_path / "model.pth", layer_tensors("turbodiffusion"))
    before = (tmp_path / "sla_attention.pt").read_bytes()
    with pytest.raises(MigrationError, match="is there and holds something else"):
        migrate(tmp_path, MigrateOptions(source=source))
    assert (tmp_path / "sla_attention.pt").read_bytes() == before
    result = migrate(tmp_path, MigrateOptions(source=source, overwrite=True))
    assert result.applied.backups[0].read_bytes() == before


def test_a_checkpoint_whose_model_holds_projections_is_found(tmp_path: Path) -> None:
    transformer = tmp_path / "transformer"
    transformer.mkdir()
    tensors = layer_tensors("turbowan")
    save_sharded(transformer, tensors)
    migrate(tmp_path)
    assert_holds(tmp_path, tensors)


def test_an_adapters_other_deltas_are_reported(tmp_path: Path) -> None:
    tensors = layer_tensors("mindie")
    result = migrate(save_safetensors(tmp_path / "adapter.safetensors", tensors))
    assert any("3 other tensors" in note for note in result.plan.notes)


def test_a_lora_without_projections_has_nothing_to_migrate(tmp_path: Path) -> None:
    """Public report 9: a LoRA with "sla" in its name and no projection in it."""
    lora = {"transformer.blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}
    source = save_safetensors(tmp_path / "minimax_sla_lora.safetensors", lora)
    with pytest.raises(MigrationError, match="nothing to migrate"):
        migrate(source)


def test_settings_are_recorded_as_given_and_marked_when_assumed(tmp_path: Path) -> None:
    """Public report 8: the SLA variant is part of the provenance."""
    source = save_pth(tmp_path / "model.pth", layer_tensors("turbodiffusion"))
    result = migrate(source)
    assert any("does not say which settings" in note for note in result.plan.notes)
    options = MigrateOptions(topk=0.1, blkq=128, variant="sla-1", overwrite=True)
    result = migrate(source, options)
    assert not any("does not say which settings" in note for note in result.plan.notes)
    state = state_of(tmp_path)
    assert (state.settings.topk, state.settings.blkq) == (0.1, 128)
    origin = read_twin(tmp_path / "sla_attention.safetensors").origin
    assert (origin["sla_variant"], origin["source_layout"]) == ("sla-1", "turbodiffusion")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"garbage" * 10),
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda p: torch.save(torch.nn.Linear(2, 2), p),
        lambda p: p.write_bytes(b"\x80\x02cos\nsystem\n."),
        lambda p: torch.save({"a": 1}, p, _use_new_zipfile_serialization=False) or
        p.write_bytes(p.read_bytes()[:60]),
    ],
)  # fmt: skip
def test_a_damaged_or_unsafe_source_is_one_error(make: Any, tmp_path: Path) -> None:
    """Public reports 23, 38 and 39: pointers, whole modules and foreign globals."""
    source = tmp_path / "model.pth"
    make(source)
    with pytest.raises(SlaCkptError) as caught:
        migrate(source)
    assert "\n" not in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_stale_index_is_named(tmp_path: Path) -> None:
    index = save_sharded(tmp_path, layer_tensors("sglang"))
    index.write_text(index.read_text().replace("blocks.0", "blocks.7", 1))
    with pytest.raises(FormatError, match="stale"):
        migrate(tmp_path, MigrateOptions(source=index))
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(FormatError, match="outside its folder"):
        migrate(tmp_path, MigrateOptions(source=index))


def test_a_converted_state_is_listed_in_the_manifest(tmp_path: Path) -> None:
    import json

    manifest = tmp_path / "checkpoint_manifest.json"
    manifest.write_text(json.dumps({"version": 1, "files": ["transformer/config.json"]}))
    source = save_pth(tmp_path / "model.pth", layer_tensors("turbodiffusion"))
    migrate(tmp_path, MigrateOptions(source=source))
    assert "sla_attention.pt" in json.loads(manifest.read_text())["files"]
    assert migrate(tmp_path).plan.is_empty
