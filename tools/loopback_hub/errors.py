"""The one error that handlers raise; the app turns it into the Hub's wire form."""

from __future__ import annotations

from collections.abc import Mapping


class HubError(Exception):
    """An answer other than success.

    `code` goes out as `X-Error-Code`, from which the client picks its exception class
    (`RepoNotFound`, `RevisionNotFound`, `EntryNotFound`, `GatedRepo`).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})
