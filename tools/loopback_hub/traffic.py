"""A record of every request: what was asked, what was answered, how many bytes went each way."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class RequestRecord:
    """Bytes are those of body and header fields, seen from the server; seconds are since the
    epoch (`started`) and for the whole exchange (`seconds`). `status` is None while it runs, and
    stays so when no answer was sent."""

    method: str
    target: str  # path and query as they came
    started: float
    range: str | None = None
    has_token: bool = False
    status: int | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


@dataclass
class RequestLog:
    records: list[RequestRecord] = field(default_factory=list)

    def matching(self, pattern: str) -> Iterator[RequestRecord]:
        """The requests whose "METHOD /path?query" the regular expression finds."""
        return (record for record in list(self.records) if re.search(pattern, str(record)))

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(record) for record in list(self.records)]


def target_of(scope: Scope) -> str:
    query = scope["query_string"].decode()
    path: str = scope["raw_path"].decode()
    return f"{path}?{query}" if query else path


class Traffic:
    """Middleware that fills the log; requests to the admin endpoints are left out."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_admin/"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        byte_range = headers.get(b"range")
        record = RequestRecord(
            scope["method"],
            target_of(scope),
            time.time(),
            range=byte_range.decode() if byte_range else None,
            has_token=b"authorization" in headers,
        )
        record.bytes_received = len(record.target) + _size(scope["headers"])
        self._log.records.append(record)
        scope["loopback.record"] = record

        async def counted_receive() -> Message:
            message = await receive()
            record.bytes_received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.bytes_sent += _size(message["headers"])
            elif record.method != "HEAD":
                record.bytes_sent += len(message.get("body", b""))
            await send(message)

        begin = time.monotonic()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            record.seconds = time.monotonic() - begin


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
