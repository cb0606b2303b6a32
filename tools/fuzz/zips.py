"""Zip archives whose every field can lie, in the local header, the directory or both.

Format: PKWARE APPNOTE 6.3.10.
"""

from __future__ import annotations

import copy
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tools.fuzz import values

_FULL = 0xFFFFFFFF


@dataclass
class Member:
    """One entry; what ``local`` and ``central`` name replaces the honest value there."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    attributes: int = 0
    zip64_local: bool = False
    zip64_central: bool = False
    descriptor: bool = False
    extra: bytes = b""
    gap: bytes = b""
    listed: bool = True
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)


@dataclass
class Archive:
    """Entries and end records."""

    members: list[Member]
    prefix: bytes = b""
    shifted: bool = True
    zip64: bool = False
    end: dict[str, int] = field(default_factory=dict)
    end64: dict[str, int] = field(default_factory=dict)
    comment: bytes = b""
    trailing: bytes = b""


def torch_archive(pickle: bytes, storages: dict[str, bytes], *, folder: str = "x") -> Archive:
    """The entries ``torch.save`` would write."""
    parts = {"data.pkl": pickle, ".format_version": b"1", ".storage_alignment": b"64",
             "byteorder": b"little"}  # fmt: skip
    parts |= {f"data/{key}": raw for key, raw in storages.items()}
    parts |= {"version": b"3\n", ".data/serialization_id": b"1" * 40}
    return Archive([
        Member(f"{folder}/{name}".encode("utf-8", "surrogatepass"), raw)
        for name, raw in parts.items()
    ])  # fmt: skip


def parse(data: bytes) -> Archive:
    """The entries of a sound archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return Archive([
            Member(info.filename.encode(), archive.read(info)) for info in archive.infolist()
        ])  # fmt: skip


def build(archive: Archive) -> bytes:
    body = bytearray(archive.prefix)
    base = 0 if archive.shifted else len(archive.prefix)
    directory = bytearray()
    listed = 0
    for member in archive.members:
        body += member.gap
        start = len(body) - base
        local, central, after = _headers(member, start)
        body += local + after
        if member.listed:
            listed += 1
            directory += central
    where = len(body) - base
    return bytes(body + directory) + _ends(archive, listed, len(directory), where, len(body))


def _headers(member: Member, start: int) -> tuple[bytes, bytes, bytes]:
    raw = member.data
    if member.method == 8:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        raw = packer.compress(raw) + packer.flush()
    honest: dict[str, Any] = {
        "name": member.name, "method": member.method, "attributes": member.attributes,
        "flags": member.flags | (8 if member.descriptor else 0), "crc": zlib.crc32(member.data),
        "compressed": len(raw), "size": len(member.data), "start": start, "extra": member.extra,
        "disk": 0, "version": 20, "comment": b"",
    }  # fmt: skip
    real = (honest["crc"], honest["compressed"], honest["size"])
    local = honest | ({"crc": 0, "compressed": 0, "size": 0} if member.descriptor else {})
    local |= member.local
    central = honest | member.central
    if member.zip64_local:
        local["extra"] = (
            struct.pack("<HHQQ", 1, 16, _64(local["size"]), _64(local["compressed"]))
            + local["extra"]
        )
        local["size"] = local["compressed"] = _FULL
    if member.zip64_central:
        wide = (central["size"], central["compressed"], central["start"])
        central["extra"] = struct.pack("<HHQQQ", 1, 24, *map(_64, wide)) + central["extra"]
        central["size"] = central["compressed"] = central["start"] = _FULL
    head = struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", _16(local["version"]), _16(local["flags"]),
        _16(local["method"]),
        0, 0, _32(local["crc"]), _32(local["compressed"]), _32(local["size"]),
        _16(local.get("name_length", len(local["name"]))), _16(len(local["extra"])),
    ) + local["name"] + local["extra"] + raw  # fmt: skip
    listing = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, _16(central["version"]), _16(central["flags"]),
        _16(central["method"]), 0, 0, _32(central["crc"]), _32(central["compressed"]),
        _32(central["size"]), _16(len(central["name"])), _16(len(central["extra"])),
        _16(len(central["comment"])), _16(central["disk"]), 0, _32(central["attributes"]),
        _32(central["start"]),
    ) + central["name"] + central["extra"] + central["comment"]  # fmt: skip
    descriptor = struct.pack("<4sIII", b"PK\7\x08", *map(_32, real)) if member.descriptor else b""
    return head, listing, descriptor


