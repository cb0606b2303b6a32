"""The safetensors twin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from sla_ckpt.errors import FormatError, StructureError, WriteError
from sla_ckpt.formats.simpletuner import encode_state, read_state
from sla_ckpt.formats.twin import (
    encode_safetensors,
    encode_twin,
    read_twin,
    twin_pt_sha256,
    write_state,
)
from sla_ckpt.state import PairKey, SLAState
from tests.formats.zip_builders import GOOD_STATE, STATES

ORIGIN = {"tool": "sla-ckpt 1.0", "data": "real", "note": 'ü "quoted"\n'}


def test_state_and_twin_are_written_and_read_back(tmp_path: Path) -> None:
    state = read_state(STATES / "three_pairs" / "sla_attention.pt")
    state = SLAState(state.pairs, state.settings, origin=ORIGIN)
    write_state(tmp_path, state)
    pt, twin = tmp_path / "sla_attention.pt", tmp_path / "sla_attention.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [pt.name, twin.name]
    assert read_state(pt).equals(state)
    back = read_twin(twin)
    assert back.equals(state)
    assert dict(back.origin) == ORIGIN
    assert twin_pt_sha256(twin) == hashlib.sha256(pt.read_bytes()).hexdigest()


def test_paths_may_be_text(tmp_path: Path) -> None:
    state = read_state(str(STATES / "three_pairs" / "sla_attention.pt"))
    write_state(str(tmp_path), state)
    assert read_twin(str(tmp_path / "sla_attention.safetensors")).equals(state)


@pytest.mark.parametrize("name", ["legacy_bf16_proj_l", "settings_none", "string_settings_64_fp16"])
def test_the_safetensors_library_reads_the_same_tensors(name: str, tmp_path: Path) -> None:
    state = read_state(STATES / name / "sla_attention.pt")
    path = tmp_path / "twin.safetensors"
    path.write_bytes(encode_twin(state, pt_sha256="0" * 64))
    loaded = safetensors.torch.load_file(path)
    original = torch.load(STATES / name / "sla_attention.pt", weights_only=True)["state"]
    assert sorted(loaded) == sorted(f"{key}/{t}" for key in original for t in original[key])
    for name_, tensor in loaded.items():
        key, _, tensor_name = name_.partition("/")
        assert torch.equal(tensor, original[key][tensor_name])
        assert tensor.dtype == original[key][tensor_name].dtype
    with safetensors.safe_open(path, "pt") as handle:
        metadata = handle.metadata()
    assert metadata["format"] == "pt"
    assert metadata["sla_ckpt.version"] == "1"
    settings = state.settings.to_dict() if state.settings else None
    assert json.loads(metadata["sla_ckpt.settings"]) == settings


def test_the_bytes_are_deterministic_and_as_the_library_lays_them_out() -> None:
    state = read_state(STATES / "three_pairs" / "sla_attention.pt")
    data = encode_twin(state, pt_sha256="0" * 64)
    assert data == encode_twin(state, pt_sha256="0" * 64)
    tensors = {"b": np.ones(3, np.float32), "a": np.ones((2, 2), np.float16), "c": np.ones(1)}
    tokens = {"float32": "F32", "float16": "F16", "float64": "F64"}
    ours = encode_safetensors(
        {k: (tokens[str(v.dtype)], v.shape, v.tobytes()) for k, v in tensors.items()}, {"x": "y"}
    )
    assert ours == safetensors.numpy.save(tensors, {"x": "y"})


def test_a_state_without_twin_removes_a_stale_one(tmp_path: Path) -> None:
    state = read_state(GOOD_STATE)
    write_state(tmp_path, state)
    write_state(tmp_path, state, twin=False)
    assert [path.name for path in tmp_path.iterdir()] == ["sla_attention.pt"]


def test_a_read_only_directory_is_one_error_and_changes_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    with pytest.raises(WriteError):
        write_state(missing, read_state(GOOD_STATE))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_twin_are_named(tmp_path: Path) -> None:
    state = read_state(GOOD_STATE)
    good = encode_twin(state, pt_sha256="0" * 64)
    with pytest.raises(FormatError) as caught:
        read_twin(encode_state(state), name="sla_attention.safetensors")
    assert caught.value.kind == "zip"
    weights = safetensors.numpy.save({"128:bf16/proj_l.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(StructureError, match="no version"):
        read_twin(weights)
    for old, new, words in (
        (b'version":"1"', b'version":"7"', "version '7'"),
        (b"128:bf16/proj_l.bias", b"128:bf16/proj_x.bias", "proj_x.bias"),
        (b"128:bf16/proj_l.bias", b"128/bf16/proj_l.bias", "not <head_dim>:<dtype>"),
        (b"128:bf16", b"129:bf16", "has shape"),
        (b'\\"topk\\": 0.2', b'\\"topk\\": "2"', "JSON"),
    ):
        assert old in good
        with pytest.raises(FormatError) as fault:
            read_twin(good.replace(old, new))
        assert words in fault.value.message or "header" in fault.value.message


def test_a_cut_twin_is_truncated() -> None:
    good = encode_twin(read_state(GOOD_STATE), pt_sha256="0" * 64)
    for length in (1, 7, 9, 100, len(good) - 1):
        with pytest.raises(FormatError) as caught:
            read_twin(good[:length])
        assert caught.value.kind in ("truncated", "unknown", "text")


def test_pair_order_does_not_matter_for_the_twin() -> None:
    state = read_state(STATES / "three_pairs" / "sla_attention.pt")
    turned = SLAState(dict(reversed(state.pairs.items())), state.settings)
    assert encode_twin(state, pt_sha256="") == encode_twin(turned, pt_sha256="")
    assert next(iter(read_twin(encode_twin(state, pt_sha256="")).pairs)) == PairKey(64, "bf16")
