"""Faults and the request log over HTTP, for a server in another process.

- `GET|POST|DELETE /_admin/faults`: POST takes the arguments of `Faults.add` as JSON
- `GET|DELETE /_admin/requests`: the log as JSON; DELETE empties it
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from starlette.responses import JSONResponse, Response

from .context import Call
from .errors import HubError
from .faults import Faults
from .traffic import RequestLog

Handler = Callable[[Call], Coroutine[None, None, Response]]


def admin_handlers(faults: Faults, log: RequestLog) -> tuple[Handler, Handler]:
    """The handlers of /_admin/faults and of /_admin/requests."""

    async def on_faults(call: Call) -> Response:
        if call.request.method == "POST":
            try:
                faults.add(**await call.json())
            except (TypeError, ValueError) as error:
                raise HubError(400, f"Not a fault: {error}") from error
        elif call.request.method == "DELETE":
            faults.clear()
        return JSONResponse(faults.as_json())

    async def on_requests(call: Call) -> Response:
        if call.request.method == "DELETE":
            log.records.clear()
        return JSONResponse(log.as_json())

    return on_faults, on_requests
