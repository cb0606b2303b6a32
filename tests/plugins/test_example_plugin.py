"""The example package of docs/plugins.md, installed with pip: each entry point does its work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sla_ckpt import read_state
from sla_ckpt.formats.twin import encode_safetensors
from sla_ckpt.state import SLASettings
from tests import factories
from tests.plugins.installing import EXAMPLE, ROOT, install_example, run

ACME_CONFIG = {
    "_class_name": "AcmeTransformer2DModel",
    "in_channels": 4,
    "width": 256,
    "heads": 4,
    "text_dim": 16,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("site"))


def checkpoint(folder: Path, *pairs: str, topk: float = 0.2) -> Path:
    saved = factories.state(*pairs, settings=SLASettings(topk=topk))
    return factories.write_full_checkpoint(folder, saved, config=ACME_CONFIG)


def test_its_rule_is_listed_explained_and_applied(site: Path, tmp_path: Path) -> None:
    listing = run("rules", site=site).stdout
    assert "ACME001  warning  topk too large for Acme's kernels [acme-sla 1.0]" in listing
    assert listing.index("SLA404") < listing.index("ACME001"), "built-in rules come first"
    assert run("rules", "acme001", site=site).stdout.startswith("# ACME001: topk too large")
    listed = json.loads(run("rules", "--json", site=site).stdout)
    packages = {item["code"]: item["package"] for item in listed}
    assert packages["ACME001"] == "acme-sla 1.0" and packages["SLA202"] is None

    large = checkpoint(tmp_path / "checkpoint-1", "64:bf16", topk=0.75)
    report = json.loads(run("verify", large, "--json", site=site).stdout)
    assert [item["code"] for item in report["findings"] if item["level"] != "info"] == ["ACME001"]
    assert report["ok"] is True
    assert run("verify", large, "--strict", site=site).returncode == 1
    assert "ACME001" in run("verify", large, "--format", "github", site=site).stdout
    sarif = json.loads(run("verify", large, "--format", "sarif", site=site).stdout)
    driver = sarif["runs"][0]["tool"]["driver"]
    (result,) = [item for item in sarif["runs"][0]["results"] if item["ruleId"] == "ACME001"]
    assert driver["rules"][result["ruleIndex"]]["id"] == "ACME001"


def test_its_rule_is_selected_and_ignored_by_code_and_prefix(site: Path, tmp_path: Path) -> None:
    large = checkpoint(tmp_path / "checkpoint-1", "128:bf16", topk=0.75)  # and a pair is missing
    only = json.loads(run("verify", large, "--select", "ACME", "--json", site=site).stdout)
    assert [item["code"] for item in only["findings"]] == ["ACME001"]
    without = json.loads(run("verify", large, "--ignore", "ACME001", "--json", site=site).stdout)
    codes = [item["code"] for item in without["findings"]]
    assert "SLA202" in codes and "ACME001" not in codes
    unknown = run("verify", large, "--select", "ACME", site=None)
    assert unknown.returncode == 2 and "no rule matches 'ACME'" in unknown.stderr


def test_its_pairs_let_verify_judge_the_model_without_torch(site: Path, tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "checkpoint-1", "64:bf16")
    report = json.loads(run("verify", good, "--json", site=site).stdout)
    assert report["pairs"] == {"expected": ["64:bf16"], "found": ["64:bf16"]}
    wrong = checkpoint(tmp_path / "checkpoint-2", "128:bf16")
    found = json.loads(run("verify", wrong, "--json", site=site).stdout)
    assert "SLA202" in [item["code"] for item in found["findings"]]
    assert json.loads(run("verify", good, "--json").stdout)["pairs"]["expected"] == []
    no_torch = "import sys; sys.modules['torch'] = None\nfrom sla_ckpt.cli.main import run\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{no_torch}run(['verify', {str(good)!r}])"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr


def test_its_layout_is_read_and_written_by_migrate(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "acme.safetensors"
    one = factories.projection(64)
    tensors = {
        f"net.stack.{layer}.mixer.linear_out.{name}": ("F32", array.shape, array.tobytes())
        for layer in range(3)
        for name, array in (("weight", one.weight), ("bias", one.bias))
    }
    source.write_bytes(encode_safetensors(tensors, {"format": "pt"}))
    folder = checkpoint(tmp_path / "checkpoint-1", "64:bf16")
    (folder / "sla_attention.pt").unlink()
    refused = run("migrate", folder, "--from", source)
    assert refused.returncode != 0 and "nothing to migrate" in refused.stderr
    done = run("migrate", folder, "--from", source, "--topk", "0.2", site=site)
    assert done.returncode == 0, done.stderr
    assert "Acme, per layer" in done.stdout
    (saved,) = read_state(folder / "sla_attention.pt").pairs.values()
    assert np.array_equal(saved.weight, one.weight)

    written = tmp_path / "out.safetensors"
    args = ("migrate", folder, "--to", "acme", "--layers", "2", "-o", written)
    assert run(*args, site=site).returncode == 0
    back = checkpoint(tmp_path / "checkpoint-2", "64:bf16")
    (back / "sla_attention.pt").unlink()
    assert run("migrate", back, "--from", written, "--topk", "0.2", site=site).returncode == 0
    assert read_state(back / "sla_attention.pt").equals(read_state(folder / "sla_attention.pt"))
    without = run(*args)
    assert without.returncode == 2 and "'acme' is not one of" in without.stderr


def test_its_family_serves_regen_and_env_lists_it_all(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sla_ckpt.cli.env import collect
    from sla_ckpt.regen.families.base import collate
    from sla_ckpt.regen.families.registry import adapter_for

    monkeypatch.syspath_prepend(str(site))
    adapter = adapter_for("AcmeTransformer2DModel")
    assert adapter.name == "acme"
    config = adapter.tiny_config()
    generator = torch.Generator().manual_seed(0)
    sample = adapter.synthetic_sample(
        config, height=64, width=64, text_tokens=3, generator=generator
    )
    batch = collate([adapter.prepare(config, sample)])
    inputs = adapter.make_inputs(None, batch, batch.latents, torch.tensor([0.5]))
    assert inputs["timestep"].tolist() == [500.0]
    assert inputs["encoder_hidden_states"].shape == (1, 3, 16)
    assert collect()["plugins"] == {
        "sla_ckpt.rules ACME001": "acme-sla 1.0",
        "sla_ckpt.layouts acme": "acme-sla 1.0",
        "sla_ckpt.pairs AcmeTransformer2DModel": "acme-sla 1.0",
        "sla_ckpt.families AcmeTransformer2DModel": "acme-sla 1.0",
    }
    for name in [name for name in sys.modules if name.startswith("acme_sla")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_variable_leaves_it_out(site: Path) -> None:
    off = run("rules", site=site, SLA_CKPT_NO_PLUGINS="1")
    assert off.returncode == 0 and "ACME001" not in off.stdout


def test_the_guide_shows_this_very_package() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for name in ("rules.py", "layout.py", "pairs.py"):
        assert (EXAMPLE / "acme_sla" / name).read_text(encoding="utf-8") in page, name
    entries = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    assert entries[entries.index("[project.entry-points") : entries.index("[tool.")].strip() in page