def _ends(archive: Archive, count: int, size: int, start: int, position: int) -> bytes:
    end = {"count": count, "here": count, "size": size, "start": start, "disk": 0, "first": 0}
    end64 = end | {"where": position - (0 if archive.shifted else len(archive.prefix)) + size,
                   "record": 44, "disks": 1}  # fmt: skip
    end |= archive.end
    end64 |= archive.end64
    out = b""
    if archive.zip64:
        out += struct.pack(
            "<4sQHHIIQQQQ", b"PK\6\6", _64(end64["record"]), 45, 45, _32(end64["disk"]),
            _32(end64["first"]), *(_64(end64[key]) for key in ("here", "count", "size", "start")),
        )  # fmt: skip
        out += struct.pack("<4sIQI", b"PK\6\7", 0, _64(end64["where"]), _32(end64["disks"]))
    return out + struct.pack(
        "<4sHHHHIIH", b"PK\5\6", _16(end["disk"]), _16(end["first"]), _16(end["here"]),
        _16(end["count"]), _32(end["size"]), _32(end["start"]), _16(len(archive.comment)),
    ) + archive.comment + archive.trailing  # fmt: skip


def _16(value: int) -> int:
    return value & 0xFFFF


def _32(value: int) -> int:
    return value & _FULL


def _64(value: int) -> int:
    return value & (1 << 64) - 1


def mutate(rng: Random, archive: Archive) -> Archive:
    """A copy with one to three things wrong or merely unusual."""
    result = copy.deepcopy(archive)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not result.members:
            break
        rng.choice(_MUTATIONS)(rng, result)
    return result


def _lie(rng: Random, archive: Archive) -> None:
    member = rng.choice(archive.members)
    key = rng.choice(("crc", "compressed", "size", "start", "flags", "method", "attributes", "disk",
                      "version", "name_length"))  # fmt: skip
    value = rng.choice((values.integer(rng), rng.choice((1, 6, 8, 9, 12, 14, 0x10, 0x800, 0x2000))))
    for side in rng.choice(((member.local,), (member.central,), (member.local, member.central))):
        side[key] = value


def _rename(rng: Random, archive: Archive) -> None:
    member = rng.choice(archive.members)
    folder, _, rest = member.name.partition(b"/")
    raw = values.text(rng).encode("utf-8", "surrogatepass")
    name = rng.choice((
        raw, folder + b"/" + raw, member.name.upper(), member.name.replace(b"/", b"\\"),
        member.name + b"\0", member.name + b"\0.txt", member.name + b"/", b"/" + member.name,
        b"./" + member.name, folder + b"//" + rest, folder + b"/../" + member.name,
        member.name + b" ", b"\xff" + member.name, folder + b"/data.pkl", folder + b"/x/data.pkl",
        b"y/" + rest, b"x" * 70000, rest, folder + b"/constants.pkl", folder + b"/DATA.PKL",
    ))  # fmt: skip
    side = rng.randrange(4)
    if side == 0:
        member.local["name"] = name
    elif side == 1:
        member.central["name"] = name
    else:
        member.name = name


def _copy_member(rng: Random, archive: Archive) -> None:
    member = copy.deepcopy(rng.choice(archive.members))
    if rng.random() < 0.7:
        member.data = values.mutate_bytes(rng, member.data)
    member.listed = rng.random() < 0.8
    archive.members.insert(rng.randrange(len(archive.members) + 1), member)


