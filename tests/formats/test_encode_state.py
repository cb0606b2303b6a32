"""The torch-free writer gives the bytes SimpleTuner's torch.save gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sla_ckpt.formats.simpletuner import encode_state, read_state
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState
from tests.formats.zip_builders import STATES


@pytest.mark.parametrize(
    "name",
    [
        "one_pair_128_bf16",
        "one_pair_128_bf16_zero_init",
        "three_pairs",
        "settings_none",
        "legacy_bf16_proj_l",
        "string_settings_64_fp16",
        "wrong/nan",
        "wrong/bf16_tensors",
    ],
)
def test_a_real_file_is_reproduced_byte_for_byte(name: str) -> None:
    path = STATES / name / "sla_attention.pt"
    assert encode_state(read_state(path)) == path.read_bytes()


def random_state(pairs: int, *, dim: int = 4, dtype: str = "float32") -> SLAState:
    rng = np.random.default_rng(pairs)
    tokens = ("bf16", "fp16", "fp32", "float64", "float8_e4m3fn")
    keys = [PairKey(dim + n // len(tokens), tokens[n % len(tokens)]) for n in range(pairs)]

    def values(*shape: int) -> np.ndarray:
        array = torch.from_numpy(rng.standard_normal(shape)).to(getattr(torch, dtype))
        return array.float().numpy() if dtype == "bfloat16" else array.numpy()

    return SLAState(
        {
            key: ProjectionTensors(
                values(key.head_dim, key.head_dim), values(key.head_dim), dtype, dtype
            )
            for key in keys
        },
        SLASettings(topk=0.1 + pairs / 1000, blkq=128, tie_feature_map_qk=pairs % 2 == 0),
    )


def as_torch(state: SLAState) -> dict[str, object]:
    """The payload as the trainer builds it: fresh strings and tensors for each pair."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, projection in state.pairs.items():
        entry = {}
        for stem, array, dtype in (
            ("weight", projection.weight, projection.weight_dtype),
            ("bias", projection.bias, projection.bias_dtype),
        ):
            entry["proj_l." + stem] = torch.from_numpy(array.copy()).to(getattr(torch, dtype))
        pairs[str(key)] = entry
    settings = state.settings.to_dict() if state.settings else None
    return {"settings": settings, "state": pairs, "version": 1}


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 7, 12, 13, 28, 60, 70])
def test_a_fresh_torch_save_gives_the_same_bytes(pairs: int, tmp_path: Path) -> None:
    state = random_state(pairs)
    path = tmp_path / "sla_attention.pt"
    torch.save(as_torch(state), path)
    assert encode_state(state) == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_stored_dtypes_keep_their_bytes(dtype: str, tmp_path: Path) -> None:
    state = random_state(3, dtype=dtype)
    path = tmp_path / "sla_attention.pt"
    torch.save(as_torch(state), path)
    assert encode_state(state) == path.read_bytes()
    assert read_state(path).equals(state)


def test_a_written_file_reads_back_equal_here_and_in_torch(tmp_path: Path) -> None:
    state = random_state(5)
    path = tmp_path / "sla_attention.pt"
    path.write_bytes(encode_state(state))
    assert read_state(path).equals(state)
    loaded = torch.load(path, weights_only=True)
    assert loaded["settings"] == state.settings.to_dict() if state.settings else False
    assert list(loaded["state"]) == [str(key) for key in state.pairs]


def test_a_dtype_without_storage_class_is_refused() -> None:
    odd = ProjectionTensors(np.zeros((4, 4), np.float32), np.zeros(4, np.float32), "float8_e5m2")
    with pytest.raises(ValueError, match="cannot be written"):
        encode_state(SLAState({PairKey(4, "bf16"): odd}))
