"""Made-up samples, and stored forward() calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sla_ckpt.errors import FormatError, RegenError
from sla_ckpt.regen.families.base import collate
from sla_ckpt.regen.samples import SampleRequest, SampleSet, load_samples
from sla_ckpt.regen.samples.sizes import fewest_tokens, kept_blocks
from sla_ckpt.state import SLASettings
from tests.regen.sample_makers import ADAPTER, CONFIG, SETTINGS


def load(folder: Path, **options: Any) -> SampleSet:
    return load_samples(folder, SampleRequest(**options), ADAPTER, CONFIG)


def test_without_data_samples_are_made_up_and_said_so(tmp_path: Path) -> None:
    found = load(tmp_path, count=3)

    assert found.kind == "synthetic"
    assert "NOT confirmed" in found.warnings[0]
    assert "--data DIR" in found.warnings[0]
    batch = collate(found.samples)
    assert len(batch) == 3
    assert torch.isfinite(batch.latents).all()


def test_equal_seeds_give_equal_samples(tmp_path: Path) -> None:
    options = {"count": 2, "resolution": (256, 256), "settings": SETTINGS}
    first, again = load(tmp_path, seed=5, **options), load(tmp_path, seed=5, **options)
    other = load(tmp_path, seed=6, **options)

    for a, b, c in zip(first.samples, again.samples, other.samples, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert not torch.equal(a.latents, c.latents)
    assert not torch.equal(first.samples[0].latents, first.samples[1].latents)


def test_resolution_and_tokens_give_the_size(tmp_path: Path) -> None:
    by_size = load(tmp_path, count=1, resolution=(320, 256), settings=SETTINGS)
    by_tokens = load(tmp_path, count=1, tokens=400)

    assert by_size.samples[0].latents.shape == (4, 32, 40)
    assert by_tokens.samples[0].latents.shape == (4, 40, 40)


def test_default_size_keeps_a_block_at_any_topk(tmp_path: Path) -> None:
    settings = SLASettings(topk=0.02)
    found = load(tmp_path, count=1, settings=settings)

    rows, columns = found.samples[0].latents.shape[-2:]
    assert kept_blocks(rows // 2 * (columns // 2), settings) >= 1


@pytest.mark.parametrize("options", [{"resolution": (256, 256)}, {"tokens": 200}])
def test_sizes_at_which_topk_keeps_nothing_are_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(RegenError, match="no block is kept"):
        load(tmp_path, count=1, **options)


@pytest.mark.parametrize("topk", [0.02, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("blkk", [64, 128])
def test_fewest_tokens_is_the_smallest_that_keeps_a_block(topk: float, blkk: int) -> None:
    settings = SLASettings(topk=topk, blkk=blkk)
    least = fewest_tokens(settings)

    assert kept_blocks(least, settings) >= 1
    assert least == 1 or kept_blocks(least - 1, settings) == 0


def store(path: Path, tensors: dict[str, torch.Tensor], **arguments: Any) -> Path:
    save_file(tensors, path, metadata={"arguments": json.dumps(arguments)} if arguments else None)
    return path


def test_stored_calls_come_back_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "0/hidden_states": torch.randn(1, 6, 16),
        "0/added_cond_kwargs.text_embeds": torch.randn(1, 3),
        "0/x.0": torch.zeros(2),
        "0/x.1": torch.ones(3),
        "0/target": torch.randn(1, 6, 16),
        "10/hidden_states": torch.randn(1, 6, 16),
        "10/target": torch.randn(1, 6, 16),
        "9/hidden_states": torch.randn(1, 6, 16),
        "9/target": torch.randn(1, 6, 16),
    }
    path = store(tmp_path / "calls.safetensors", tensors, num_frames=5, img_shapes=[[[1, 2, 3]]])

    found = load(tmp_path, inputs=path, count=2)

    assert found.kind == "real"
    assert [call.source for call in found.calls] == ["calls.safetensors:0", "calls.safetensors:9"]
    first = found.calls[0]
    assert torch.equal(first.inputs["hidden_states"], tensors["0/hidden_states"])
    assert torch.equal(first.target, tensors["0/target"])
    assert torch.equal(
        first.inputs["added_cond_kwargs"]["text_embeds"],
        tensors["0/added_cond_kwargs.text_embeds"],
    )
    assert [len(entry) for entry in first.inputs["x"]] == [2, 3]
    assert first.inputs["num_frames"] == 5
    assert "target" not in first.inputs


def test_file_without_call_names_is_one_call(tmp_path: Path) -> None:
    path = store(
        tmp_path / "one.safetensors", {"sample": torch.zeros(1, 2), "target": torch.zeros(1, 2)}
    )

    assert len(load(tmp_path, inputs=path)) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sample": torch.zeros(2)}, "no target"),
        ({"target": torch.zeros(2)}, r"no forward\(\) arguments"),
        ({"x": torch.tensor([float("nan")]), "target": torch.zeros(1)}, "NaN"),
        ({"x": torch.zeros(1), "x.y": torch.zeros(1), "target": torch.zeros(1)}, "named twice"),
        ({}, "no tensors"),
    ],
    ids=["no-target", "no-arguments", "nan", "twice", "empty"],
)
def test_malformed_stored_calls_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = store(tmp_path / "x.safetensors", tensors)

    with pytest.raises(RegenError, match=message):
        load(tmp_path, inputs=path)


def test_inputs_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(FormatError):
        load(tmp_path, inputs=tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="No such file"):
        load(tmp_path, inputs=tmp_path / "absent.safetensors")
