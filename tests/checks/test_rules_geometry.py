"""SLA309: the weights are those of the model that config.json describes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from sla_ckpt import VerifyOptions, verify
from sla_ckpt.checks.report import Finding
from sla_ckpt.pairs.block_lists import BLOCK_LISTS, declared_blocks
from sla_ckpt.regen.families.registry import builtin_adapters
from tests import factories

ONLY = VerifyOptions(select=("SLA309",))
WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny(class_name: str, **changes: Any) -> torch.nn.Module:
    config = {**builtin_adapters()[class_name].tiny_config(), **changes}
    model: torch.nn.Module = getattr(diffusers, class_name)(
        **{name: value for name, value in config.items() if not name.startswith("_")}
    )
    return model


@pytest.fixture(scope="module")
def wan() -> Mapping[str, torch.Tensor]:
    """Tensors of a Wan of four blocks, two heads of eight."""
    shapes = {"patch_embedding.weight": (16, 4)}
    for block in range(4):
        for attention in ("attn1", "attn2"):
            shapes |= {f"blocks.{block}.{attention}.to_{x}.weight": (16, 16) for x in "qkv"}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def write(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    transformer = folder / "transformer"
    transformer.mkdir(parents=True, exist_ok=True)
    base = {"_class_name": "WanTransformer3DModel", "num_layers": 4}
    heads = {"num_attention_heads": 2, "attention_head_dim": 8}
    (transformer / "config.json").write_text(json.dumps(base | heads | config))
    save_file(dict(tensors), transformer / WEIGHTS)
    return folder


def found(folder: Path) -> list[Finding]:
    return list(verify(folder, ONLY).findings)


@pytest.mark.parametrize("class_name", sorted(BLOCK_LISTS))
def test_the_table_is_what_the_real_class_does(class_name: str, tmp_path: Path) -> None:
    """One more block declared is one more block in that list, and what is saved fits."""
    model: Any = tiny(class_name)
    model.save_pretrained(tmp_path / "transformer")
    assert found(tmp_path) == []
    config = json.loads((tmp_path / "transformer/config.json").read_text())
    declared = declared_blocks(config)
    assert declared.keys() == BLOCK_LISTS[class_name].keys()
    for attribute, (entry, number) in declared.items():
        assert len(getattr(model, attribute)) == number
        larger = tiny(class_name, **{entry: number + 1})
        assert len(getattr(larger, attribute)) == number + 1
        changed = {**config, entry: number + 1}
        (tmp_path / "transformer/config.json").write_text(json.dumps(changed))
        (finding,) = [f for f in found(tmp_path) if f" in {attribute} " in f.message]
        assert f"{number + 1} blocks in {attribute} ({entry})" in finding.message
        assert f"has {number}: {number} missing" in finding.message


def test_every_list_of_whole_blocks_is_in_the_table() -> None:
    """Where a class takes a number of layers and makes a list of it, the table knows it."""
    for class_name, lists in BLOCK_LISTS.items():
        model = tiny(class_name)
        entries = inspect.signature(getattr(diffusers, class_name).__init__).parameters
        named = {
            name
            for name, module in model.named_children()
            if isinstance(module, torch.nn.ModuleList) and name != "caption_projection"
        }
        assert named == lists.keys(), class_name
        assert set(lists.values()) <= entries.keys(), class_name


def test_says_which_geometry_was_declared_and_which_is_there(
    wan: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    """Public report 5: a narrow file of 30 layers declared as 40 wide ones."""
    write(tmp_path, wan, num_layers=6, num_attention_heads=5)
    width, blocks = found(tmp_path)
    assert blocks.level == width.level == "error"
    assert blocks.path == "transformer/config.json"
    assert "declares 6 blocks in blocks (num_layers)" in blocks.message
    assert "has 4: 4, 5 missing" in blocks.message
    assert "5 heads of 8, 40 in all" in width.message
    assert "queries of 16" in width.message
    assert "blocks.0.attn1.to_q.weight" in width.message


def test_finds_gaps_and_what_is_not_declared(
    wan: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    whole = {name: value for name, value in wan.items() if not name.startswith("blocks.2.")}
    write(tmp_path, whole, num_layers=3)
    (finding,) = found(tmp_path)
    assert "declares 3 blocks" in finding.message
    assert "has 3: 2 missing, 3 not declared" in finding.message


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"_class_name": "SomethingElse", "num_layers": 9},
        {"_class_name": ["Wan"], "num_layers": 9},
        {"num_layers": None},
        {"num_layers": "9"},
        {"num_layers": True, "attention_head_dim": None},
        {"num_layers": -1},
    ],
    ids=str,
)
def test_what_cannot_be_known_is_not_judged(
    wan: Mapping[str, torch.Tensor], tmp_path: Path, config: dict[str, Any]
) -> None:
    write(tmp_path, wan, **config)
    assert found(tmp_path) == []


def test_other_names_other_files_and_missing_shards_are_not_judged(
    wan: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    write(tmp_path / "names", {f"model.{k}": v for k, v in wan.items()}, num_layers=9)
    assert found(tmp_path / "names") == []
    folder = write(tmp_path / "files", wan) / "transformer"
    save_file({"blocks.0.attn1.proj_l.weight": torch.zeros(8, 8)}, folder / "layers.safetensors")
    assert found(tmp_path / "files") == []
    folder = write(tmp_path / "shards", wan) / "transformer"
    names = [f"diffusion_pytorch_model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    (folder / WEIGHTS).rename(folder / names[0])
    index = {"weight_map": {**dict.fromkeys(wan, names[0]), "blocks.4.x": names[1]}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert found(tmp_path / "shards") == []
    assert [f.code for f in verify(tmp_path / "shards").findings if f.code == "SLA303"]
    (folder / f"{WEIGHTS}.index.json").unlink()
    assert found(tmp_path / "shards") == []


def test_a_variant_is_judged_by_itself(wan: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    folder = write(tmp_path, wan) / "transformer"
    half = {k: v.half() for k, v in wan.items() if not k.startswith("blocks.3.")}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    (finding,) = found(tmp_path)
    assert "diffusion_pytorch_model.fp16 has 3: 3 missing" in finding.message


def test_an_absurd_number_costs_nothing(wan: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    write(tmp_path, wan, num_layers=10**12)
    (finding,) = found(tmp_path)
    assert "declares 1,000,000,000,000 blocks" in finding.message
    assert len(finding.message) < 300


def test_checkpoints_of_simpletuner_fit(tmp_path: Path) -> None:
    for name in ("out_full", "out_full_ema"):
        folder = factories.DATA / f"checkpoints/{name}/checkpoint-3"
        assert found(folder) == []
        tensors = load_file(next((folder / "transformer").glob("*.safetensors")))
        assert any(".to_q." in key for key in tensors)
