"""Content-addressed storage for xet: xorbs (packed chunks), and which of them make up a file.

Formats, as far as they are needed here:

- A shard is a 48-byte header, then one record per file: a 48-byte file header (hash, flags u32,
  number of terms u32), 48 bytes per term (xorb hash, flags u32, unpacked size u32, first and
  past-the-last chunk u32), as many 48-byte verification entries when bit 31 of the flags is set,
  and a 48-byte entry with the file's sha256 when bit 30 is. A hash of all ones ends the list.
- A xorb is a row of chunks: version u8, packed size u24, scheme u8, unpacked size u24, payload.
- Hashes are printed as four little-endian 64-bit words.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import HubError
from .objects import new_file

RECORD = 48
END = b"\xff" * 32
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30
CHUNK_HEADER = 8
_INTERNAL = {"token": "server", "token_expiry_unix_secs": 2**33}


@dataclass(frozen=True)
class Term:
    """Chunks `first` to before `stop` of one xorb, `size` bytes when unpacked."""

    xorb: str
    size: int
    first: int
    stop: int


@dataclass(frozen=True)
class ShardFile:
    hash: str
    sha256: str | None
    terms: tuple[Term, ...]


def hash_text(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def read_shard(data: bytes) -> Iterator[ShardFile]:
    """The files that a shard describes. Raises HubError when it is cut short."""
    offset = RECORD
    while True:
        record = data[offset : offset + RECORD]
        if len(record) < RECORD:
            raise HubError(400, "Shard is truncated")
        if record[:32] == END:
            return
        flags, count = struct.unpack_from("<II", record, 32)
        offset += RECORD
        terms = []
        for index in range(count):
            at = offset + index * RECORD
            _, size, first, stop = struct.unpack_from("<IIII", data, at + 32)
            terms.append(Term(hash_text(data[at : at + 32]), size, first, stop))
        offset += RECORD * count * (2 if flags & HAS_VERIFICATION else 1)
        sha256 = None
        if flags & HAS_SHA256:
            sha256 = hash_text(data[offset : offset + 32])
            offset += RECORD
        yield ShardFile(hash_text(record[:32]), sha256, tuple(terms))


class Cas:
    """Xorbs and file records under `root`."""

    def __init__(self, root: Path) -> None:
        self.url = ""
        self._xorbs = root / "xorbs"
        self._files = root / "files"
        self._by_hash: dict[str, ShardFile] = {}
        self._by_sha256: dict[str, ShardFile] = {}
        self._lock = asyncio.Lock()
        self._xet: Any = None
        for path in self._files.glob("*.json"):
            raw = json.loads(path.read_bytes())
            terms = tuple(Term(**term) for term in raw["terms"])
            self._remember(ShardFile(raw["hash"], raw["sha256"], terms))

    def xet_hash(self, sha256: str) -> str | None:
        file = self._by_sha256.get(sha256)
        return None if file is None else file.hash

    def size(self, sha256: str) -> int | None:
        file = self._by_sha256.get(sha256)
        return None if file is None else _size(file)

    def xorb_path(self, name: str) -> Path:
        return self._xorbs / name[:2] / name

    async def add_xorb(self, name: str, chunks: AsyncIterator[bytes]) -> bool:
        """Stores a xorb; False when it was here already."""
        path = self.xorb_path(name)
        is_new = not path.exists()
        with new_file(path) as out:
            async for chunk in chunks:
                out.write(chunk)
        return is_new

    def add_shard(self, data: bytes) -> None:
        """Records the files of a shard; all their xorbs must be here."""
        for file in read_shard(data):
            missing = [t.xorb for t in file.terms if not self.xorb_path(t.xorb).exists()]
            if missing:
                raise HubError(400, f"Shard names a xorb that was not uploaded: {missing[0]}")
            with new_file(self._files / f"{file.hash}.json") as out:
                out.write(json.dumps(asdict(file)).encode())
            self._remember(file)

    def reconstruct(self, name: str, start: int, stop: int | None) -> dict[str, Any]:
        """Which parts of which xorbs give bytes `start` to before `stop` of a file."""
        file = self._by_hash.get(name)
        if file is None:
            raise HubError(404, "File not found")
        total = _size(file)
        stop = total if stop is None else min(stop, total)
        if start >= total:
            raise HubError(416, "Range not satisfiable")
        terms, fetch, position, skip = [], dict[str, list[dict[str, Any]]](), 0, None
        for term in file.terms:
            if position + term.size > start and position < stop:
                if skip is None:
                    skip = start - position
                chunks = {"start": term.first, "end": term.stop}
                bounds = self._chunk_bounds(term.xorb)
                place = {"start": bounds[term.first], "end": bounds[term.stop] - 1}
                terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
                parts = fetch.setdefault(term.xorb, [])
                url = f"{self.url}/v1/xorbs/default/{term.xorb}"
                part = {"range": chunks, "url": url, "url_range": place}
                if part not in parts:
                    parts.append(part)
            position += term.size
        return {"offset_into_first_range": skip or 0, "terms": terms, "fetch_info": fetch}

    async def stream(self, sha256: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes `start` to before `stop` of a file that came over xet.

        Put together by hf_xet, which reads from this very server.
        """
        file = self._by_sha256[sha256]
        group = await asyncio.to_thread(
            self._session().new_download_stream_group, endpoint=self.url, **_INTERNAL
        )
        opened = await asyncio.to_thread(group.download_stream, _info(file), start, stop)
        while (chunk := await asyncio.to_thread(next, opened, None)) is not None:
            yield bytes(chunk)

    async def materialise(self, sha256: str, target: Path) -> None:
        """Puts a whole file that came over xet at `target`.

        Raises HubError 500 when it does not have the sha256 that the client claimed.
        """
        async with self._lock:
            if target.exists():
                return
            digest = hashlib.sha256()
            file = self._by_sha256[sha256]
            with new_file(target) as out:
                async for chunk in self.stream(sha256, 0, _size(file)):
                    out.write(chunk)
                    digest.update(chunk)
                if digest.hexdigest() != sha256:
                    raise HubError(500, f"The content stored for {sha256} has another sha256")

    def _session(self) -> Any:
        if self._xet is None:
            import hf_xet

            self._xet = hf_xet.XetSession()
        return self._xet

    def _remember(self, file: ShardFile) -> None:
        self._by_hash[file.hash] = file
        if file.sha256 is not None:
            self._by_sha256[file.sha256] = file

    def _chunk_bounds(self, name: str) -> list[int]:
        """Byte offset of each chunk of a xorb, and of the end of the last."""
        bounds, offset = [0], 0
        with self.xorb_path(name).open("rb") as xorb:
            while len(header := xorb.read(CHUNK_HEADER)) == CHUNK_HEADER:
                if header[0] != 0 or header[:7] == b"XETBLOB":
                    break
                offset += CHUNK_HEADER + int.from_bytes(header[1:4], "little")
                bounds.append(offset)
                xorb.seek(offset)
        return bounds


def _size(file: ShardFile) -> int:
    return sum(term.size for term in file.terms)


def _info(file: ShardFile) -> Any:
    import hf_xet

    return hf_xet.XetFileInfo(file.hash, _size(file))
