"""Archives that two readers could understand differently are refused."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.torch_zip import read_torch_zip
from tests.formats.zip_builders import (
    GOOD_STATE,
    Edit,
    End,
    Member,
    build_zip,
    edited,
    good_members,
)

DATA = "data/0"


def kind_of(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read_torch_zip(data, name="sla_attention.pt")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.kind


def test_a_plain_rebuilt_archive_is_read() -> None:
    assert read_state(build_zip(good_members())).equals(read_state(GOOD_STATE))


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (Edit(DATA, {"local_name": "sla_attention/data/X"}), "ambiguous-zip"),
        (Edit(DATA, {"local_crc": 1}), "ambiguous-zip"),
        (Edit(DATA, {"local_size": 5}), "ambiguous-zip"),
        (Edit(DATA, {"flags": 1}), "encrypted"),
        (Edit(DATA, {"flags": 1 << 6}), "encrypted"),
        (Edit(DATA, {"local_flags": 1}), "ambiguous-zip"),
        (Edit(DATA, {"method": 12}), "zip"),
        (Edit(DATA, {"method": 99}), "zip"),
        (Edit(DATA, {"crc": 1}), "crc"),
        (Edit("data.pkl", {"crc": 1}), "crc"),
        (Edit("version", {"crc": 1}), "crc"),
        (Edit(DATA, {"attributes": 0x10}), "ambiguous-zip"),
        (Edit(DATA, {"central_start": 0}), "ambiguous-zip"),
        (Edit(DATA, {"central_start": 1 << 30}), "zip"),
        (Edit(DATA, {"size": 1}), "ambiguous-zip"),
        (Edit(DATA, {"disk": 3}), "zip"),
        (Edit(DATA, {"extra": b"\x01\x00\xff\xff"}), "zip"),
        (Edit(DATA, {"name": "sla_attention/data/\0"}), "zip"),
        (Edit(DATA, {"name": "sla_attention\\data\\0"}), "zip"),
        (Edit(DATA, {"name": "/sla_attention/data/0"}), "zip"),
        (Edit(DATA, {"name": "sla_attention/../data/0"}), "zip"),
        (Edit(DATA, {"name": "sla_attention/data/\udcff"}), "zip"),
        (Edit(DATA, {"name": "sla_attention/data/1"}), "ambiguous-zip"),
        (Edit(DATA, {"name": "SLA_attention/DATA/1"}), "ambiguous-zip"),
        (Edit(DATA, {"name": "sla_attention/data/9"}), "missing-storage"),
        (Edit(DATA, {"data": b"1234"}), "storage-size"),
        (Edit("data.pkl", {"name": "sla_attention/other.pkl"}), "zip"),
        (Edit("data.pkl", {"name": "sla_attention/sub/data.pkl"}), "ambiguous-zip"),
        (Edit("byteorder", {"data": b"big"}), "byteorder"),
        (Edit("byteorder", {"data": b"\0" * 999}), "bomb"),
        (Edit("/version", {"data": b"99"}), "zip"),
        (Edit("/version", {"name": "sla_attention/no_version"}), "zip"),
        (Edit("alignment", {"data": b"\xff"}), "zip"),
    ],
    ids=lambda value: (
        f"{value.suffix}-{','.join(value.changes)}" if isinstance(value, Edit) else value
    ),
)
def test_an_entry_that_lies_is_refused(edit: Edit, kind: str) -> None:
    if "local_name" not in edit.changes and "name" in edit.changes:
        # The lie under test is the name itself, the same in both places.
        edit = Edit(edit.suffix, {**edit.changes, "local_name": edit.changes["name"]})
    assert kind_of(build_zip(edited(edit))) == kind


def test_two_pickles_are_refused() -> None:
    members = good_members()
    other = Member("sla_attention/x/data.pkl", members[0].data)
    assert kind_of(build_zip([*members, other])) == "ambiguous-zip"


def test_the_same_name_twice_is_refused() -> None:
    members = good_members()
    assert kind_of(build_zip([*members, members[0]])) == "ambiguous-zip"


def test_a_torchscript_archive_is_named() -> None:
    members = [*good_members(), Member("sla_attention/constants.pkl", b"")]
    assert kind_of(build_zip(members)) == "torchscript"


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (End(count=3), "ambiguous-zip"),
        (End(count=60000), "truncated"),
        (End(size=10), "ambiguous-zip"),
        (End(start=10), "ambiguous-zip"),
        (End(disk=1), "zip"),
        (End(trailing=b"x" * 70_000), "truncated"),
    ],
)
def test_a_lying_end_record_is_refused(end: End, kind: str) -> None:
    assert kind_of(build_zip(good_members(), end)) == kind


def test_a_comment_and_trailing_bytes_are_noted() -> None:
    data = build_zip(good_members(), End(comment=b"hello", trailing=b"x" * 64))
    notes = read_torch_zip(data).notes
    assert notes == ("64 trailing bytes", "a zip comment of 5 bytes")
    assert read_state(data).equals(read_state(GOOD_STATE))


def test_entries_outside_the_directory_are_noted() -> None:
    members = good_members()
    hidden = Member("sla_attention/hidden", b"x" * 100, listed=False)
    (note,) = read_torch_zip(build_zip([*members[:3], hidden, *members[3:]])).notes
    assert "no zip entry owns" in note


def test_a_repacked_archive_with_folder_entries_is_read() -> None:
    folder = Member("sla_attention/", b"", attributes=0x10)
    data = build_zip([folder, *good_members()])
    assert read_state(data).equals(read_state(GOOD_STATE))


def test_a_zip64_size_is_taken_from_its_field_or_refused() -> None:
    body = good_members()[4].data
    honest = struct.pack("<HHQ", 1, 8, len(body))
    lying = struct.pack("<HHQ", 1, 8, len(body) + 1)
    for extra, accepted in ((honest, True), (lying, False), (b"", False)):
        change = {"size": 0xFFFFFFFF, "local_size": len(body), "extra": extra}
        data = build_zip(edited(Edit(DATA, change)))
        if accepted:
            assert read_state(data).equals(read_state(GOOD_STATE))
        else:
            assert kind_of(data) in ("ambiguous-zip", "zip")


def test_the_zip64_end_record_must_agree() -> None:
    real = bytearray(GOOD_STATE.read_bytes())
    position = real.rindex(b"PK\x06\x06")
    for offset in (4, 16, 24, 32, 40, 48):
        damaged = bytearray(real)
        damaged[position + offset] ^= 1
        assert kind_of(bytes(damaged)) in ("ambiguous-zip", "zip")


@pytest.mark.parametrize("declared", [None, 100])
def test_a_deflate_bomb_costs_little_memory(declared: int | None) -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(b"\0" * (200 << 20)) + packed.flush()
    bomb = {"raw": raw, "method": 8, "size": declared or 200 << 20, "crc": 0}
    data = build_zip(edited(Edit("data.pkl", bomb)))
    tracemalloc.start()
    try:
        started = time.perf_counter()
        assert kind_of(data) == "bomb"
        assert time.perf_counter() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_many_tensors_over_one_small_storage_cannot_fill_the_memory(tmp_path: object) -> None:
    import torch

    buffer = io.BytesIO()
    base = torch.zeros(1)
    torch.save({str(n): base.expand(1 << 20, n + 1) for n in range(64)}, buffer)
    assert kind_of(buffer.getvalue()) == "bomb"


def test_damaged_deflate_data_is_refused() -> None:
    rezipped = bytearray(
        (GOOD_STATE.parents[1] / "wrong/rezipped_deflate/sla_attention.pt").read_bytes()
    )
    with zipfile.ZipFile(io.BytesIO(bytes(rezipped))) as archive:
        start = archive.getinfo("sla_attention/data/0").header_offset
    rezipped[start + 300] ^= 0xFF
    assert kind_of(bytes(rezipped)) in ("damaged", "crc", "bomb")


@pytest.mark.parametrize("cut", [1, 21, 22, 60, 100, 500, 5000, 60000, 68000, 68100])
def test_a_truncated_file_says_so(cut: int) -> None:
    """Public report 35: a torch zip without its end."""
    data = GOOD_STATE.read_bytes()[:-cut]
    with pytest.raises(FormatError) as caught:
        read_torch_zip(data, name="sla_attention.pt")
    assert caught.value.kind in ("truncated", "unknown")
    if caught.value.kind == "truncated":
        assert f"{len(data):,} bytes are there, and no central directory" in caught.value.message
