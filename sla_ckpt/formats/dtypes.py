"""torch dtypes in numpy: the storage classes of pickles and the tokens of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: torch dtype -> numpy type of the stored bits. bfloat16 and float8 are decoded to float32.
STORED_AS: Mapping[str, str] = MappingProxyType(
    {
        "float64": "<f8",
        "float32": "<f4",
        "float16": "<f2",
        "bfloat16": "<u2",
        "float8_e4m3fn": "|u1",
        "float8_e5m2": "|u1",
        "float8_e4m3fnuz": "|u1",
        "float8_e5m2fnuz": "|u1",
        "int64": "<i8",
        "int32": "<i4",
        "int16": "<i2",
        "int8": "|i1",
        "uint8": "|u1",
        "uint16": "<u2",
        "uint32": "<u4",
        "uint64": "<u8",
        "bool": "|b1",
        "complex64": "<c8",
        "complex128": "<c16",
    }
)

STORAGE_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "ComplexFloatStorage": "complex64",
        "ComplexDoubleStorage": "complex128",
    }
)

SAFETENSORS: Mapping[str, str] = MappingProxyType(
    {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U8": "uint8",
        "U16": "uint16",
        "U32": "uint32",
        "U64": "uint64",
        "BOOL": "bool",
        "C64": "complex64",
    }
)


def item_size(dtype: str) -> int:
    """Bytes of one element in the file."""
    return np.dtype(STORED_AS[dtype]).itemsize


def decoded_size(dtype: str) -> int:
    """Bytes of one element in memory, after decoding."""
    return 4 if dtype == "bfloat16" or dtype.startswith("float8") else item_size(dtype)


def decode(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored bits -> values, exactly; any shape.

    Args:
        bits: Array of the numpy type ``STORED_AS[dtype]``.
        dtype: torch name.

    Returns:
        A contiguous array: float32 for bfloat16 and float8, else the type as stored, in native
        byte order.
    """
    if dtype == "bfloat16":
        return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("float8"):
        # Indexing with an array of no dimensions would give a number, not an array.
        return np.asarray(_float8_values(dtype)[bits])
    native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
    return native.copy(order="C")


def encode(values: NDArray[Any], dtype: str) -> bytes:
    """Values -> stored little-endian bytes; the inverse of :func:`decode`.

    bfloat16 and float8 input must be exactly representable, as what :func:`decode` returned is.

    Raises:
        ValueError: A value that float8 does not have.
    """
    array = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        bits = (np.asarray(array, np.float32).view(np.uint32) >> 16).astype("<u2")
        return bits.tobytes()
    if dtype.startswith("float8"):
        return _float8_codes(np.asarray(array, np.float32), dtype)
    return array.astype(STORED_AS[dtype], copy=False).tobytes()


def _float8_codes(values: NDArray[np.float32], dtype: str) -> bytes:
    """The code of each value; of NaN, which has several, the first."""
    known, codes = np.unique(_float8_values(dtype).view(np.uint32), return_index=True)
    wanted = np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    if not np.array_equal(known[places], wanted):
        raise ValueError(f"a value does not fit into {dtype}")
    raw: bytes = codes[places].astype(np.uint8).tobytes()
    return raw


@cache
def _float8_values(dtype: str) -> NDArray[np.float32]:
    """The 256 values of a float8 type (OCP OFP8; the fnuz types of Graphcore and AMD)."""
    exponent_bits = 4 if "e4m3" in dtype else 5
    mantissa_bits = 7 - exponent_bits
    fnuz = dtype.endswith("fnuz")
    bias = (1 << (exponent_bits - 1)) - (0 if fnuz else 1)
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + mantissa) * np.exp2(exponent.astype(np.float64) - bias)
    subnormal = mantissa * 2.0 ** (1 - bias)
    values = np.where(exponent == 0, subnormal, normal)
    values = np.where(codes & 0x80, -values, values)
    if fnuz:
        values[0x80] = np.nan
    elif exponent_bits == 4:
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[[0x7C, 0xFC]] = np.inf, -np.inf
        values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return values.astype(np.float32)
