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
from sla_ckpt.formats.simpletuner import encode_state, read_payload, read_state
from sla_ckpt.formats.twin import encode_twin, foreign_metadata, read_twin, twin_pt_sha256
from sla_ckpt.migrate import MigrateOptions, fix, migrate
from sla_ckpt.state import PairKey, SLASettings, SLAState
from tests.formats.zip_builders import GOOD_STATE, STATES

PAIR = PairKey(128, "bf16")
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
}


def checkpoint(folder: Path, state: str | Path | bytes, *, config: bool = False) -> Path:
    """A checkpoint folder with one of the real states, and maybe a config that needs 128:bf16."""
    folder.mkdir(exist_ok=True)
    target = folder / "sla_attention.pt"
    if isinstance(state, bytes):
        target.write_bytes(state)
    else:
        shutil.copy(STATES / state / "sla_attention.pt", target)
    if config:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps(FLUX))
    return folder


def saved(folder: Path, value: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / "sla_attention.pt")
    return folder


def payload(**changes: Any) -> dict[str, Any]:
    good = torch.load(GOOD_STATE, weights_only=True)
    return {**good, **changes}


def titles(folder: Path, **options: Any) -> list[str]:
    return [step.title for step in migrate(folder, MigrateOptions(**options)).plan.steps]


def assert_repaired(folder: Path, title: str, **options: Any) -> SLAState:
    """The one step is taken, the original is kept, and a second run finds nothing to do."""
    before = (folder / "sla_attention.pt").read_bytes()
    result = migrate(folder, MigrateOptions(**options))
    assert [step.title for step in result.plan.steps] == [title]
    assert [path.read_bytes() for path in result.applied.backups] == [before]
    assert migrate(folder, MigrateOptions(**options)).plan.is_empty
    after = read_state(folder / "sla_attention.pt")
    assert encode_state(after) == (folder / "sla_attention.pt").read_bytes()
    return after


def assert_same_projection(state: SLAState, pair: PairKey = PAIR) -> None:
    original = read_state(GOOD_STATE).pairs[PAIR]
    np.testing.assert_array_equal(state.pairs[pair].weight, original.weight)
    np.testing.assert_array_equal(state.pairs[pair].bias, original.bias)


def test_a_good_state_is_left_alone(tmp_path: Path) -> None:
    for name in ("one_pair_128_bf16", "three_pairs", "views_of_one_storage"):
        folder = checkpoint(tmp_path / name, name)
        before = (folder / "sla_attention.pt").read_bytes()
        assert migrate(folder).plan.is_empty
        assert [path.name for path in folder.iterdir()] == ["sla_attention.pt"]
        assert (folder / "sla_attention.pt").read_bytes() == before


