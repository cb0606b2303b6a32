"""What verify calls fixable is fixed; what is not is left alone and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sla_ckpt.checks.verify as checks
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.migrate import MigrateOptions, fix, migrate
from sla_ckpt.state import PairKey
from tests.formats.zip_builders import STATES
from tests.migrate.states import (
    PAIR,
    checkpoint,
    payload,
    saved,
    titles,
)


def test_a_good_state_is_left_alone(tmp_path: Path) -> None:
    for name in ("one_pair_128_bf16", "three_pairs", "views_of_one_storage"):
        folder = checkpoint(tmp_path / name, name)
        before = (folder / "sla_attention.pt").read_bytes()
        assert migrate(folder).plan.is_empty
        assert [path.name for path in folder.iterdir()] == ["sla_attention.pt"]
        assert (folder / "sla_attention.pt").read_bytes() == before


def test_the_manifest_gets_its_entry_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "one_pair_128_bf16")
    manifest = {"version": 1, "checkpoint": "checkpoint-3", "files": ["optimizer.bin", "z"],
                "metadata": {"model_family": "flüx"}}  # fmt: skip
    path = folder / "checkpoint_manifest.json"
    path.write_text(json.dumps(manifest, indent=2))
    assert titles(folder) == ["manifest entry added"]
    manifest["files"] = ["optimizer.bin", "sla_attention.pt", "z"]
    assert json.loads(path.read_bytes()) == manifest
    assert titles(folder) == []


def test_a_read_only_cache_behind_links_is_never_written(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    shutil.copy(STATES / "wrong/tie_missing/sla_attention.pt", blob)
    before = blob.read_bytes()
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "sla_attention.pt").symlink_to(blob)
    result = migrate(folder)
    assert blob.read_bytes() == before
    assert not (folder / "sla_attention.pt").is_symlink()
    assert result.applied.backups[0].read_bytes() == before


def test_fix_repairs_what_verify_calls_fixable_and_nothing_else(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    value = payload(settings=None, state={"128:bf16": halves})
    folder = saved(tmp_path / "c", value)
    report = checks.verify(folder)
    assert {"SLA101", "SLA204"} <= {finding.code for finding in report.findings if finding.fixable}
    result = fix(folder, {"SLA101"})
    assert {step.code for step in result.plan.steps} == {"SLA101"}
    assert read_state(folder / "sla_attention.pt").pairs[PAIR].weight_dtype == "bfloat16"
    fix(folder, checks.verify(folder))
    after = checks.verify(folder)
    assert not [finding for finding in after.findings if finding.fixable]
    assert after.ok


REAL = sorted(str(path.parent.relative_to(STATES)) for path in STATES.rglob("sla_attention.pt"))


@pytest.mark.parametrize("name", REAL)
def test_migrating_twice_is_migrating_once(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", name)
    options = MigrateOptions(expect=(PAIR,), to="safetensors")
    first = migrate(folder, options)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    second = migrate(folder, options)
    assert second.plan.is_empty
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    if first.plan.is_empty:
        assert (folder / "sla_attention.pt").read_bytes() == (
            STATES / name / "sla_attention.pt"
        ).read_bytes()


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.dictionaries(
        st.sampled_from(
            ["4:bf16", "4:bfloat16", "4:fp16", "4", 4, "8:fp32", "8:torch.float32", "x"]
        ),
        st.tuples(
            st.sampled_from(["", "module.", "_orig_mod."]),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
            st.booleans(),
        ),
        max_size=3,
    ),
    st.sampled_from([None, {}, {"topk": 0.1}, {"topk": 1, "blkq": 64.0, "x": 1}, {"topk": "a"}]),
    st.sampled_from([1, None, 2]),
    st.booleans(),
)  # fmt: skip
def test_repairs_are_idempotent_and_never_lose_a_pair(
    tmp_path: Path, pairs: Any, raw_settings: Any, version: Any, strays: bool
) -> None:
    state = {}
    for index, (key, (prefix, dtype, zero)) in enumerate(pairs.items()):
        dim = 8 if str(key).startswith("8") else 4
        fill = 0.0 if zero else float(index + 1)
        state[key] = {
            f"{prefix}proj_l.weight": torch.full((dim, dim), fill, dtype=dtype),
            f"{prefix}proj_l.bias": torch.full((dim,), fill, dtype=dtype),
        }
    value = {"settings": raw_settings, "state": state}
    if version is not None:
        value["version"] = version
    folder = tmp_path / "c"
    shutil.rmtree(folder, ignore_errors=True)
    saved(folder, value)
    before = (folder / "sla_attention.pt").read_bytes()
    options = MigrateOptions(expect=(PairKey(4, "bf16"),), drop_strays=strays)
    result = migrate(folder, options)
    assert migrate(folder, options).plan.is_empty
    if result.plan.problems:
        assert (folder / "sla_attention.pt").read_bytes() == before
        return
    after = read_state(folder / "sla_attention.pt")
    assert after.settings is not None
    assert all(pair.weight_dtype == "float32" for pair in after.pairs.values())
    kept = {float(pair.bias[0]) for pair in after.pairs.values()}
    assert kept >= {
        float(index + 1) for index, (_, _, zero) in enumerate(pairs.values()) if not zero
    }


def test_a_path_that_is_not_ascii_works_for_every_repair(tmp_path: Path) -> None:
    """Public report 57: a path that is not ASCII."""
    data = Path(__file__).parents[1] / "data" / "checkpoints" / "out_peft" / "checkpoint-3"
    folder = tmp_path / "modèle_検証"
    shutil.copytree(data, folder)
    shutil.copy(STATES / "wrong/legacy_nonzip_torch_save/sla_attention.pt", folder)
    assert {step.code for step in migrate(folder).plan.steps} == {"SLA002", "SLA304"}
    assert migrate(folder).plan.is_empty


def test_a_dry_run_leaves_only_what_the_plan_does_not_repair(tmp_path: Path) -> None:
    from sla_ckpt.migrate.show import with_remaining

    folder = checkpoint(tmp_path / "c", "wrong/key_no_dtype")
    options = MigrateOptions(expect=(PAIR, PairKey(64, "bf16")))
    planned = with_remaining(migrate(folder, options, dry_run=True), options, dry_run=True).plan
    done = with_remaining(migrate(folder, options), options, dry_run=False).plan
    assert [step.code for step in planned.steps] == ["SLA201"]
    assert planned.problems == done.problems
    (problem,) = planned.problems
    assert "pair 64:bf16 is missing" in problem.message
    assert str(folder) in (problem.hint or "")


def test_sharded_bin_weights_are_read_through_their_own_index(tmp_path: Path) -> None:
    """Public report 48: *.bin.index.json is an index, too."""
    name = "blocks.{}.attn1.attn_impl.proj_l.{}"
    one = {"weight": torch.eye(8), "bias": torch.ones(8)}
    weight_map = {}
    for layer in range(2):
        file = f"diffusion_pytorch_model-0000{layer + 1}-of-00002.bin"
        tensors = {name.format(layer, key): value.clone() for key, value in one.items()}
        torch.save(tensors, tmp_path / file)
        weight_map.update(dict.fromkeys(tensors, file))
    index = tmp_path / "diffusion_pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    out = tmp_path / "out"
    out.mkdir()
    migrate(out, MigrateOptions(source=index))
    (projection,) = read_state(out / "sla_attention.pt").pairs.values()
    assert np.array_equal(projection.weight, np.eye(8, dtype=np.float32))
