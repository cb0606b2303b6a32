"""SLA302, SLA303 and SLA307: the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, verify
from tests import factories
from tests.checks.reports import codes, only, weights_of


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


def test_weights_with_metadata_that_is_no_text_name_the_entry(good: Path) -> None:
    """Public report 29: a number as a metadata value."""
    header = b'{"__metadata__":{"step":7},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    weights_of(good).write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    finding = only(verify(good), "SLA302")
    assert "__metadata__ entry 'step' = 7" in finding.message
    assert "save the file again" in (finding.help or "")
