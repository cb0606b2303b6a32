"""Each rule says what is wrong, with file, key and numbers, on a checkpoint broken in one way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sla_ckpt import SLASettings, SLAState, VerifyOptions, encode_state, verify
from sla_ckpt.checks.pages import rule_page
from sla_ckpt.checks.registry import all_rules
from sla_ckpt.checks.report import Finding, Report
from sla_ckpt.errors import UsageError
from sla_ckpt.formats.twin import encode_twin
from sla_ckpt.state import PairKey, ProjectionTensors
from tests import factories

DATA = factories.DATA


def codes(report: Report, level: str | None = None) -> list[str]:
    return [f.code for f in report.findings if level is None or f.level == level]


def only(report: Report, code: str) -> Finding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, report.findings
    return found[0]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path / "checkpoint-500", trainer=True)


def rewrite(checkpoint: Path, saved: SLAState) -> None:
    (checkpoint / "sla_attention.pt").write_bytes(encode_state(saved))


def test_a_good_checkpoint_has_no_errors_and_no_warnings(good: Path) -> None:
    report = verify(good)
    assert report.ok
    assert codes(report) == ["SLA107"]
    assert report.kind == "full"
    assert report.expected == report.found == ("128:bf16",)


def test_every_rule_has_a_page_that_says_what_the_rule_says() -> None:
    for rule in all_rules():
        page = rule_page(rule.code)
        level = next(line for line in page.splitlines() if line.startswith("**Level:**"))
        assert page.startswith(f"# {rule.code}: {rule.title}\n")
        assert level.startswith(f"**Level:** {rule.level}")
        assert ("**Fixable:**" in level) == rule.fixable, rule.code


def test_sla001_counts_the_signs_of_sla(good: Path) -> None:
    """Public report 53: a partial copy; the missing sidecar is named."""
    (good / "sla_attention.pt").unlink()
    (good / "simpletuner_config.json").write_text('{"attention_mechanism": "sla"}')
    finding = only(verify(good), "SLA001")
    assert "checkpoint_manifest.json lists the file" in finding.message
    assert "sets attention_mechanism to sla" in finding.message
    assert "sla-ckpt regen" in (finding.help or "")


def test_sla001_says_when_nothing_speaks_for_sla(tmp_path: Path) -> None:
    factories.write_denoiser(tmp_path / "transformer")
    assert "nothing here says that SLA was used" in only(verify(tmp_path), "SLA001").message


def test_sla001_counts_the_optimizer_group_as_a_sign(tmp_path: Path) -> None:
    source = DATA / "checkpoints/optimizer_trap/checkpoint-3/optimizer.bin"
    (tmp_path / "optimizer.bin").write_bytes(source.read_bytes())
    (tmp_path / "training_state.json").write_text("{}")
    assert "1 SLA parameter group" in only(verify(tmp_path), "SLA001").message


def test_sla001_names_a_file_that_differs_only_by_case(good: Path) -> None:
    (good / "sla_attention.pt").rename(good / "SLA_attention.pt")
    assert "SLA_attention.pt differs only by case" in only(verify(good), "SLA001").message


def test_sla001_names_a_dangling_link(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    (good / "sla_attention.pt").symlink_to(good / "gone.pt")
    assert "dangling link" in only(verify(good), "SLA001").message


def test_sla001_points_to_the_twin_when_only_the_twin_is_left(good: Path) -> None:
    saved = factories.state()
    (good / "sla_attention.safetensors").write_bytes(encode_twin(saved, pt_sha256="0" * 64))
    (good / "sla_attention.pt").unlink()
    finding = only(verify(good), "SLA001")
    assert "its twin" in finding.message
    assert finding.fixable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64, "LFS pointer"),
        (b"garbage" * 100, "not a torch.save archive"),
    ],
    ids=["empty", "html", "lfs-pointer", "garbage"],
)
def test_sla002_names_what_the_file_really_is(good: Path, content: bytes, words: str) -> None:
    """Public reports 23 and 34: a pointer, an empty file, a web page."""
    (good / "sla_attention.pt").write_bytes(content)
    report = verify(good)
    assert words in only(report, "SLA002").message
    assert report.found == ()


def test_sla002_says_that_it_is_a_directory(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    (good / "sla_attention.pt").mkdir()
    report = verify(good)
    assert "is a directory" in only(report, "SLA002").message
    assert "SLA001" not in codes(report)


def test_sla002_finds_a_flipped_bit() -> None:
    target = DATA / "states/wrong/bit_flip_in_data/sla_attention.pt"
    assert "CRC" in only(verify(target), "SLA002").message


def test_sla003_names_the_global_and_does_not_run_it(good: Path, tmp_path: Path) -> None:
    """Public report 38: a class outside the allow-list is named, never loaded."""
    import io
    import zipfile

    proof = tmp_path / "executed"
    pickle_bytes = b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3\n")
    (good / "sla_attention.pt").write_bytes(buffer.getvalue())
    assert "posix.system" in only(verify(good), "SLA003").message
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("list_payload", "holds list of 2"),
        ("state_is_list", "'state' is list"),
        ("version_2", "version 2"),
    ],
)
def test_sla004_names_the_wrong_structure(name: str, words: str) -> None:
    report = verify(DATA / f"states/wrong/{name}/sla_attention.pt")
    assert words in only(report, "SLA004").message


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


def test_sla211_shows_that_quality_is_not_confirmed(good: Path) -> None:
    saved = factories.state(origin={"data": "synthetic", "sla_variant": "main"})
    (good / "sla_attention.safetensors").write_bytes(encode_twin(saved, pt_sha256="0" * 64))
    assert "synthetic" in only(verify(good), "SLA211").message


def test_sla212_finds_a_twin_of_another_state(good: Path) -> None:
    other = factories.state(seed=9)
    (good / "sla_attention.safetensors").write_bytes(encode_twin(other, pt_sha256="0" * 64))
    assert only(verify(good), "SLA212").level == "error"


def test_sla301_points_to_the_last_complete_checkpoint(tmp_path: Path) -> None:
    """Public report 15: the newest checkpoint is not whole."""
    factories.write_full_checkpoint(tmp_path / "checkpoint-10", trainer=True)
    broken = factories.write_full_checkpoint(tmp_path / "checkpoint-20", trainer=True)
    (broken / ".guard").unlink()
    finding = only(verify(broken), "SLA301")
    assert "guard" in finding.message
    assert "checkpoint-10" in (finding.help or "")


def test_sla301_knows_a_temporary_folder(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-30-tmp")
    assert "never finished" in only(verify(folder), "SLA301").message


def test_sla301_lists_files_that_the_manifest_has_and_the_folder_lacks(good: Path) -> None:
    manifest = json.loads((good / "checkpoint_manifest.json").read_text())
    manifest["files"].append("optimizer.bin")
    (good / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    assert "optimizer.bin" in only(verify(good), "SLA301").message
    assert verify(good, VerifyOptions(purpose="inference")).ok


def test_sla301_warns_of_leftovers_of_a_killed_save(good: Path) -> None:
    (good / "transformer" / "model.safetensors.tmp").write_bytes(b"x")
    finding = only(verify(good), "SLA301")
    assert finding.level == "warning"
    assert "model.safetensors.tmp" in finding.message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_sla301_an_unreadable_training_state_is_one_finding(good: Path, content: bytes) -> None:
    (good / "training_state.json").write_bytes(content)
    assert "training_state.json" in only(verify(good), "SLA301").message


def weights_of(checkpoint: Path) -> Path:
    return checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-10], "has"),
        (lambda data: data[:5], "5 bytes"),
        (lambda data: b"", "empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n" + data[:20], "LFS"),
        (lambda data: b"PK\x03\x04" + data, "zip"),
    ],
    ids=["truncated", "five-bytes", "empty", "lfs-pointer", "zip"],
)
def test_sla302_says_what_is_wrong_with_a_weight_file(
    good: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    """Public reports 22, 23, 25 and 27: cut, a pointer, a torch zip, too short."""
    path = weights_of(good)
    path.write_bytes(damage(path.read_bytes()))
    finding = only(verify(good, VerifyOptions(select=("SLA302",))), "SLA302")
    assert words in finding.message
    assert finding.path == "transformer/diffusion_pytorch_model.safetensors"


def test_sla302_a_denoiser_without_weights(good: Path) -> None:
    weights_of(good).unlink()
    assert "no weights" in only(verify(good), "SLA302").message


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path, shards=3)


def test_sla303_lists_missing_shards_and_counts_their_tensors(sharded: Path) -> None:
    """Public report 45: the index names an absent shard."""
    assert verify(sharded).ok
    (sharded / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    message = only(verify(sharded), "SLA303").message
    assert "00002-of-00003" in message
    assert "4 tensors of 12" in message


def test_sla303_finds_a_stale_index(sharded: Path) -> None:
    index = sharded / "transformer/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"].pop("shard0.proj_out.weight")
    content["weight_map"]["renamed.weight"] = shard
    index.write_text(json.dumps(content))
    messages = [f.message for f in verify(sharded).findings if f.code == "SLA303"]
    assert any("does not know 1 tensor" in m and "shard0.proj_out.weight" in m for m in messages)
    assert any("renamed.weight" in m and "do not hold" in m for m in messages)


def test_sla303_finds_gaps_without_an_index(sharded: Path) -> None:
    folder = sharded / "transformer"
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    (folder / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
    assert "00001-of-00003" in only(verify(sharded), "SLA303").message


def test_sla303_an_index_that_names_a_path_outside_is_refused(sharded: Path) -> None:
    index = sharded / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "outside" in only(verify(sharded), "SLA303").message


def test_sla303_reads_the_index_of_bin_shards(tmp_path: Path) -> None:
    """Public report 48: only *.bin.index.json is there."""
    factories.write_denoiser(tmp_path / "transformer")
    weights_of(tmp_path).unlink()
    (tmp_path / "transformer/diffusion_pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.bin"}})
    )
    assert "00001-of-00001.bin" in only(verify(tmp_path), "SLA303").message


def test_sla304_depends_on_the_purpose() -> None:
    """Public report 14: trainer state that a fresh process refuses."""
    trap = DATA / "checkpoints/optimizer_trap/checkpoint-3"
    assert only(verify(trap), "SLA304").level == "warning"
    assert only(verify(trap, VerifyOptions(purpose="resume")), "SLA304").level == "error"
    assert "SLA304" not in codes(verify(trap, VerifyOptions(purpose="inference")))


def test_sla305_when_the_configuration_uses_another_attention(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('attention_mechanism = "diffusers"\n')
    finding = only(verify(good, VerifyOptions(config=config)), "SLA305")
    assert "attention_mechanism diffusers" in finding.message


def test_sla306_when_the_manifest_lacks_the_file(good: Path) -> None:
    manifest = json.loads((good / "checkpoint_manifest.json").read_text())
    manifest["files"].remove("sla_attention.pt")
    (good / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    assert only(verify(good), "SLA306").fixable


@pytest.mark.parametrize(
    ("dtype", "pattern", "words"),
    [
        ("BF16", b"\xc0\x7f", "NaN"),
        ("BF16", b"\x80\xff", "Inf"),
        ("F16", b"\x00\x7e", "NaN"),
        ("F16", b"\x00\xfc", "Inf"),
        ("F32", b"\x00\x00\xc0\x7f", "NaN"),
        ("F32", b"\x00\x00\x80\xff", "Inf"),
        ("F8_E4M3", b"\xff", "NaN"),
    ],
)
def test_sla307_finds_non_finite_weights_of_every_dtype(
    good: Path, dtype: str, pattern: bytes, words: str
) -> None:
    data = factories.safetensors_bytes({"a.weight": (8, 8), "b.weight": (4, 4)}, dtype)
    weights_of(good).write_bytes(data[: -len(pattern)] + pattern)
    report = verify(good, VerifyOptions(deep=True))
    message = only(report, "SLA307").message
    assert "b.weight" in message
    count = {"NaN": "1 NaN and 0 Inf", "Inf": "0 NaN and 1 Inf"}[words]
    assert f"{count} of 16 values" in message
    assert "SLA307" not in codes(verify(good))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F8_E4M3"])
@pytest.mark.parametrize("largest", [False, True])
def test_sla307_accepts_the_largest_finite_values(good: Path, dtype: str, largest: bool) -> None:
    top = {"BF16": b"\x7f\xff", "F16": b"\xff\xfb", "F32": b"\xff\xff\x7f\xff", "F8_E4M3": b"\xfe"}
    fill = top[dtype] if largest else b"\x00"
    data = factories.safetensors_bytes({"a.weight": (300, 300)}, dtype, fill=fill)
    weights_of(good).write_bytes(data)
    assert "SLA307" not in codes(verify(good, VerifyOptions(deep=True)))


def test_sla308_names_the_optimizer(good: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"attention_mechanism": "sla", "optimizer": "adamw_bf16"}')
    assert "adamw_bf16" in only(verify(good, VerifyOptions(config=config)), "SLA308").message


def test_select_and_ignore_work_by_longest_prefix(good: Path) -> None:
    rewrite(good, factories.state("64:bf16"))
    (good / ".guard").unlink()
    assert set(codes(verify(good, VerifyOptions(select=("SLA2",))))) == {"SLA202", "SLA207"}
    options = VerifyOptions(select=("SLA202",), ignore=("SLA2",))
    assert codes(verify(good, options)) == ["SLA202"]
    assert "SLA202" not in codes(verify(good, VerifyOptions(ignore=("SLA202",))))
    with pytest.raises(UsageError, match="SLA9"):
        verify(good, VerifyOptions(select=("SLA9",)))


@pytest.mark.parametrize("name", ["out_full", "out_full_ema", "out_peft", "out_lycoris_ema"])
def test_checkpoints_that_simpletuner_wrote_are_recognised(name: str) -> None:
    report = verify(DATA / f"checkpoints/{name}/checkpoint-3")
    kinds = {"out_full": "full", "out_full_ema": "full", "out_peft": "lora"}
    assert report.kind == kinds.get(name, "lycoris")
    assert "SLA304" in codes(report)
    assert not {"SLA302", "SLA303", "SLA004", "SLA002"} & set(codes(report))


def test_a_killed_save_is_listed_file_by_file(sharded: Path) -> None:
    """Public report 21: an empty shard, and a temporary file beside it."""
    empty = sharded / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
    empty.write_bytes(b"")
    (sharded / "transformer/diffusion_pytorch_model-00003.tmp").write_bytes(b"x")
    report = verify(sharded)
    finding = only(report, "SLA302")
    assert "00002-of-00003.safetensors is empty (0 bytes)" in finding.message
    assert "regen" not in (finding.help or "")  # which makes a state, not weights
    assert "00003.tmp" in only(report, "SLA301").message


def test_a_stale_index_gives_both_lists(sharded: Path) -> None:
    """Public report 46: the index is of a save in more shards than are here."""
    folder = sharded / "transformer"
    for number in (1, 2, 3):
        name = f"diffusion_pytorch_model-{number:05d}-of-00003.safetensors"
        if number < 3:
            (folder / name).rename(folder / name.replace("-of-00003", "-of-00002"))
        else:
            (folder / name).unlink()
    message = only(verify(sharded), "SLA303").message
    assert "names 3 shards not here" in message
    assert "diffusion_pytorch_model-00003-of-00003.safetensors" in message
    assert "diffusion_pytorch_model-00002-of-00002.safetensors are here instead" in message


def test_a_lora_called_sla_is_not_taken_for_one(tmp_path: Path) -> None:
    """Public report 9: kernel-only sparsity has no projection that could be missing."""
    lora = factories.write_lora(tmp_path)
    file = lora / "pytorch_lora_weights.safetensors"
    file = file.rename(lora / "minimax_h3_sla_lora.safetensors")
    message = only(verify(file), "SLA001").message
    assert "nothing here says that SLA was used" in message


def test_weights_with_metadata_that_is_no_text_name_the_entry(good: Path) -> None:
    """Public report 29: a number as a metadata value."""
    header = b'{"__metadata__":{"step":7},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    weights_of(good).write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    finding = only(verify(good), "SLA302")
    assert "__metadata__ entry 'step' = 7" in finding.message
    assert "save the file again" in (finding.help or "")


def test_a_state_without_keys_is_one_finding() -> None:
    target = DATA / "states/wrong/state_flat/sla_attention.pt"
    report = verify(target)
    assert codes(report, "error") == ["SLA201"]
    assert "'proj_l.bias' stand under no key" in only(report, "SLA201").message
    assert not only(report, "SLA201").fixable
    known = verify(target, VerifyOptions(expect=(PairKey(128, "bf16"),)))
    assert only(known, "SLA201").fixable


def test_sla301_an_interrupted_pull_is_an_error_until_it_has_finished(good: Path) -> None:
    staging = good / ".sla_ckpt_pull"
    staging.mkdir()
    assert "SLA301" not in codes(verify(good), "error")
    (staging / "placing").write_text("sla_attention.pt")
    found = only(verify(good), "SLA301")
    assert found.level == "error"
    assert "a pull was interrupted" in found.message
    assert found.help is not None and "pull" in found.help