def test_a_missing_tie_becomes_true(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/tie_missing")
    state = assert_repaired(folder, "settings completed from the trainer's defaults")
    assert state.settings == SLASettings()
    assert_same_projection(state)
    # The very bytes a current trainer writes.
    assert (folder / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()


def test_settings_that_are_none_are_filled_in(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/settings_none")
    state = assert_repaired(folder, "settings filled in from the trainer's defaults")
    assert state.settings == SLASettings()


def test_the_runs_own_configuration_fills_gaps_first(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/settings_none")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"attention_mechanism": "sla", "sla_config": {"topk": 0.05}}))
    state = assert_repaired(
        folder, "settings filled in from the run's configuration", config=config
    )
    assert state.settings is not None
    assert state.settings.topk == 0.05


def test_entries_nobody_reads_and_wrong_number_types_are_cleaned(tmp_path: Path) -> None:
    raw = {**payload()["settings"], "top_k": 0.3, "blkq": 64.0}
    folder = saved(tmp_path / "c", payload(settings=raw))
    assert_repaired(folder, "settings corrected")
    assert read_payload(folder / "sla_attention.pt").value["settings"] == SLASettings().to_dict()  # type: ignore[index]


@pytest.mark.parametrize("name", ["wrong/bf16_tensors", "legacy_bf16_proj_l"])
def test_half_precision_becomes_float32_exactly(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", name)
    before = torch.load(folder / "sla_attention.pt", weights_only=True)["state"]
    migrate(folder)
    after = torch.load(folder / "sla_attention.pt", weights_only=True)["state"]
    for pair in before:
        for tensor in before[pair]:
            assert after[pair][tensor].dtype == torch.float32
            assert torch.equal(after[pair][tensor], before[pair][tensor].float())
    assert migrate(folder).plan.is_empty


def test_float64_is_rounded_and_says_so(tmp_path: Path) -> None:
    pairs = {"128:bf16": {name: value.double() / 3 for name, value in
                          payload()["state"]["128:bf16"].items()}}  # fmt: skip
    folder = saved(tmp_path / "c", payload(state=pairs))
    (step,) = migrate(folder).plan.steps
    assert "largest rounding" in step.after


def test_integers_are_not_turned_into_a_projection(tmp_path: Path) -> None:
    pairs = {"128:bf16": {name: value.to(torch.int8) for name, value in
                          payload()["state"]["128:bf16"].items()}}  # fmt: skip
    folder = saved(tmp_path / "c", payload(state=pairs))
    result = migrate(folder)
    assert result.plan.is_empty
    assert "int8" in result.plan.problems[0].message


@pytest.mark.parametrize(
    ("raw", "written"),
    [("128:bfloat16", "128:bf16"), ("128:torch.float16", "128:fp16"), ("128:BF16", "128:bf16")],
)
def test_long_dtype_tokens_are_normalised(raw: str, written: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", payload(state={raw: payload()["state"]["128:bf16"]}))
    state = assert_repaired(folder, "key normalised")
    assert_same_projection(state, PairKey.parse(written))


@pytest.mark.parametrize("name", ["wrong/key_int", "wrong/key_no_dtype", "wrong/state_flat"])
def test_a_key_without_dtype_takes_the_one_that_is_needed(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", name)
    result = migrate(folder)
    assert result.plan.is_empty
    assert result.plan.problems[0].hint == "name the pair: --expect 128:bf16"
    state = assert_repaired(folder, "key normalised", expect=(PAIR,))
    assert_same_projection(state)


def test_two_keys_that_become_one_must_be_equal(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    folder = saved(tmp_path / "c", payload(state={"128:bf16": tensors, "128:bfloat16": tensors}))
    assert_repaired(folder, "duplicate dropped")
    other = {name: value + 1 for name, value in tensors.items()}
    folder = saved(tmp_path / "d", payload(state={"128:bf16": tensors, "128:bfloat16": other}))
    result = migrate(folder)
    assert result.plan.is_empty
    assert "two different projections would become 128:bf16" in result.plan.problems[0].message


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.",
               "module._orig_mod."]
)  # fmt: skip
def test_wrapper_prefixes_are_stripped(prefix: str, tmp_path: Path) -> None:
    """Public report 41: wrapper prefixes in keys."""
    tensors = payload()["state"]["128:bf16"]
    renamed = {prefix + name: value for name, value in tensors.items()}
    state = assert_repaired(saved(tmp_path / "c", payload(state={"128:bf16": renamed})),
                            "prefixes stripped")  # fmt: skip
    assert_same_projection(state)


def test_a_real_prefixed_file_is_repaired_to_the_trainers_bytes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/renamed_keys_module_prefix")
    assert_repaired(folder, "prefixes stripped")
    assert (folder / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()


def test_a_collision_of_stripped_names_is_refused(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    both = {**tensors, "module.proj_l.weight": tensors["proj_l.weight"] * 2}
    result = migrate(saved(tmp_path / "c", payload(state={"128:bf16": both})))
    assert result.plan.is_empty
    assert "once wrappers are stripped" in result.plan.problems[0].message


@pytest.mark.parametrize("wrapper", ["module", "state_dict", "model"])
def test_a_wrapped_payload_is_unwrapped(wrapper: str, tmp_path: Path) -> None:
    """Public report 42: the payload sits under another key."""
    state = assert_repaired(saved(tmp_path / "c", {wrapper: payload()}), "unwrapped")
    assert_same_projection(state)


def test_a_missing_version_is_added_and_another_one_refused(tmp_path: Path) -> None:
    value = payload()
    del value["version"]
    assert_repaired(saved(tmp_path / "c", value), "version added")
    result = migrate(checkpoint(tmp_path / "d", "wrong/version_2"))
    assert result.plan.is_empty
    assert "version 2 is not known" in result.plan.problems[0].message


def test_a_pair_is_copied_to_the_dtype_the_checkpoint_needs(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    folder = saved(tmp_path / "c", payload(state={"128:fp32": tensors}))
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(FLUX))
    state = assert_repaired(folder, "128:fp32 copied to 128:bf16")
    assert_same_projection(state)
    assert_same_projection(state, PairKey(128, "fp32"))


def test_a_pair_is_copied_only_when_its_source_is_clear(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    other = {name: value + 1 for name, value in tensors.items()}
    pairs = {"128:fp32": tensors, "128:float64": other}
    folder = saved(tmp_path / "c", payload(state=pairs))
    result = migrate(folder, MigrateOptions(expect=(PAIR,)))
    assert result.plan.is_empty
    assert "128:fp32 and 128:float64 differ" in result.plan.problems[0].message
    zero = {name: torch.zeros_like(value) for name, value in tensors.items()}
    folder = saved(tmp_path / "d", payload(state={"128:fp32": zero, "128:fp16": tensors}))
    state = assert_repaired(folder, "128:fp16 copied to 128:bf16", expect=(PAIR,))
    assert_same_projection(state)


def test_all_zero_strays_go_on_request_only(tmp_path: Path) -> None:
    tensors = payload()["state"]["128:bf16"]
    zero = {"proj_l.weight": torch.zeros(512, 512), "proj_l.bias": torch.zeros(512)}
    trained = {"proj_l.weight": torch.ones(64, 64), "proj_l.bias": torch.ones(64)}
    pairs = {"128:bf16": tensors, "512:bf16": zero, "64:bf16": trained}
    folder = saved(tmp_path / "c", payload(state=pairs))
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(FLUX))
    assert fix(folder).plan.is_empty
    state = assert_repaired(folder, "512:bf16 dropped", drop_strays=True)
    assert list(map(str, state.pairs)) == ["128:bf16", "64:bf16"]


def test_a_legacy_file_is_converted_without_running_its_pickle(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/legacy_nonzip_torch_save")
    state = assert_repaired(folder, "container converted")
    assert_same_projection(state)


def test_a_malicious_legacy_file_is_refused_by_name(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tmp_path / "c"
    folder.mkdir()
    torch.save({"x": Evil()}, folder / "sla_attention.pt", _use_new_zipfile_serialization=False)
    result = migrate(folder)
    assert result.plan.is_empty
    assert "system" in result.plan.problems[0].message
    assert not (tmp_path / "ran").exists()


def test_safetensors_under_the_states_name_become_a_state(tmp_path: Path) -> None:
    """Public report 26: safetensors bytes under .pt."""
    folder = checkpoint(tmp_path / "c", "wrong/safetensors_renamed")
    result = migrate(folder)
    assert not result.plan.is_empty or result.plan.problems
    good = read_state(GOOD_STATE)
    folder = checkpoint(tmp_path / "d", encode_twin(good, pt_sha256=""))
    state = assert_repaired(folder, "container converted")
    assert state.equals(good)


def test_a_lost_state_is_written_from_its_twin(tmp_path: Path) -> None:
    good = SLAState(read_state(GOOD_STATE).pairs, SLASettings(), origin={"data": "real"})
    twin = tmp_path / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(good, pt_sha256=""))
    assert titles(tmp_path) == ["state written from its twin", "twin written"]
    assert (tmp_path / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()
    assert dict(read_twin(twin).origin) == {"data": "real"}
    assert migrate(tmp_path).plan.is_empty


def test_a_twin_follows_its_state_and_keeps_its_origin(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "wrong/tie_missing")
    state = read_state(folder / "sla_attention.pt")
    state = SLAState(state.pairs, state.settings, origin={"tool": "x"})
    sha256 = read_payload(folder / "sla_attention.pt").sha256
    twin = folder / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(state, pt_sha256=sha256))
    assert titles(folder) == ["settings completed from the trainer's defaults", "twin written"]
    assert twin_pt_sha256(twin) == read_payload(folder / "sla_attention.pt").sha256
    assert dict(read_twin(twin).origin) == {"tool": "x"}
    assert migrate(folder).plan.is_empty


def test_a_twin_of_another_state_is_rewritten_without_its_origin(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "one_pair_128_bf16")
    other = read_state(STATES / "three_pairs" / "sla_attention.pt")
    twin = folder / "sla_attention.safetensors"
    twin.write_bytes(encode_twin(SLAState(other.pairs, origin={"tool": "x"}), pt_sha256=""))
    assert titles(folder) == ["twin written"]
    back = read_twin(twin)
    assert back.equals(read_state(GOOD_STATE))
    assert dict(back.origin) == {}


def test_a_twin_is_made_on_request(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "three_pairs")
    assert titles(folder, to="safetensors") == ["twin written"]
    assert read_twin(folder / "sla_attention.safetensors").equals(
        read_state(folder / "sla_attention.pt")
    )
    assert titles(folder, to="safetensors") == []


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


def test_a_torch_file_under_the_twins_name_becomes_a_state(tmp_path: Path) -> None:
    """Public report 25: a torch zip under .safetensors."""
    shutil.copy(GOOD_STATE, tmp_path / "sla_attention.safetensors")
    assert titles(tmp_path) == ["state written from its twin", "twin written"]
    assert (tmp_path / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()
    assert read_twin(tmp_path / "sla_attention.safetensors").equals(read_state(GOOD_STATE))
    assert titles(tmp_path) == []


@pytest.mark.parametrize("with_state", [True, False])
def test_metadata_that_is_no_text_becomes_text_and_foreign_entries_stay(
    with_state: bool, tmp_path: Path
) -> None:
    """Public reports 29 and 31: metadata that is no text; the user's entries are kept."""
    good = SLAState(read_state(GOOD_STATE).pairs, SLASettings(), origin={"data": "real"})
    twin = tmp_path / "sla_attention.safetensors"
    raw = encode_twin(good, pt_sha256="", extra={"step": "77777", "author": "me"})
    twin.write_bytes(raw.replace(b'"step":"77777"', b'"step":7777777'))
    if with_state:
        shutil.copy(GOOD_STATE, tmp_path / "sla_attention.pt")
    assert "twin written" in titles(tmp_path)
    metadata = foreign_metadata(twin)
    assert metadata == {"step": "7777777", "author": "me"}
    assert read_twin(twin).equals(good)
    assert titles(tmp_path) == []


def test_an_unsafe_state_is_a_problem_by_name_and_stays_untouched(tmp_path: Path) -> None:
    """Public report 38: a foreign class is named, never unpickled."""
    import argparse

    folder = saved(tmp_path / "c", payload(settings=argparse.Namespace(topk=0.2)))
    before = (folder / "sla_attention.pt").read_bytes()
    result = migrate(folder)
    assert result.plan.is_empty
    assert result.plan.problems[0].code == "SLA003"
    assert "argparse.Namespace" in result.plan.problems[0].message
    assert (folder / "sla_attention.pt").read_bytes() == before


def test_a_path_that_is_not_ascii_works_for_every_repair(tmp_path: Path) -> None:
    """Public report 57: a path that is not ASCII."""
    data = Path(__file__).parents[1] / "data" / "checkpoints" / "out_peft" / "checkpoint-3"
    folder = tmp_path / "modèle_検証"
    shutil.copytree(data, folder)
    shutil.copy(STATES / "wrong/legacy_nonzip_torch_save/sla_attention.pt", folder)
    assert {step.code for step in migrate(folder).plan.steps} == {"SLA002", "SLA304"}
    assert migrate(folder).plan.is_empty


def test_settings_the_user_names_replace_what_cannot_be_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", payload(settings={**payload()["settings"], "topk": "many"}))
    assert "topk" in migrate(folder).plan.problems[0].message
    state = assert_repaired(folder, "settings corrected", topk=0.1)
    assert state.settings == SLASettings(topk=0.1)


def test_the_sla_variant_is_recorded_on_request(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "one_pair_128_bf16")
    assert titles(folder, variant="sla-1") == ["twin written"]
    assert read_twin(folder / "sla_attention.safetensors").origin["sla_variant"] == "sla-1"
    assert titles(folder, variant="sla-1") == []
    assert titles(folder, variant="main") == ["twin written"]
    assert titles(folder) == []
    assert (folder / "sla_attention.pt").read_bytes() == GOOD_STATE.read_bytes()


def test_settings_of_another_type_are_for_the_user_to_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", payload(settings="topk=0.2"))
    (finding,) = [f for f in checks.verify(folder).findings if f.code == "SLA101"]
    assert "settings is 'topk=0.2'" in finding.message
    assert not finding.fixable
    assert f"sla-ckpt migrate {folder} with --topk" in (finding.help or "")
    assert "--topk" in str(migrate(folder).plan.problems[0].hint)
    (step,) = migrate(folder, MigrateOptions(topk=0.3)).plan.steps
    assert step.before == "'topk=0.2'"
    assert read_state(folder / "sla_attention.pt").settings == SLASettings(topk=0.3)


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
