"""Headers are checked against the file's size before anything else is believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.reading import from_bytes
from sla_ckpt.formats.safetensors_header import SafetensorsHeader, read_header
from tests.formats.zip_builders import GOOD_STATE


def header_of(data: bytes, size: int | None = None) -> SafetensorsHeader:
    source = from_bytes(data, "w.safetensors")
    return read_header(source.read, len(data) if size is None else size, name=source.name)


def file_with(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(start: int, end: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


def fault(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        header_of(data)
    assert "w.safetensors" in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_real_header_is_read_without_the_tensors() -> None:
    arrays = {"a": np.ones((2, 3), np.float32), "b.c": np.ones(5, np.int64), "e": np.ones((0, 2))}
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    reads: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        reads.append((start, length))
        return data[start : start + length]

    header = read_header(read, len(data), name="w.safetensors")
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    info = header.tensors["a"]
    assert data[info.start : info.end] == arrays["a"].tobytes()
    assert header.metadata == {"format": "pt"}
    assert len(reads) == 1


def test_a_huge_file_costs_two_small_reads() -> None:
    entries = {f"layer.{n}.weight": tensor(4 * n, 4 * n + 4) for n in range(2000)}
    data = file_with(entries)
    reads: list[int] = []

    def read(start: int, length: int) -> bytes:
        reads.append(length)
        return data[start : start + length]

    header = read_header(read, len(data) + 8000, name="w")
    assert len(header.tensors) == 2000
    assert sum(reads) < len(data) + 2048


@pytest.mark.parametrize("size", range(8))
def test_a_file_of_a_few_bytes_gives_its_size(size: int) -> None:
    """Public report 27: files of 0 to 7 bytes."""
    error = fault(b"\x01" * size)
    assert str(size) in error.message


def test_truncation_says_what_is_needed_and_what_is_there() -> None:
    """Public report 22: both sizes are given."""
    data = safetensors.numpy.save({"a": np.ones(100, np.float32)})
    for cut in (1, 399, 410):
        error = fault(data[:-cut])
        assert error.kind == "truncated"
        assert f"the file has {len(data) - cut:,}" in error.message
        assert "header needs" in error.message


@pytest.mark.parametrize(
    ("header", "body", "kind", "words"),
    [
        (b"{", b"", "truncated", "too short"),
        (b"{  ", b"", "header", "not JSON"),
        (b"[]", b"", "unknown", ""),
        (b"{\xff}", b"", "header", "UTF-8"),
        (b'{"a":' * 100_000, b"", "header", "JSON"),
        (b'{"a":' + b"[" * 100_000, b"", "header", "JSON"),
        (b'{"a":1' + b"0" * 5000 + b"}", b"", "header", ""),
        ({"a": 1}, b"", "header", "'a'"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "header", "'a'"),
        ({"a": {**tensor(0, 4), "more": 1}}, b"1234", "header", "'a'"),
        ({"a": tensor(0, 4, dtype="F33")}, b"1234", "header", "F33"),
        ({"a": tensor(0, 4, dtype=[])}, b"1234", "header", "dtype"),
        ({"a": tensor(0, 4, shape=[2])}, b"1234", "header", "needs 8"),
        ({"a": tensor(0, 4, shape=[-1])}, b"1234", "header", "shape"),
        ({"a": tensor(0, 4, shape=[1.0])}, b"1234", "header", "shape"),
        ({"a": tensor(0, 4, shape=[True])}, b"1234", "header", "shape"),
        ({"a": tensor(0, 4, shape=[1 << 62, 1 << 62])}, b"1234", "header", "needs"),
        ({"a": tensor(0, 4, shape=[1] * 65)}, b"1234", "header", "shape"),
        ({"a": tensor(4, 0, shape=[1])}, b"1234", "header", "needs"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234", "header", "offsets"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12", "header", "needs"),
        ({"a": tensor(0, 4), "b": tensor(0, 4)}, b"1234", "header", "overlaps"),
        ({"a": tensor(0, 4), "b": tensor(8, 12)}, b"1" * 12, "header", "hole"),
        ({"a": tensor(4, 8)}, b"1" * 8, "header", "hole"),
        ({"a": tensor(0, 4)}, b"12345", "header", "1 bytes more"),
        (
            b'{"a":' + json.dumps(tensor(0, 4)).encode() + b',"a":' +
            json.dumps(tensor(0, 4)).encode() + b"}",
            b"1234", "header", "'a' twice",
        ),
        (b'{"a":[' + b"[]," * 500_000 + b"[]]}", b"", "header", "brackets"),
        ({"__metadata__": []}, b"", "metadata", "not an object"),
        ({"__metadata__": {"step": 1}}, b"", "metadata", "'step' = 1"),
    ],
)  # fmt: skip
def test_a_wrong_header_is_one_line(header: Any, body: bytes, kind: str, words: str) -> None:
    error = fault(file_with(header, body))
    assert error.kind == kind
    assert words in error.message
    assert len(error.message) < 400


def test_the_header_limit_of_the_format_is_kept() -> None:
    data = struct.pack("<Q", 200_000_000) + b"{" + b" " * 100
    assert "limit of 100 MB" in fault(data).message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (GOOD_STATE.read_bytes(), "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 5\n",
         "lfs-pointer"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"<!DOCTYPE html><html>", "html"),
        (b'{"error": "not found"}', "json"),
        (b"", "empty"),
    ],
)  # fmt: skip
def test_another_format_under_this_name_is_named(data: bytes, kind: str) -> None:
    assert fault(data).kind == kind


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_mutated_file_reads_as_the_library_reads_it_or_not_at_all(data: Any) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int8)}
    mutated = bytearray(safetensors.numpy.save(arrays, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] = data.draw(st.integers(0, 255))
    try:
        header = header_of(bytes(mutated))
    except FormatError:
        return
    loaded = safetensors.deserialize(bytes(mutated))
    assert {name: tuple(view["shape"]) for name, view in loaded} == {
        name: info.shape for name, info in header.tensors.items()
    }


def test_real_checkpoint_headers_are_read(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, in_channels=4, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    header = header_of(path.read_bytes())
    assert {name: list(info.shape) for name, info in header.tensors.items()} == {
        name: list(value.shape) for name, value in model.state_dict().items()
    }
