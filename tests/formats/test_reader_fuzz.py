"""Whatever the bytes: our own error, or exactly what torch's weights-only loader reads."""

from __future__ import annotations

import io
import time
import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sla_ckpt.errors import SlaCkptError
from sla_ckpt.formats.payload import StoredTensor
from sla_ckpt.formats.simpletuner import payload_to_state
from sla_ckpt.formats.torch_zip import read_torch_zip
from tests.formats.zip_builders import GOOD_STATE, STATES, pickle_of, with_pickle

SMALL = (STATES / "own_test_no_tie_1x1" / "sla_attention.pt").read_bytes()
LARGE = GOOD_STATE.read_bytes()
PICKLES = [pickle_of(STATES / name / "sla_attention.pt") for name in
           ("own_test_no_tie_1x1", "string_settings_64_fp16", "shared_two_keys")]  # fmt: skip
OPCODES = b"(.0]})tR\x81\x85\x86\x87qrhjcQbaseuNKMJXGU\x88\x89\x8a\x8c\x93\x94\x95iopI"

fuzz = settings(
    max_examples=500, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, StoredTensor):
        if not isinstance(theirs, torch.Tensor) or f"torch.{ours.dtype}" != str(theirs.dtype):
            return False
        values = theirs.detach()
        values = values.float() if theirs.dtype is torch.bfloat16 else values
        array = np.ascontiguousarray(values.contiguous().numpy())
        return tuple(theirs.shape) == ours.shape and array.tobytes() == ours.array.tobytes()
    if isinstance(ours, dict):
        return (
            isinstance(theirs, dict)
            and list(ours) == list(theirs)
            and all(same(ours[key], theirs[key]) for key in ours)
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs or ours != ours or str(theirs) == ours


def check(data: bytes) -> None:
    started = time.perf_counter()
    try:
        payload = read_torch_zip(data, name="x.pt")
    except SlaCkptError as error:
        assert "\n" not in error.message
        payload = None
    assert time.perf_counter() - started < 2
    if payload is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    assert same(payload.value, loaded)
    try:
        payload_to_state(payload, name="x.pt")
    except SlaCkptError as error:
        assert error.path == "x.pt"


@st.composite
def edits(draw: Any, data: bytes, *, start: int = 0) -> bytes:
    """One to four small edits of a file from ``start`` on."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if len(result) <= start:
            break
        position = draw(st.integers(start, len(result) - 1))
        length = draw(st.sampled_from([1, 1, 2, 4, 8]))
        action = draw(st.sampled_from(["flip", "set", "opcode", "delete", "insert", "copy"]))
        if action == "flip":
            result[position] ^= 1 << draw(st.integers(0, 7))
        elif action == "set":
            result[position] = draw(st.sampled_from([0, 1, 0x10, 0x7F, 0x80, 0xFF]))
        elif action == "opcode":
            result[position] = draw(st.sampled_from(OPCODES))
        elif action == "delete":
            del result[position : position + length]
        elif action == "insert":
            result[position:position] = draw(st.binary(min_size=length, max_size=length))
        else:
            other = draw(st.integers(start, len(result) - 1))
            result[position : position + length] = result[other : other + length]
    return bytes(result)


@fuzz
@given(edits(SMALL))
def test_a_mutated_small_file(data: bytes) -> None:
    check(data)


@fuzz
@given(edits(LARGE, start=len(LARGE) - 800))
def test_a_mutated_directory(data: bytes) -> None:
    check(data)


@fuzz
@given(st.sampled_from(PICKLES).flatmap(lambda p: st.tuples(edits(p[0]), st.just(p[1]))))
def test_a_mutated_pickle_in_a_sound_archive(made: tuple[bytes, list[bytes]]) -> None:
    stream, storages = made
    check(with_pickle(stream, *storages))


@fuzz
@given(st.lists(st.sampled_from([bytes([code]) for code in OPCODES] + [
    b"K\x01", b"X\x01\x00\x00\x00a", b"q\x00", b"h\x00", b"\x85", b"ccollections\nOrderedDict\n",
    b")R", b"(K\x01K\x02u", b"(K\x01e",
]), max_size=40))  # fmt: skip
def test_random_opcodes(parts: list[bytes]) -> None:
    check(with_pickle(b"\x80\x02" + b"".join(parts) + b"."))


@fuzz
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"{", b"\x1f\x8b"])
)
def test_random_bytes(data: bytes, magic: bytes) -> None:
    check(magic + data)
