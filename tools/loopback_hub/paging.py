"""Listings in pages, the next one named by a Link header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.responses import JSONResponse

from .context import Call


def page(call: Call, items: Sequence[Any]) -> JSONResponse:
    """The page that `cursor` asks for, of at most `limit` entries."""
    limit = min(int(call.query.get("limit", call.state.settings.page_size)), 1000)
    limit = min(limit, call.state.settings.page_size)
    start = int(call.query.get("cursor", 0))
    headers = {}
    if start + limit < len(items):
        query = urlencode({**call.query, "cursor": start + limit})
        raw_path = call.request.scope["raw_path"].decode()
        headers["Link"] = f'<{call.state.url}{raw_path}?{query}>; rel="next"'
    return JSONResponse(list(items[start : start + limit]), headers=headers)
