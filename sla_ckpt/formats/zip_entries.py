"""The records of a zip archive, read strictly: entries, headers and end records.

Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.reading import Bytes

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64_MAGIC, _END64_LOCATOR_MAGIC = b"PK\x06\x06", b"PK\x06\x07"

_STORED, _DEFLATED = 0, 8
_FLAG_ENCRYPTED, _FLAG_DESCRIPTOR, _FLAG_STRONG, _FLAG_MASKED = 1, 8, 1 << 6, 1 << 13
#: Compression level, data descriptor, UTF-8 name.
_FLAGS_KNOWN = 0b110 | _FLAG_DESCRIPTOR | 1 << 11
_DIRECTORY_BIT = 0x10
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF

#: miniz looks this far back for the end record, so nothing behind it can be a torch file.
_END_SEARCH = _FULL16 + _END.size
_MAX_DIRECTORY = 64 << 20
_MAX_ENTRIES = 500_000
#: miniz cuts longer names off.
_MAX_NAME = 511


@dataclass(frozen=True)
class Entry:
    """One file of the archive, local header and central directory agreeing.

    Attributes:
        name: As written.
        compressed: Bytes in the archive.
        size: Bytes after decompression.
        crc: CRC-32 of those.
        data_start: Offset of the first byte in the archive.
        deflated: Compressed, else stored.
    """

    name: str
    compressed: int
    size: int
    crc: int
    data_start: int
    deflated: bool


def fault(source: Bytes, message: str, kind: str) -> FormatError:
    return FormatError(
        f"{source.name}: {message}",
        kind=kind,
        hint="take the state of an earlier checkpoint, or run: sla-ckpt regen",
        path=source.name,
    )


@dataclass(frozen=True)
class End:
    """What the end records say: where the central directory is."""

    count: int
    directory_size: int
    directory_start: int
    comment: int
    trailing: int


def find_end(source: Bytes) -> End:
    tail_start = max(0, source.size - _END_SEARCH)
    tail = source.exactly(tail_start, source.size - tail_start)
    found = tail.rfind(_END_MAGIC, 0, max(0, len(tail) - _END.size + len(_END_MAGIC)))
    if found < 0:
        raise FormatError(
            f"{source.name} is a truncated zip archive: {source.size:,} bytes are there, and no "
            "central directory",
            kind="truncated",
            hint="take the state of an earlier checkpoint, or run: sla-ckpt regen",
            path=source.name,
        )
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, found)
    position = tail_start + found
    after = source.size - position - _END.size
    if comment > after:
        raise fault(source, "the archive comment is cut off", "truncated")
    if position >= _END64_LOCATOR.size:
        locator = source.exactly(position - _END64_LOCATOR.size, _END64_LOCATOR.size)
        if locator.startswith(_END64_LOCATOR_MAGIC):
            short = (here, count, size, start)
            here, count, size, start, position = _read_end64(
                source, locator, position - _END64_LOCATOR.size, short
            )
    if disk != 0 or first_disk != 0 or here != count:
        raise fault(source, "the archive spans several disks", "zip")
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise fault(source, f"a directory of {count:,} entries, {size:,} bytes", "bomb")
    if start + size != position:
        raise fault(
            source,
            "the central directory does not end where the end record begins",
            "ambiguous-zip",
        )
    return End(count, size, start, comment, after - comment)


def _read_end64(
    source: Bytes, locator: bytes, locator_start: int, short: tuple[int, int, int, int]
) -> tuple[int, int, int, int, int]:
    """The zip64 end record, which must agree with the short one where that is not full."""
    _, disk, position, disks = _END64_LOCATOR.unpack(locator)
    if disk != 0 or disks != 1 or position + _END64.size != locator_start:
        raise fault(source, "the zip64 end record is not where it must be", "ambiguous-zip")
    record = _END64.unpack(source.exactly(position, _END64.size))
    magic, record_size, _, _, this_disk, first_disk, here, count, size, start = record
    if magic != _END64_MAGIC or record_size != _END64.size - 12 or this_disk or first_disk:
        raise fault(source, "the zip64 end record is malformed", "ambiguous-zip")
    for value, other, full in zip(
        short, (here, count, size, start), (_FULL16, _FULL16, _FULL32, _FULL32), strict=True
    ):
        if value not in (other, full):
            raise fault(source, "the two end records disagree", "ambiguous-zip")
    return here, count, size, start, position


def read_entry(
    source: Bytes, directory: bytes, position: int, directory_start: int
) -> tuple[Entry, int, int]:
    """The entry at ``position``, where its local header starts, and the next position."""
    if position + _CENTRAL.size > len(directory):
        raise fault(source, "the central directory is cut off", "truncated")
    fields = _CENTRAL.unpack_from(directory, position)
    magic, _, _, flags, method, _, _, crc, compressed, size = fields[:10]
    name_length, extra_length, comment_length, disk, _, attributes, start = fields[10:]
    end = position + _CENTRAL.size + name_length + extra_length + comment_length
    if magic != _CENTRAL_MAGIC or end > len(directory):
        raise fault(source, "the central directory is malformed", "zip")
    name_end = position + _CENTRAL.size + name_length
    raw_name = directory[position + _CENTRAL.size : name_end]
    name = _decode_name(source, raw_name)
    extra = directory[name_end : name_end + extra_length]
    size, compressed, start = _zip64_values(source, name, extra, (size, compressed, start))
    if disk != 0:
        raise fault(source, f"entry {name!r} is on another disk", "zip")
    _check_method(source, name, flags, method, compressed, size)
    if (attributes & _DIRECTORY_BIT or name.endswith("/")) and not (
        name.endswith("/") and not size
    ):
        # miniz leaves the buffer of such an entry unfilled: torch would load random memory.
        raise fault(source, f"entry {name!r} is marked as a directory", "ambiguous-zip")
    data_start = _check_local(
        source, name, raw_name, start, directory_start, (flags, method, crc, compressed, size)
    )
    return Entry(name, compressed, size, crc, data_start, method == _DEFLATED), start, end


def _decode_name(source: Bytes, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise fault(source, f"entry name {raw[:80]!r} is not UTF-8", "zip") from None
    parts = name.split("/")
    if len(raw) > _MAX_NAME:
        raise fault(source, f"entry name {name[:40]!r}… has {len(raw):,} bytes", "zip")
    if not name or not name.isprintable() or "\\" in name or name[0] == "/" or ".." in parts:
        raise fault(source, f"entry name {name[:80]!r} is not a plain relative path", "zip")
    return name


def _check_method(
    source: Bytes, name: str, flags: int, method: int, compressed: int, size: int
) -> None:
    if flags & (_FLAG_ENCRYPTED | _FLAG_STRONG | _FLAG_MASKED):
        raise fault(source, f"entry {name!r} is encrypted", "encrypted")
    if flags & ~_FLAGS_KNOWN:
        raise fault(source, f"entry {name!r} has the unknown flags {flags:#x}", "zip")
    if method not in (_STORED, _DEFLATED):
        raise fault(source, f"entry {name!r} uses compression method {method}", "zip")
    if method == _STORED and compressed != size:
        raise fault(source, f"entry {name!r} is stored, yet has two sizes", "ambiguous-zip")


def _zip64_values(
    source: Bytes, name: str, extra: bytes, values: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Replace those of (size, compressed, start) that are full by the zip64 field's."""
    wanted = [index for index, value in enumerate(values) if value == _FULL32]
    fields = _extra_fields(source, name, extra)
    if not wanted:
        return values
    if 1 not in fields or len(fields[1]) < 8 * len(wanted):
        raise fault(source, f"entry {name!r} lacks its zip64 sizes", "zip")
    result = list(values)
    for slot, index in enumerate(wanted):
        (result[index],) = struct.unpack_from("<Q", fields[1], 8 * slot)
    return result[0], result[1], result[2]


