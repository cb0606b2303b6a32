"""Write a ``torch.save`` archive without torch, byte for byte as torch (Linux builds) does.

The same bytes matter: a repaired file that equals the trainer's own has the same hash, so nothing
is uploaded or reported as changed. Layout as in :mod:`.torch_zip`; each entry is stored, its data
aligned to 64 bytes by an extra field ``FB`` filled with ``Z``, its sizes and CRC in a data
descriptor, followed by zip64 end records.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

_ALIGNMENT = 64
_FLAGS = 0x0808  # data descriptor, UTF-8
_MASK = (1 << 64) - 1
#: Sizes the hash table of libstdc++ grows through.
_BUCKETS = (1, 13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043)
_ZIP32_LIMIT = 0xFFFFFFFF


def encode_torch_zip(pickle: bytes, storages: Sequence[bytes], *, prefix: str) -> bytes:
    """Assemble the archive.

    Args:
        pickle: ``data.pkl``.
        storages: Bytes of ``data/0``, ``data/1``, … in order.
        prefix: Folder in the archive: the stem of the file's name, as torch takes it.

    Raises:
        ValueError: Over 4 GiB, which no state comes near.
    """
    records: list[tuple[str, bytes]] = [
        ("data.pkl", pickle),
        (".format_version", b"1"),
        (".storage_alignment", str(_ALIGNMENT).encode()),
        ("byteorder", b"little"),
        *((f"data/{key}", data) for key, data in enumerate(storages)),
        ("version", b"3\n"),
    ]
    if sum(len(data) for _, data in records) > _ZIP32_LIMIT - (1 << 20):
        raise ValueError("a state over 4 GiB cannot be written")
    records.append((".data/serialization_id", _serialization_id(records)))
    body = bytearray()
    directory = bytearray()
    for record_name, data in records:
        name = f"{prefix}/{record_name}".encode()
        start, crc = len(body), zlib.crc32(data)
        padding = _padding(start, len(name))
        body += struct.pack(
            "<4sHHHHHIIIHH", b"PK\x03\x04", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(padding)
        )
        body += name + padding + data
        body += struct.pack("<4sIII", b"PK\x07\x08", crc, len(data), len(data)) if data else b""
        directory += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            b"PK\x01\x02",
            0,
            0,
            _FLAGS,
            0,
            0,
            0,
            crc,
            len(data),
            len(data),
            len(name),
            0,
            0,
            0,
            0,
            0,
            start,
        )
        directory += name
    return bytes(body + directory + _end_records(len(records), len(directory), len(body)))


def _padding(start: int, name_length: int) -> bytes:
    """The extra field that moves the data to the next multiple of 64."""
    data_start = start + 30 + name_length + 4
    length = -data_start % _ALIGNMENT
    return struct.pack("<2sH", b"FB", length) + b"Z" * length


def _end_records(count: int, size: int, start: int) -> bytes:
    return (
        struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, size, start)
        + struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
    )


def _serialization_id(records: Sequence[tuple[str, bytes]]) -> bytes:
    """Twenty digits from the record names, twenty from their CRCs, as torch combines them."""
    names = 0
    for name in _unordered_set(name for name, _ in records):
        names = _combine(names, _libstdcxx_hash(name.encode()))
    crcs = 0
    for _, data in records:
        crcs = _combine(crcs, zlib.crc32(data))
    return f"{names:020}{crcs:020}".encode()


def _combine(seed: int, value: int) -> int:
    return seed ^ ((value + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _MASK)


def _libstdcxx_hash(data: bytes, seed: int = 0xC70F6907) -> int:
    """``std::hash<std::string>`` of libstdc++ on 64 bits: MurmurHash64A."""
    multiplier = (0xC6A4A793 << 32) + 0x5BD1E995
    value = seed ^ (len(data) * multiplier & _MASK)
    whole = len(data) & ~7
    for position in range(0, whole, 8):
        word = int.from_bytes(data[position : position + 8], "little") * multiplier & _MASK
        word = (word ^ (word >> 47)) * multiplier & _MASK
        value = (value ^ word) * multiplier & _MASK
    if len(data) & 7:
        value = (value ^ int.from_bytes(data[whole:], "little")) * multiplier & _MASK
    value = (value ^ (value >> 47)) * multiplier & _MASK
    return value ^ (value >> 47)


def _unordered_set(names: Iterable[str]) -> list[str]:
    """The order in which libstdc++'s ``unordered_set<string>`` lists what was inserted."""
    order: list[tuple[int, str]] = []
    size = _BUCKETS[0]
    for count, name in enumerate(names, start=1):
        if count > size or count == 1:
            size = next(bucket for bucket in _BUCKETS[1:] if bucket >= count)
            moved, order = order, []
            for item in moved:
                _insert(order, item, size)
        _insert(order, (_libstdcxx_hash(name.encode()), name), size)
    return [name for _, name in order]


def _insert(order: list[tuple[int, str]], item: tuple[int, str], size: int) -> None:
    """At the front of its bucket's run, or of the whole list when the bucket is empty."""
    same = (place for place, (value, _) in enumerate(order) if value % size == item[0] % size)
    order.insert(next(same, 0), item)
