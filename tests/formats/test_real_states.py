"""Files written by SimpleTuner's own controller, good and wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sla_ckpt.errors import FormatError, SlaCkptError, StructureError, TargetNotFoundError
from sla_ckpt.formats.simpletuner import payload_to_state, read_payload, read_state
from sla_ckpt.state import PairKey
from tests.formats.zip_builders import GOOD_STATE, STATES

GOOD = [
    "legacy_bf16_proj_l",
    "no_tie_128_bf16",
    "one_pair_128_bf16",
    "one_pair_128_bf16_zero_init",
    "settings_none",
    "shared_two_keys",
    "string_settings_64_fp16",
    "three_pairs",
    "views_of_one_storage",
]


def state_path(name: str) -> Path:
    return STATES / name / "sla_attention.pt"


def assert_same_as_torch(path: Path) -> None:
    state = read_state(path)
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    assert [str(key) for key in state.pairs] == list(loaded["state"])
    for key, projection in state.pairs.items():
        for name, array, dtype in (
            ("proj_l.weight", projection.weight, projection.weight_dtype),
            ("proj_l.bias", projection.bias, projection.bias_dtype),
        ):
            tensor = loaded["state"][str(key)][name]
            assert str(tensor.dtype) == f"torch.{dtype}"
            np.testing.assert_array_equal(tensor.float().numpy(), array)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_reads_as_torch_reads_it(name: str) -> None:
    assert_same_as_torch(state_path(name))
    payload = read_payload(state_path(name))
    assert payload.notes == ()
    assert payload.size == state_path(name).stat().st_size
    assert payload.sha256 == hashlib.sha256(state_path(name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "note"),
    [("rezipped_deflate", "re-zipped with deflate"), ("trailing_bytes", "64 trailing bytes")],
)
def test_what_simpletuner_accepts_is_read_with_a_note(name: str, note: str) -> None:
    path = state_path(f"wrong/{name}")
    assert read_payload(path).notes == (note,)
    assert_same_as_torch(path)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("zero_bytes", "empty", "is empty (0 bytes)"),
        ("truncated_half", "truncated", "34,058 bytes are there, and no central directory"),
        ("bit_flip_in_data", "crc", "'sla_attention/data/0' is damaged"),
        ("lfs_pointer", "lfs-pointer", "the real file has 68,117 bytes, sha256 " + "0" * 64),
        ("safetensors_renamed", "safetensors", "is a safetensors file"),
        ("legacy_nonzip_torch_save", "legacy-torch", "old, non-zip format"),
    ],
)
def test_an_unreadable_file_is_named_for_what_it_is(name: str, kind: str, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_state(state_path(f"wrong/{name}"))
    assert caught.value.kind == kind
    assert words in caught.value.message
    assert caught.value.hint
    assert not isinstance(caught.value, StructureError)


def test_the_way_out_of_a_legacy_file_is_named() -> None:
    with pytest.raises(FormatError) as caught:
        read_state(state_path("wrong/legacy_nonzip_torch_save"))
    assert "sla-ckpt migrate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong/list_payload", "it holds a list"),
        ("wrong/state_is_list", "a state that is a list"),
        ("wrong/state_flat", "'proj_l.weight' is not <head_dim>:<dtype>"),
        ("wrong/key_int", "key 128 is int"),
        ("wrong/key_no_dtype", "'128' is not <head_dim>:<dtype>"),
        ("wrong/missing_bias", "128:bf16 has no proj_l.bias"),
        ("wrong/renamed_keys_module_prefix", "128:bf16 has no proj_l.weight"),
        ("wrong/version_2", "version 2; only version 1"),
        ("wrong/wrong_shape", "128:bf16 proj_l.weight has shape [64, 64], not [128, 128]"),
        ("own_test_no_tie_1x1", "128:bf16 proj_l.weight has shape [1, 1]"),
    ],
)
def test_a_wrong_structure_names_the_first_fault(name: str, words: str) -> None:
    with pytest.raises(StructureError) as caught:
        read_state(state_path(name))
    assert words in caught.value.message
    assert "sla_attention.pt" in caught.value.message


@pytest.mark.parametrize(
    "name", ["all_zero", "nan", "bf16_tensors", "tie_missing", "settings_none"]
)
def test_values_are_left_for_the_rules_to_judge(name: str) -> None:
    assert_same_as_torch(state_path(f"wrong/{name}"))


def test_missing_settings_take_the_trainers_defaults() -> None:
    assert read_state(state_path("wrong/settings_none")).settings is None
    shared = read_state(state_path("shared_two_keys")).settings
    assert shared is not None
    assert (shared.topk, shared.blkq, shared.tie_feature_map_qk) == (0.2, 64, True)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": True, "state": {}},
        {"version": 1},
        {"version": 1, "state": {("128", "bf16"): {}}},
        {"version": 1, "state": {"128:bf16": None}},
        {"version": 1, "state": {"128:bf16": {"proj_l.weight": 1.0, "proj_l.bias": 1.0}}},
        {"version": 1, "state": {}, "settings": []},
        {"version": 1, "state": {}, "settings": {"topk": "0.2"}},
        {"version": 1, "state": {"128:bfloat16": {}}},
        {"version": 1, "state": {"0:bf16": {}}},
    ],
    ids=str,
)
def test_no_payload_gives_anything_but_a_structure_error(value: object) -> None:
    from sla_ckpt.formats.payload import StatePayload

    with pytest.raises(StructureError):
        payload_to_state(StatePayload(value, (), "", 0), name="x.pt")


def test_a_missing_file_a_directory_a_pipe_and_a_link_are_one_line_each(tmp_path: Path) -> None:
    directory = tmp_path / "dir.pt"
    directory.mkdir()
    with pytest.raises(FormatError) as caught:
        read_state(directory)
    assert caught.value.kind == "directory"
    with pytest.raises(TargetNotFoundError):
        read_state(tmp_path / "absent.pt")
    dangling = tmp_path / "dangling.pt"
    dangling.symlink_to("nowhere")
    with pytest.raises(TargetNotFoundError):
        read_state(dangling)
    loop = tmp_path / "loop.pt"
    loop.symlink_to("loop.pt")
    with pytest.raises(TargetNotFoundError):
        read_state(loop)
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    with pytest.raises(SlaCkptError):
        read_state(pipe)
    with pytest.raises(TargetNotFoundError):
        read_state(tmp_path / ("x" * 400))
    with pytest.raises(TargetNotFoundError):
        read_state(Path("a\0b"))


def test_a_path_that_is_not_ascii_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "modèle_検証"
    folder.mkdir()
    copied = Path(shutil.copy(GOOD_STATE, folder))
    assert PairKey(128, "bf16") in read_state(copied).pairs
    with copied.open("rb") as stream:
        assert read_state(stream).equals(read_state(copied.read_bytes()))


def test_reading_never_imports_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from sla_ckpt.formats.simpletuner import read_state;"
        "from sla_ckpt.formats import twin, optimizer, torch_zip;"
        "read_state(Path(sys.argv[1])); "
        "print([m for m in ('torch', 'safetensors', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(GOOD_STATE)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
