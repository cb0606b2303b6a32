"""Archives built by hand, so that each field can be made to lie."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from sla_ckpt.formats.torch_writer import encode_torch_zip

STATES = Path(__file__).parents[1] / "data" / "states"
GOOD_STATE = STATES / "one_pair_128_bf16" / "sla_attention.pt"


def with_pickle(pickle: bytes, *storages: bytes, prefix: str = "sla_attention") -> bytes:
    """A well-formed torch archive around any pickle."""
    return encode_torch_zip(pickle, storages, prefix=prefix)


@dataclass(frozen=True)
class Member:
    """One entry; what is None is computed honestly."""

    name: str
    data: bytes
    local_name: str | None = None
    flags: int = 0
    local_flags: int | None = None
    method: int = 0
    crc: int | None = None
    local_crc: int | None = None
    size: int | None = None
    local_size: int | None = None
    central_start: int | None = None
    attributes: int = 0
    raw: bytes | None = None
    disk: int = 0
    extra: bytes = b""
    listed: bool = True


@dataclass(frozen=True)
class End:
    """The end record."""

    count: int | None = None
    size: int | None = None
    start: int | None = None
    comment: bytes = b""
    disk: int = 0
    trailing: bytes = b""


def build_zip(members: list[Member], end: End = End()) -> bytes:
    body, directory, listed = bytearray(), bytearray(), 0
    for member in members:
        name = member.name.encode("utf-8", "surrogateescape")
        local_name = (member.local_name or member.name).encode("utf-8", "surrogateescape")
        start = len(body)
        raw = member.data if member.raw is None else member.raw
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.size is None else member.size
        body += struct.pack(
            "<4sHHHHHIIIHH", b"PK\x03\x04", 20,
            member.flags if member.local_flags is None else member.local_flags, member.method, 0, 0,
            crc if member.local_crc is None else member.local_crc, len(raw),
            size if member.local_size is None else member.local_size, len(local_name), 0,
        )  # fmt: skip
        body += local_name + raw
        if member.listed:
            listed += 1
            directory += struct.pack(
                "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02",
                20, 20, member.flags, member.method, 0, 0, crc, len(raw), size,
                len(name), len(member.extra), 0, member.disk, 0, member.attributes,
                start if member.central_start is None else member.central_start,
            )  # fmt: skip
            directory += name + member.extra
    count = listed if end.count is None else end.count
    return bytes(
        body
        + directory
        + struct.pack(
            "<4sHHHHIIH",
            b"PK\x05\x06",
            end.disk,
            end.disk,
            count,
            count,
            len(directory) if end.size is None else end.size,
            len(body) if end.start is None else end.start,
            len(end.comment),
        )
        + end.comment
        + end.trailing
    )


def good_members() -> list[Member]:
    """The entries of a real state."""
    with zipfile.ZipFile(GOOD_STATE) as archive:
        return [Member(info.filename, archive.read(info)) for info in archive.infolist()]


@dataclass(frozen=True)
class Edit:
    """Change fields of the entry whose name ends with ``suffix``."""

    suffix: str
    changes: dict[str, object] = field(default_factory=dict)


def edited(*edits: Edit) -> list[Member]:
    members = good_members()
    for edit in edits:
        members = [
            replace(member, **edit.changes) if member.name.endswith(edit.suffix) else member  # type: ignore[arg-type]
            for member in members
        ]
    return members


def pickle_of(path: Path) -> tuple[bytes, list[bytes]]:
    """``data.pkl`` and the storages of a real state."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        names = archive.namelist()
        prefix = names[0].split("/")[0]
        storages = [name for name in names if name.startswith(f"{prefix}/data/")]
        return archive.read(f"{prefix}/data.pkl"), [archive.read(name) for name in storages]
