"""Every storage torch saves is read exactly; compared with torch itself."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from sla_ckpt.formats.dtypes import STORED_AS, decode, encode
from sla_ckpt.formats.payload import StoredTensor
from sla_ckpt.formats.torch_zip import read_torch_zip


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def read_tensor(tensor: object) -> StoredTensor:
    value = read_torch_zip(saved({"t": tensor})).value
    assert isinstance(value, dict)
    return value["t"]


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All bit patterns of a type up to 16 bits, random ones of the wider."""
    size = dtype.itemsize
    if dtype is torch.bool:
        return torch.tensor([True, False])
    if size == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    if size == 2:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-128, 127, (64 * size,), generator=generator).to(torch.int8).view(dtype)


@pytest.mark.parametrize("name", STORED_AS)
def test_each_dtype_reads_exactly(name: str) -> None:
    tensor = every_value(getattr(torch, name))
    stored = read_tensor(tensor)
    assert (stored.dtype, stored.shape) == (name, tuple(tensor.shape))
    wide = name == "bfloat16" or name.startswith("float8")
    expected = tensor.float().numpy() if wide else tensor.numpy()
    assert stored.array.dtype == expected.dtype
    np.testing.assert_array_equal(stored.array, expected)
    assert not stored.array.flags.writeable


@pytest.mark.parametrize("name", STORED_AS)
def test_encoding_inverts_decoding(name: str) -> None:
    bits = np.frombuffer(
        every_value(getattr(torch, name)).view(torch.uint8).numpy(), STORED_AS[name]
    )
    values = decode(bits, name)
    encoded = encode(values, name)
    assert decode(np.frombuffer(encoded, STORED_AS[name]), name).tobytes() == values.tobytes()
    if not name.startswith("float8"):  # which has several codes for NaN
        assert encoded == bits.tobytes()


def test_what_float8_cannot_hold_is_not_rounded() -> None:
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        encode(np.array([0.3], np.float32), "float8_e4m3fn")


def test_views_and_shared_storages_read_as_torch_reads_them() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value = {
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "row": base[2],
        "expanded": torch.ones(1).expand(3, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "overlapping": base.flatten().as_strided((3, 3), (1, 1), 2),
    }
    read = read_torch_zip(saved(value)).value
    assert isinstance(read, dict)
    for name, tensor in value.items():
        np.testing.assert_array_equal(read[name].array, tensor.numpy())
        assert read[name].array.flags.c_contiguous


def test_parameters_ordered_dicts_and_modules_state_are_read() -> None:
    linear = torch.nn.Linear(3, 2)
    payload = read_torch_zip(saved(OrderedDict(linear.state_dict(), own=linear.weight)))
    assert isinstance(payload.value, dict)
    assert list(payload.value) == ["weight", "bias", "own"]
    np.testing.assert_array_equal(payload.value["own"].array, linear.weight.detach().numpy())
    assert payload.notes == (
        "archive/ prefix: it was saved to a stream",
        "tensors saved as nn.Parameter",
    )


def test_plain_values_are_read() -> None:
    value = {
        "numbers": (1, -1, 255, 256, 65536, -(1 << 31), 1 << 40, -(1 << 63), 0.5),
        "text": "ü✓",
        "bytes": b"\x00\xff",
        "nothing": [None, True, False, (), [], {}],
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        (1, "key"): 3,
    }
    assert read_torch_zip(saved(value)).value == {
        **value,
        "size": (2, 3),
        "dtype": "torch.bfloat16",
        "device": "cuda:1",
    }


def test_a_tensor_on_another_device_is_read() -> None:
    raw = saved({"t": torch.arange(4.0)}).replace(b"\x03\x00\x00\x00cpu", b"\x03\x00\x00\x00npu")
    from sla_ckpt.errors import FormatError

    with pytest.raises(FormatError, match="CRC"):
        read_torch_zip(raw)


@pytest.mark.parametrize("protocol", [3, 4])
def test_another_pickle_protocol_reads_or_is_refused_as_torch_does(protocol: int) -> None:
    from sla_ckpt.errors import FormatError

    data = saved({"a": torch.zeros(2), "b": "x"}, pickle_protocol=protocol)
    if protocol == 3:
        assert "pickle protocol 3" in read_torch_zip(data).notes
    else:
        with pytest.raises(FormatError, match="not supported"):
            read_torch_zip(data)


def test_tensors_whose_bytes_mean_something_else_are_refused() -> None:
    from sla_ckpt.errors import FormatError

    negated = torch.imag(torch.conj(torch.ones(2, dtype=torch.complex64)))
    assert negated.is_neg()
    for value in (negated, torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2).to_sparse()):
        with pytest.raises(FormatError):
            read_torch_zip(saved(value))