def _extra_fields(source: Bytes, name: str, extra: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(extra):
        if position + 4 > len(extra):
            raise fault(source, f"entry {name!r} has a malformed extra field", "zip")
        tag, length = struct.unpack_from("<HH", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if len(body) != length or tag in fields:
            raise fault(source, f"entry {name!r} has a malformed extra field", "zip")
        fields[tag] = body
        position += 4 + length
    return fields


def _check_local(
    source: Bytes,
    name: str,
    raw_name: bytes,
    start: int,
    directory_start: int,
    central: tuple[int, int, int, int, int],
) -> int:
    """Compare the local header with the central one; returns where the data starts."""
    if start + _LOCAL.size > directory_start:
        raise fault(source, f"entry {name!r} lies outside the archive", "zip")
    fields = _LOCAL.unpack(source.exactly(start, _LOCAL.size))
    magic, _, flags, method, _, _, crc, compressed, size = fields[:9]
    name_length, extra_length = int(fields[9]), int(fields[10])
    data_start = start + _LOCAL.size + name_length + extra_length
    if magic != _LOCAL_MAGIC:
        raise fault(source, f"entry {name!r} has no local header", "ambiguous-zip")
    if data_start + central[3] > directory_start:
        raise fault(source, f"entry {name!r} lies outside the archive", "zip")
    variable = source.exactly(start + _LOCAL.size, name_length + extra_length)
    if variable[:name_length] != raw_name:
        raise fault(source, f"entry {name!r} has another name in its local header", "ambiguous-zip")
    if (flags, method) != central[:2]:
        raise fault(source, f"entry {name!r}: the two headers disagree", "ambiguous-zip")
    if not (flags & _FLAG_DESCRIPTOR and crc == compressed == size == 0):
        extra = variable[name_length:]
        size, compressed, _ = _zip64_values(source, name, extra, (size, compressed, 0))
        if (crc, compressed, size) != central[2:]:
            raise fault(source, f"entry {name!r}: the two headers disagree", "ambiguous-zip")
    return data_start


#: A data descriptor: signature, CRC and two sizes of 8 bytes each.
_DESCRIPTOR_MAX = 24


def check_spans(source: Bytes, spans: list[tuple[int, int]], directory_start: int) -> int:
    """Refuse overlapping entries; returns the bytes that belong to none (descriptors apart)."""
    unlisted = 0
    position = 0
    for start, end in [*spans, (directory_start, directory_start)]:
        gap = start - position
        if gap < 0:
            raise fault(source, "two entries overlap", "ambiguous-zip")
        unlisted += gap if gap > _DESCRIPTOR_MAX else 0
        position = end
    return unlisted
