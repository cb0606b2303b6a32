"""Faults on demand: chosen by method and path, by count and by position in the stream."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .traffic import target_of

ACTIONS = ("status", "drop", "lose", "stall", "corrupt")
PHASES = ("request", "response")


@dataclass
class Fault:
    """What goes wrong, and when.

    `match` is a regular expression searched in "METHOD /path?query". The first `skip` matching
    requests pass, the next `times` meet the fault (None: all of them).

    - `status`: answers with `status`; the handler does not run, unless `phase` is "response":
      then the work is done and only its answer is replaced.
    - `drop`: cuts the connection after `after` bytes of the request's body or of the response's.
    - `lose`: the work is done, and the connection is cut before any answer.
    - `stall`: sleeps `seconds` once `after` bytes of that body have passed, then goes on.
    - `corrupt`: flips the bits of the response's body byte at offset `after`.
    """

    match: str
    action: str = "status"
    status: int = 503
    message: str = "Injected fault"
    error_code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    phase: str = "request"
    after: int = 0
    seconds: float = 3600.0
    times: int | None = 1
    skip: int = 0
    hits: int = 0  # how often it has struck
    seen: int = 0  # how many requests it has matched

    def __post_init__(self) -> None:
        if self.action not in ACTIONS or self.phase not in PHASES:
            raise ValueError(f"action is one of {ACTIONS}, phase one of {PHASES}")
        re.compile(self.match)

    def strikes(self, request: str) -> bool:
        """Whether this request meets the fault; counts it."""
        if not re.search(self.match, request):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class Faults:
    """The faults that are set, in order; the first that matches a request is the one it meets."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        match: str,
        action: str = "status",
        *,
        retry_after: float | None = None,
        **options: Any,
    ) -> Fault:
        """Sets a fault; see `Fault` for the options. `retry_after` (seconds) adds that header."""
        fault = Fault(match, action, **options)
        if retry_after is not None:
            fault.headers = {**fault.headers, "Retry-After": str(retry_after)}
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._faults]

    def meeting(self, request: str) -> Fault | None:
        return next((fault for fault in list(self._faults) if fault.strikes(request)), None)


class FaultInjector:
    """Middleware that makes the faults happen."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = None
        if scope["type"] == "http" and not scope["path"].startswith("/_admin/"):
            fault = self._faults.meeting(f"{scope['method']} {target_of(scope)}")
        if fault is None:
            await self._app(scope, receive, send)
            return
        if "loopback.record" in scope:
            scope["loopback.record"].fault = f"{fault.action} {fault.match}"
        exchange = _Exchange(self._app, fault, scope, receive, send)
        await getattr(exchange, fault.action)()


class _Exchange:
    """One request that meets a fault; a method for each action."""

    def __init__(
        self, app: ASGIApp, fault: Fault, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._app, self._fault, self._scope = app, fault, scope
        self._receive, self._send = receive, send
        self._transport: asyncio.Transport = scope["loopback.transport"]

    async def status(self) -> None:
        if self._fault.phase == "response":
            await self._app(self._scope, self._receive, _discard)
        else:
            await self._read(None)
        body = json.dumps({"error": self._fault.message}).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Error-Message": self._fault.message,
            **self._fault.headers,
        }
        if self._fault.error_code is not None:
            headers["X-Error-Code"] = self._fault.error_code
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": self._fault.status, "headers": raw}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def drop(self) -> None:
        if self._fault.phase == "request":
            await self._read(self._fault.after)
            self._transport.abort()
            return
        if self._fault.after == 0:
            await self.lose()
            return
        left = self._fault.after

        async def cut_send(message: Message) -> None:
            nonlocal left
            if left <= 0:
                return
            if message["type"] == "http.response.body":
                body = message.get("body", b"")[:left]
                left -= len(body)
                message = {**message, "body": body, "more_body": True}
            await self._send(message)
            if left <= 0:
                self._transport.close()

        await self._app(self._scope, self._receive, cut_send)
        self._transport.close()

    async def lose(self) -> None:
        await self._app(self._scope, self._receive, _discard)
        self._transport.abort()

    async def stall(self) -> None:
        left = self._fault.after
        held = False

        async def hold_request() -> Message:
            nonlocal left, held
            if left <= 0 and not held:
                held = True
                await self._sleep()
            message = await self._receive()
            left -= len(message.get("body", b""))
            return message

        async def hold_response(message: Message) -> None:
            nonlocal left, held
            body = message.get("body", b"")
            if not held and message["type"] == "http.response.body" and len(body) >= left:
                held = True
                if left > 0:
                    await self._send({**message, "body": body[:left], "more_body": True})
                await self._sleep()
                message = {**message, "body": body[left:]}
            left -= len(body)
            await self._send(message)

        if self._fault.phase == "response":
            await self._app(self._scope, self._receive, hold_response)
            return
        if left <= 0:
            held = True
            await self._sleep()
        await self._app(self._scope, hold_request, self._send)

    async def corrupt(self) -> None:
        passed = 0

        async def flipping_send(message: Message) -> None:
            nonlocal passed
            body = message.get("body", b"")
            offset = self._fault.after - passed
            if message["type"] == "http.response.body" and 0 <= offset < len(body):
                flipped = bytes([body[offset] ^ 0xFF])
                message = {**message, "body": body[:offset] + flipped + body[offset + 1 :]}
            passed += len(body)
            await self._send(message)

        await self._app(self._scope, self._receive, flipping_send)

    async def _read(self, limit: int | None) -> None:
        """Takes in the request's body, up to about `limit` bytes."""
        taken, more = 0, True
        while more and (limit is None or taken < limit):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            taken += len(message.get("body", b""))
            more = message.get("more_body", False)

    async def _sleep(self) -> None:
        """Ends early when the client hangs up, so that the server can stop."""
        end = time.monotonic() + self._fault.seconds
        while time.monotonic() < end and not self._transport.is_closing():
            await asyncio.sleep(min(0.05, max(0.0, end - time.monotonic())))


async def _discard(message: Message) -> None:
    return None
