"""SLA101 to SLA107 and SLA211: the settings, and where the state came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sla_ckpt import SLASettings, VerifyOptions, verify
from sla_ckpt.formats.twin import encode_twin
from tests import factories
from tests.checks.reports import codes, only, rewrite

DATA = factories.DATA


def test_sla101_lists_what_the_settings_lack() -> None:
    finding = only(verify(DATA / "states/shared_two_keys/sla_attention.pt"), "SLA101")
    assert "feature_map, blkq, blkk, tie_feature_map_qk" in finding.message
    assert finding.level == "error"
    assert finding.fixable


def test_sla101_is_mild_when_only_the_newest_setting_is_absent() -> None:
    finding = only(verify(DATA / "states/no_tie_128_bf16/sla_attention.pt"), "SLA101")
    assert finding.level == "warning"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"topk": 5.0}, "SLA102", "topk is 5"),
        ({"topk": 0.0}, "SLA102", "NaN"),
        ({"topk": float("nan")}, "SLA102", "topk is nan"),
        ({"blkq": 32}, "SLA103", "blkq is 32, not 64 or 128"),
        ({"blkk": 128}, "SLA103", "blkk is 128, not 64"),
        ({"feature_map": "hedgehog"}, "SLA104", "'hedgehog'"),
    ],
)
def test_settings_that_the_kernels_cannot_run(
    good: Path, changes: dict[str, object], code: str, words: str
) -> None:
    settings = dataclasses.replace(SLASettings(), **changes)  # type: ignore[arg-type]
    rewrite(good, factories.state(settings=settings))
    report = verify(good)
    assert codes(report, "error") == [code]
    assert words in only(report, code).message


@pytest.mark.parametrize(
    ("tokens", "bad"), [(256, True), (257, False), (1, True), (100_000, False)]
)
def test_sla105_counts_key_blocks(good: Path, tokens: int, bad: bool) -> None:
    report = verify(good, VerifyOptions(tokens=tokens))
    assert ("SLA105" in codes(report)) is bad
    if bad:
        assert "257 tokens or more" in (only(report, "SLA105").help or "")


@pytest.mark.parametrize("blocks", [1, 2, 3, 9, 11, 49, 1000])
def test_sla105_names_a_topk_that_keeps_a_block(good: Path, blocks: int) -> None:
    settings = SLASettings(topk=0.5 / blocks)
    rewrite(good, factories.state(settings=settings))
    tokens = blocks * settings.blkk
    found = only(verify(good, VerifyOptions(tokens=tokens)), "SLA105").help or ""
    raised = float(found.split("raise topk to ")[1].split()[0])
    rewrite(good, factories.state(settings=dataclasses.replace(settings, topk=raised)))
    assert "SLA105" not in codes(verify(good, VerifyOptions(tokens=tokens)))


@pytest.mark.parametrize("topk", [1 / 49, 0.07, 1e-17, 5e-324])
def test_sla105_names_tokens_for_any_topk_of_a_file(good: Path, topk: float) -> None:
    rewrite(good, factories.state(settings=SLASettings(topk=topk)))
    found = only(verify(good, VerifyOptions(tokens=64)), "SLA105").help or ""
    needed = int(found.split("train at ")[1].split()[0])
    if needed < 2**53:
        assert "SLA105" not in codes(verify(good, VerifyOptions(tokens=needed)))
        assert "SLA105" in codes(verify(good, VerifyOptions(tokens=needed - 1)))


def test_sla105_derives_tokens_from_the_resolution(good: Path) -> None:
    message = only(verify(good, VerifyOptions(resolution=(256, 256))), "SLA105").message
    assert "256 tokens" in message
    assert "SLA105" not in codes(verify(good, VerifyOptions(resolution=(512, 512))))


def test_sla106_lists_each_setting_that_differs(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"--attention_mechanism": "sla", "--sla_config": '{"topk": 0.1, "blkq": 128}'})
    )
    message = only(verify(good, VerifyOptions(config=config)), "SLA106").message
    assert "topk 0.2 here, 0.1 there" in message
    assert "blkq 64 here, 128 there" in message


def test_sla106_reads_a_python_dict_too(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"attention_mechanism": "sla", "sla_config": "{'topk': 0.2}"}))
    assert "SLA106" not in codes(verify(good, VerifyOptions(config=config)))


def test_sla107_is_silent_when_the_twin_records_the_variant(good: Path) -> None:
    """Public report 8: the SLA variant is kept in the provenance."""
    saved = factories.state(origin={"sla_variant": "main"})
    (good / "sla_attention.safetensors").write_bytes(encode_twin(saved, pt_sha256="0" * 64))
    assert codes(verify(good)) == []


def test_sla211_shows_that_quality_is_not_confirmed(good: Path) -> None:
    saved = factories.state(origin={"data": "synthetic", "sla_variant": "main"})
    (good / "sla_attention.safetensors").write_bytes(encode_twin(saved, pt_sha256="0" * 64))
    assert "synthetic" in only(verify(good), "SLA211").message
