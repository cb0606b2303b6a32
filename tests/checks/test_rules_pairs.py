"""SLA201 to SLA210: the pairs, and which of them are expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sla_ckpt import SLAState, VerifyOptions, verify
from sla_ckpt.state import PairKey, ProjectionTensors
from tests import factories
from tests.checks.reports import codes, only, rewrite

DATA = factories.DATA


@pytest.mark.parametrize("name", ["key_int", "key_no_dtype"])
def test_sla201_names_the_key(name: str) -> None:
    assert "128" in only(verify(DATA / f"states/wrong/{name}/sla_attention.pt"), "SLA201").message


def test_sla202_names_the_missing_pair(good: Path) -> None:
    """Public report 5: which geometry the file has and which the model declares."""
    rewrite(good, factories.state("64:bf16"))
    message = only(verify(good), "SLA202").message
    assert "pair 128:bf16 is missing" in message
    assert "FluxTransformer2DModel" in message
    assert "64:bf16" in message


def test_sla202_of_a_lora_comes_from_its_metadata(tmp_path: Path) -> None:
    lora = factories.write_lora(tmp_path, factories.state("64:bf16"))
    assert "architecture flux-dev/lora" in only(verify(lora), "SLA202").message


def test_sla202_says_why_the_pairs_are_not_known(tmp_path: Path) -> None:
    factories.write_lora(tmp_path, factories.state(), architecture=None)
    finding = only(verify(tmp_path), "SLA202")
    assert finding.level == "info"
    assert "--expect" in (finding.help or "")


def test_expect_replaces_what_is_derived(good: Path) -> None:
    report = verify(good, VerifyOptions(expect=(PairKey(64, "fp16"),)))
    assert report.expected == ("64:fp16",)
    assert "64:fp16" in only(report, "SLA202").message


def test_an_unknown_model_class_is_named_and_nothing_is_guessed(tmp_path: Path) -> None:
    config = {"_class_name": "BrandNewTransformer", "attention_head_dim": 128}
    factories.write_full_checkpoint(tmp_path, config=config)
    report = verify(tmp_path)
    assert report.expected == ()
    assert "BrandNewTransformer" in only(report, "SLA202").message


def test_sla203_gives_both_shapes() -> None:
    message = only(verify(DATA / "states/wrong/wrong_shape/sla_attention.pt"), "SLA203").message
    assert "[64, 64], not [128, 128]" in message


def test_sla204_names_the_dtype() -> None:
    finding = only(verify(DATA / "states/wrong/bf16_tensors/sla_attention.pt"), "SLA204")
    assert "bfloat16" in finding.message
    assert finding.fixable


def test_sla205_counts_the_values_and_names_the_tensor(good: Path) -> None:
    """Public report 43: one NaN in the bias."""
    projection = factories.projection(128)
    bias = projection.bias.copy()
    bias[7] = np.nan
    key = PairKey(128, "bf16")
    rewrite(good, SLAState({key: ProjectionTensors(projection.weight, bias)}))
    message = only(verify(good), "SLA205").message
    assert "128:bf16/proj_l.bias has 1 of 128 values" in message


def test_sla206_is_a_warning_and_fails_only_when_strict(good: Path) -> None:
    """Public report 1: a projection that was never trained."""
    rewrite(good, factories.zero_state())
    report = verify(good)
    assert only(report, "SLA206").level == "warning"
    assert report.exit_code() == 0
    assert report.exit_code(strict=True) == 1


def test_sla207_says_where_a_stray_probably_comes_from(good: Path) -> None:
    key = PairKey(512, "bf16")
    pairs = {**factories.state().pairs, key: ProjectionTensors.zeros(512)}
    rewrite(good, SLAState(pairs))
    finding = only(verify(good), "SLA207")
    assert "VAE" in finding.message
    assert finding.fixable
    assert "SLA206" not in codes(verify(good))


def test_sla208_names_missing_and_unknown_tensors() -> None:
    missing = only(verify(DATA / "states/wrong/missing_bias/sla_attention.pt"), "SLA208")
    assert "lacks proj_l.bias" in missing.message
    prefix = only(
        verify(DATA / "states/wrong/renamed_keys_module_prefix/sla_attention.pt"), "SLA208"
    )
    assert "module.proj_l.weight" in prefix.message
    assert prefix.fixable and not missing.fixable


def test_sla209_replaces_sla202_when_another_dtype_is_there(good: Path) -> None:
    rewrite(good, factories.state("128:fp16"))
    report = verify(good)
    assert codes(report, "error") == ["SLA209"]
    assert "only as fp16, bf16 is needed" in only(report, "SLA209").message


def test_float32_weights_accept_either_half_dtype(tmp_path: Path) -> None:
    factories.write_full_checkpoint(tmp_path, factories.state("128:fp16"), dtype="F32")
    assert verify(tmp_path).ok


def test_the_config_decides_the_dtype_of_float32_weights(tmp_path: Path) -> None:
    factories.write_full_checkpoint(tmp_path, factories.state("128:fp16"), dtype="F32")
    (tmp_path / "simpletuner_config.json").write_text(
        '{"attention_mechanism": "sla", "mixed_precision": "bf16"}'
    )
    assert "SLA209" in codes(verify(tmp_path))


def test_sla210_lists_head_dims_beyond_the_reference_kernels(tmp_path: Path) -> None:
    config = {"_class_name": "PixArtTransformer2DModel", "attention_head_dim": 72}
    factories.write_full_checkpoint(tmp_path, factories.state("72:bf16"), config=config)
    assert "(72)" in only(verify(tmp_path), "SLA210").message


def test_a_state_without_keys_is_one_finding() -> None:
    target = DATA / "states/wrong/state_flat/sla_attention.pt"
    report = verify(target)
    assert codes(report, "error") == ["SLA201"]
    assert "'proj_l.bias' stand under no key" in only(report, "SLA201").message
    assert not only(report, "SLA201").fixable
    known = verify(target, VerifyOptions(expect=(PairKey(128, "bf16"),)))
    assert only(known, "SLA201").fixable