def _extra(rng: Random, archive: Archive) -> None:
    member = rng.choice(archive.members)
    body = rng.randbytes(rng.choice((0, 4, 8, 16, 24)))
    tag = rng.choice((1, 1, 0x4246, 0x5455, 0x7075, 0x9901))
    extra = struct.pack("<HH", tag, rng.choice((len(body), len(body) + 1, 0xFFFF))) + body
    side = rng.randrange(3)
    if side == 0:
        member.extra = extra
    else:
        (member.local if side == 1 else member.central)["extra"] = extra


def _end_lie(rng: Random, archive: Archive) -> None:
    key = rng.choice(
        ("count", "here", "size", "start", "disk", "first", "where", "record", "disks")
    )
    target = archive.end64 if archive.zip64 and rng.random() < 0.6 else archive.end
    target[key] = rng.choice((values.integer(rng), 0xFFFF, _FULL))


def _end64(rng: Random, archive: Archive) -> None:
    archive.zip64 = not archive.zip64
    if archive.zip64 and rng.random() < 0.4:
        archive.end = {"count": 0xFFFF, "here": 0xFFFF, "size": _FULL, "start": _FULL}


_JUNK = (
    b"x", b"x" * 64, b"x" * 200, b"PK\5\6" + bytes(18), b"PK\3\4", b"\x80\x02N.", b"#!/bin/sh\n",
    b"\x7fELF", b"7z\xbc\xaf'\x1c", b"Rar!\x1a\x07", bytes(64),
)  # fmt: skip


def _surround(rng: Random, archive: Archive) -> None:
    junk = rng.choice(_JUNK)
    choice = rng.randrange(4)
    if choice == 0:
        archive.prefix, archive.shifted = junk, rng.random() < 0.5
    elif choice == 1:
        archive.trailing = junk
    elif choice == 2:
        archive.comment = junk
    else:
        rng.choice(archive.members).gap = junk


def _contents(rng: Random, archive: Archive) -> None:
    member = rng.choice(archive.members)
    choice = rng.randrange(5)
    if choice == 0:
        member.data = values.mutate_bytes(rng, member.data)
    elif choice == 1:
        member.local["crc"] = member.central["crc"] = zlib.crc32(member.data)
        member.data = values.mutate_bytes(rng, member.data)
    elif choice == 2:
        member.data = rng.choice(
            (b"", b"big", b"little\n", b"0", b"-1", b"11", b"2", b"x" * 300, b"1" * 5000)
        )
    elif choice == 3:
        member.data = member.data + bytes(rng.choice((1, 1000, 100_000)))
    else:
        member.data = values.integer(rng).to_bytes(32, "little", signed=True)[
            : rng.choice((1, 4, 8))
        ]


def _deflate(rng: Random, archive: Archive) -> None:
    for member in archive.members if rng.random() < 0.3 else (rng.choice(archive.members),):
        member.method = 8
        if rng.random() < 0.1:
            member.data = bytes(rng.choice((10_000, 300_000, 2_000_000)))


def _order(rng: Random, archive: Archive) -> None:
    if rng.random() < 0.5:
        rng.shuffle(archive.members)
    else:
        del archive.members[rng.randrange(len(archive.members))]


def _flag(rng: Random, archive: Archive) -> None:
    member = rng.choice(archive.members)
    choice = rng.randrange(5)
    if choice == 0:
        member.descriptor = True
    elif choice == 1:
        member.zip64_local = True
    elif choice == 2:
        member.zip64_central = True
    elif choice == 3:
        member.zip64_local = member.zip64_central = True
    else:
        member.attributes = rng.choice(
            (0x10, 0x20, 1 << 31, 0xFFFF0000 | 0x10, rng.getrandbits(32))
        )


_MUTATIONS = (
    _lie, _lie, _rename, _copy_member, _extra, _end_lie, _end64, _surround, _contents, _contents,
    _deflate, _order, _flag, _flag,
)  # fmt: skip
