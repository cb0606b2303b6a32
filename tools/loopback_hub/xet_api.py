"""Endpoints of xet: its tokens on the Hub's side, and the CAS that they open."""

from __future__ import annotations

import hashlib
import re
import time

from starlette.responses import JSONResponse, Response

from .cas import Cas
from .context import Call
from .download import SIGNING_KEY, RangeResponse, file_reader
from .errors import HubError


async def xet_token(call: Call) -> Response:
    cas = call.state.cas
    if cas is None:
        raise HubError(404, "This server has no xet storage")
    kind = call.args["kind"]
    if kind == "write":
        call.writable_repo(as_pull_request=call.flag("create_pr"))
    else:
        call.repo()
    expires = int(time.time()) + 3600
    token = _storage_token(kind)
    return JSONResponse(
        {"accessToken": token, "exp": expires, "casUrl": cas.url},
        headers={
            "X-Xet-Cas-Url": cas.url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        },
    )


async def put_xorb(call: Call) -> Response:
    is_new = await _writable(call).add_xorb(call.args["hash"], call.request.stream())
    return JSONResponse({"was_inserted": is_new})


async def put_shard(call: Call) -> Response:
    _writable(call).add_shard(await call.request.body())
    return JSONResponse({"result": 1})


async def get_xorb(call: Call) -> Response:
    path = _cas(call).xorb_path(call.args["hash"])
    if not path.exists():
        raise HubError(404, "No such xorb")
    return RangeResponse(file_reader(path), path.stat().st_size, call.request, {})


async def reconstruction(call: Call) -> Response:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.request.headers.get("range", ""))
    start = int(match[1]) if match else 0
    stop = int(match[2]) + 1 if match and match[2] else None
    return JSONResponse(_cas(call).reconstruct(call.args["hash"], start, stop))


async def telemetry(call: Call) -> Response:
    await call.request.body()
    return JSONResponse({})


def _cas(call: Call) -> Cas:
    if call.state.cas is None:
        raise HubError(404, "This server has no xet storage")
    return call.state.cas


def _writable(call: Call) -> Cas:
    if call.request.headers.get("authorization") != f"Bearer {_storage_token('write')}":
        raise HubError(401, "This needs a xet write token")
    return _cas(call)


def _storage_token(kind: str) -> str:
    return "xet_" + hashlib.sha256(SIGNING_KEY + kind.encode()).hexdigest()[:32]
