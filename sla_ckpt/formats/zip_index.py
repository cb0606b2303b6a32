"""A strict zip reader: one meaning per file, or a refusal.

Scanners have been fooled by archives that two readers understand differently (a local header that
disagrees with the central directory, an entry listed twice, …). torch's reader (miniz) trusts the
central directory and never checks a CRC; this one accepts what torch accepts only where every
copy of the information agrees, and checks the CRC of each entry it reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.reading import Bytes
from sla_ckpt.formats.zip_entries import Entry, check_spans, fault, find_end, read_entry

_CHUNK = 1 << 18


@dataclass(frozen=True)
class ZipIndex:
    """The entries of an archive in the order of its central directory.

    Attributes:
        source: The archive's bytes.
        entries: By name.
        comment: Bytes of the archive comment.
        trailing: Bytes after the end record.
        unlisted: Bytes between entries that no entry owns.
    """

    source: Bytes
    entries: Mapping[str, Entry]
    comment: int
    trailing: int
    unlisted: int

    def read(self, name: str, *, limit: int) -> bytes:
        """One entry's bytes, its CRC checked.

        Args:
            name: Its name; must exist.
            limit: Refuse to produce more bytes than this.

        Raises:
            FormatError: Too large, damaged, or the CRC differs.
        """
        entry = self.entries[name]
        if entry.size > limit:
            raise self._fault(
                f"entry {name!r} holds {entry.size:,} bytes, over the limit of {limit:,}", "bomb"
            )
        data = self._inflate(entry) if entry.deflated else self._stored(entry)
        if zlib.crc32(data) != entry.crc:
            raise self._fault(
                f"entry {name!r} is damaged: its CRC is {zlib.crc32(data):08x}, "
                f"{entry.crc:08x} was written",
                "crc",
            )
        return data

    def _stored(self, entry: Entry) -> bytes:
        return self.source.exactly(entry.data_start, entry.size)

    def _inflate(self, entry: Entry) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        parts: list[bytes] = []
        produced = 0
        position, end = entry.data_start, entry.data_start + entry.compressed
        try:
            while position < end and not inflater.eof:
                chunk = self.source.exactly(position, min(_CHUNK, end - position))
                position += len(chunk)
                while chunk and not inflater.eof:
                    # One byte past the declared size is enough to know that it lies.
                    part = inflater.decompress(chunk, entry.size + 1 - produced)
                    produced += len(part)
                    parts.append(part)
                    if produced > entry.size:
                        raise self._fault(
                            f"entry {entry.name!r} inflates to more than the {entry.size:,} bytes "
                            "it declares",
                            "bomb",
                        )
                    chunk = inflater.unconsumed_tail
        except zlib.error as error:
            raise self._fault(
                f"entry {entry.name!r} does not inflate: {error}", "damaged"
            ) from error
        if produced != entry.size or not inflater.eof:
            raise self._fault(
                f"entry {entry.name!r} inflates to {produced:,} of {entry.size:,} bytes", "damaged"
            )
        return b"".join(parts)

    def _fault(self, message: str, kind: str) -> FormatError:
        return fault(self.source, message, kind)


def index_zip(source: Bytes) -> ZipIndex:
    """Read and check the directory of an archive; no entry's data is read.

    Raises:
        FormatError: Kind ``"truncated"`` when there is no end record, ``"encrypted"``,
            ``"ambiguous-zip"`` when two readings are possible, ``"zip"`` for what zip forbids.
    """
    end = find_end(source)
    directory = source.exactly(end.directory_start, end.directory_size)
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    spans: list[tuple[int, int]] = []
    position = 0
    for _ in range(end.count):
        entry, start, position = read_entry(source, directory, position, end.directory_start)
        if entry.name.casefold() in seen:
            raise fault(source, f"entry {entry.name!r} is there twice", "ambiguous-zip")
        seen.add(entry.name.casefold())
        entries[entry.name] = entry
        spans.append((start, entry.data_start + entry.compressed))
    if position != len(directory):
        raise fault(source, "the central directory is longer than its entries", "ambiguous-zip")
    unlisted = check_spans(source, sorted(spans), end.directory_start)
    return ZipIndex(source, MappingProxyType(entries), end.comment, end.trailing, unlisted)
