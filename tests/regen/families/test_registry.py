"""Adapters are found by class name, built in or installed as plug-ins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sla_ckpt.errors import PluginWarning, RegenError
from sla_ckpt.pairs.trace import trace_pairs
from sla_ckpt.regen.families.base import FamilyAdapter, Size, collate
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters

PLUGIN = """
from dataclasses import dataclass
from sla_ckpt.regen.families.base import BaseAdapter, Conditioning

@dataclass(frozen=True)
class Toy(BaseAdapter):
    name: str = "toy"
    class_names: tuple = ("ToyTransformer",)

    def tiny_config(self):
        return {"_class_name": "ToyTransformer", "in_channels": 3, "text": 4}

    def conditioning(self, config):
        return {"prompt_embeds": Conditioning((None, config["text"]), scale=1.0)}

    def make_inputs(self, model, batch, noisy, t):
        return {"x": noisy, "t": t, "text": batch.conditioning["prompt_embeds"]}

ADAPTER = Toy()
make = Toy
number = 7
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Make a package with one entry point look installed."""

    def do(entry: str, class_name: str = "ToyTransformer", code: str = PLUGIN) -> None:
        (tmp_path / "toy_plugin.py").write_text(code, encoding="utf-8")
        info = tmp_path / "toy_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sla_ckpt.families]\n{class_name} = {entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "toy_plugin", raising=False)

    return do


@pytest.mark.parametrize("entry", ["toy_plugin:ADAPTER", "toy_plugin:Toy", "toy_plugin:make"])
def test_plugins_are_found_through_their_entry_point(install, entry: str) -> None:  # type: ignore[no-untyped-def]
    install(entry)
    config = {"_class_name": "ToyTransformer", "in_channels": 3, "text": 4}
    adapter = adapter_for(config)
    assert isinstance(adapter, FamilyAdapter)
    assert adapter.name == "toy"
    sample = adapter.synthetic_sample(
        config, height=64, width=64, text_tokens=2, generator=torch.Generator().manual_seed(0)
    )
    assert adapter.prepare(config, sample).latents.shape == (3, 8, 8)
    assert adapter.latent_shape(config, Size(32, 64)) == (3, 4, 8)
    # The table does not know this class, so it cannot turn tokens into a size.
    with pytest.raises(RegenError, match="no size of toy"):
        adapter.size_for_tokens(config, 64)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("toy_plugin:missing", "does not load"),
        ("no_such_module:ADAPTER", "does not load"),
        ("toy_plugin:number", "is not a FamilyAdapter"),
    ],
)
def test_broken_plugins_are_one_clear_error(install, entry: str, problem: str) -> None:  # type: ignore[no-untyped-def]
    install(entry)
    with pytest.raises(RegenError, match=problem):
        adapter_for("ToyTransformer")


def test_built_in_adapters_win_over_plugins(install) -> None:  # type: ignore[no-untyped-def]
    install("toy_plugin:ADAPTER", "FluxTransformer2DModel")
    with pytest.warns(PluginWarning, match=r"toy-plugin 1\.0 is left out: it is built in"):
        assert adapter_for("FluxTransformer2DModel").name == "flux"


def test_unknown_classes_say_how_to_add_one() -> None:
    with pytest.raises(RegenError, match="knows how to run NewTransformer") as info:
        adapter_for({"_class_name": "NewTransformer"})
    assert "sla_ckpt.families" in str(info.value.hint)
    assert "adding-a-family" in str(info.value.hint)
    with pytest.raises(RegenError, match="no _class_name"):
        adapter_for({})


def test_every_adapter_keeps_the_protocol() -> None:
    for class_name, adapter in builtin_adapters().items():
        assert isinstance(adapter, FamilyAdapter)
        assert adapter.tiny_config()["_class_name"] == class_name


def test_the_example_in_the_guide_works_as_a_plugin(install) -> None:  # type: ignore[no-untyped-def]
    page = (Path(__file__).parents[3] / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    install("toy_plugin:ADAPTER", "MyTransformer2DModel", code)
    config = adapter_for("MyTransformer2DModel").tiny_config()
    adapter = adapter_for(config)
    sample = adapter.synthetic_sample(
        config, height=64, width=64, text_tokens=3, generator=torch.Generator().manual_seed(0)
    )
    batch = collate([adapter.prepare(config, sample)])
    t = adapter.sample_timesteps(config, batch, torch.Generator().manual_seed(0))
    noisy, target = adapter.add_noise(batch.latents, torch.randn(batch.latents.shape), t)
    inputs = adapter.make_inputs(None, batch, noisy, t)
    assert inputs["encoder_hidden_states"].shape == (1, 3, 16)
    assert adapter.read_prediction((target,), batch) is target

    class MyTransformer2DModel(torch.nn.Module):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__()
            self.config = config

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> MyTransformer2DModel:
            return cls(config)

        def forward(
            self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
        ) -> Tensor:
            tokens = (
                hidden_states.flatten(2)[:, :, None].transpose(1, 3)[..., :1].expand(-1, -1, 2, 8)
            )
            heads = tokens.transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    traced = trace_pairs(config, model_class=MyTransformer2DModel)
    assert [str(pair) for pair in traced.pairs] == ["8:bf16"]
