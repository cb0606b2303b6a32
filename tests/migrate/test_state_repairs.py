"""Repairs of the state itself: settings, keys, dtypes, names, pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sla_ckpt.checks.verify as checks
from sla_ckpt.formats.simpletuner import read_payload, read_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.migrate import MigrateOptions, fix, migrate
from sla_ckpt.state import PairKey, SLASettings
from tests.formats.zip_builders import GOOD_STATE
from tests.migrate.states import (
    FLUX,
    PAIR,
    assert_repaired,
    assert_same_projection,
    checkpoint,
    payload,
    saved,
    titles,
)


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
