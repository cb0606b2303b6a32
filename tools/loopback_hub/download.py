"""Reading files: HEAD and ranged GET on /resolve, redirected to a signed URL for large ones."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from .api_repos import require_gate_passed
from .context import Call, State
from .errors import HubError
from .objects import CHUNK
from .repos import Entry

SIGNING_KEY = os.urandom(16)
Reader = Callable[[int, int], AsyncIterator[bytes]]


class RangeResponse(Response):
    """What a Range header asks for, streamed in constant memory.

    `read(start, stop)` gives the bytes from `start` to before `stop`.
    """

    def __init__(
        self, read: Reader, size: int, request: Request, headers: Mapping[str, str]
    ) -> None:
        start, stop, status = _range(request.headers.get("range"), size)
        all_headers = {"Accept-Ranges": "bytes", **headers, "Content-Length": str(stop - start)}
        if status == 206:
            all_headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        super().__init__(None, status, all_headers, media_type="application/octet-stream")
        self._read, self._start, self._stop = read, start, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            transport = scope.get("loopback.transport")
            async for chunk in self._read(self._start, self._stop):
                if transport is not None and transport.is_closing():
                    break
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def file_reader(path: Path) -> Reader:
    async def read(start: int, stop: int) -> AsyncIterator[bytes]:
        with path.open("rb") as source:
            source.seek(start)
            while start < stop and (chunk := source.read(min(CHUNK, stop - start))):
                start += len(chunk)
                yield chunk

    return read


async def resolve(call: Call) -> Response:
    repo = call.repo()
    require_gate_passed(call, repo)
    commit = repo.at(call.args["rev"])
    path = call.args["path"]
    headers = {"X-Repo-Commit": commit.id}
    entry = commit.files.get(path)
    if entry is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    if entry.sha256 is None:
        headers["ETag"] = f'"{entry.oid}"'
        read = file_reader(call.state.objects.blob_path(entry.oid))
        return RangeResponse(read, entry.size, call.request, headers)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
    xet_hash = call.state.xet_hash(entry.sha256)
    if xet_hash is not None:
        route = f"{call.state.url}/api/models/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
    if call.state.settings.redirect:
        name = quote(path.rsplit("/", 1)[-1])
        # another name for the same address: to a client it is another host, which gets no token
        storage = call.state.url.replace("127.0.0.1", "localhost")
        url = f"{storage}/_cdn/{entry.sha256}/{name}?sig={_signature(entry.sha256)}"
        return RedirectResponse(url, 302, headers)
    headers["ETag"] = f'"{entry.sha256}"'
    return await _large_file(call.state, call.request, entry.sha256, headers)


async def cdn(call: Call) -> Response:
    """The signature is the permission; a client that sends its token along gives it away."""
    if call.request.headers.get("authorization"):
        raise HubError(400, "A token was sent to the storage URL")
    sha256 = call.args["oid"]
    if not hmac.compare_digest(call.query.get("sig", ""), _signature(sha256)):
        raise HubError(403, "Bad signature")
    return await _large_file(call.state, call.request, sha256, {"ETag": f'"{sha256}"'})


async def _large_file(
    state: State, request: Request, sha256: str, headers: Mapping[str, str]
) -> Response:
    size = state.stored_size(sha256)
    if size is None:
        raise HubError(404, "Object not found", code="EntryNotFound")
    path = state.objects.lfs_path(sha256)
    read = file_reader(path)
    if state.cas is not None and state.objects.lfs_size(sha256) is None:
        if request.method == "GET" and "range" not in request.headers:
            await state.cas.materialise(sha256, path)
        else:
            read = partial(state.cas.stream, sha256)
    return RangeResponse(read, size, request, headers)


def file_bytes(state: State, entry: Entry) -> bytes:
    """The whole of a stored file; for tests."""
    if entry.sha256 is None:
        return state.objects.blob(entry.oid)
    return state.objects.lfs_path(entry.sha256).read_bytes()


def _range(header: str | None, size: int) -> tuple[int, int, int]:
    """Start, end and status of a request for a file of `size` bytes."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return 0, size, 200
    if not match[1]:
        return max(0, size - int(match[2])), size, 206
    start = int(match[1])
    if start >= size:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    stop = min(int(match[2]) + 1, size) if match[2] else size
    return start, stop, 206


def _signature(sha256: str) -> str:
    return hmac.new(SIGNING_KEY, sha256.encode(), hashlib.sha256).hexdigest()
