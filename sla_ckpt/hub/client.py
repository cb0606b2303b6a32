"""Access to the Hub through huggingface_hub, with timeouts and the retries it lacks.

huggingface_hub retries uploads, listings and downloads, but not the commit request, whoami,
create_repo and repo_info, and gives its requests no timeout: a server that never answers would
hang the command for ever.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sla_ckpt._version import __version__
from sla_ckpt.errors import UsageError
from sla_ckpt.hub.failures import hub_errors, is_transient

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
DEFAULT_TIMEOUT = 120.0
ATTEMPTS = 4
FIRST_DELAY = 1.0
MAX_DELAY = 30.0


@dataclass(frozen=True)
class HubClient:
    """One account's access.

    Attributes:
        api: huggingface_hub's client.
        token: The token in use, None for anonymous access. Never shown.
    """

    api: HfApi
    token: str | None = field(default=None, repr=False)

    @property
    def has_token(self) -> bool:
        return self.token is not None

    @property
    def endpoint(self) -> str:
        return str(self.api.endpoint)

    @contextmanager
    def errors(self, action: str, repo_id: str | None = None) -> Iterator[None]:
        """Translate what the client raises; see :func:`sla_ckpt.hub.failures.hub_errors`."""
        with hub_errors(action, repo_id, has_token=self.has_token):
            yield

    def post(self, path: str, body: Any, *, accept: tuple[int, ...] = ()) -> Any:
        """POST JSON to the Hub and read JSON, retried: only for questions that change nothing.

        Args:
            path: From the endpoint on, with a leading slash.
            body: The question.
            accept: Error statuses whose answer is read like any other.
        """
        from huggingface_hub import get_session
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        headers = build_hf_headers(token=self.token or False, library_name="sla-ckpt")

        def ask() -> Any:
            answer = get_session().post(self.endpoint + path, json=body, headers=headers)
            if answer.status_code not in accept:
                hf_raise_for_status(answer)
            return answer.json()

        return self.retry(ask)

    def retry(self, call: Callable[[], T]) -> T:
        """Run a request that is safe to repeat, again while the failure is transient.

        Waits 1, 2, 4 seconds, or what Retry-After asks for up to half a minute.
        """
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except Exception as error:
                if attempt + 1 == ATTEMPTS or not is_transient(error):
                    raise
                time.sleep(retry_delay(error, attempt))
        raise AssertionError("unreachable")


def retry_delay(error: BaseException, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the Hub asks for, else 1, 2, 4, …"""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        asked = float(headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.0
    base = float(os.environ.get("SLA_CKPT_RETRY_DELAY", FIRST_DELAY))
    return min(MAX_DELAY, max(asked, base * 2.0**attempt))


def connect(token: str | None = None) -> HubClient:
    """A client for the Hub (or HF_ENDPOINT), with the user's token if there is one.

    Args:
        token: Explicit token; by default what huggingface_hub finds (HF_TOKEN, saved login).

    Raises:
        UsageError: The explicit token is empty, or a timeout setting is no number.
    """
    from huggingface_hub import HfApi, get_token

    if token is not None and not token.strip():
        raise UsageError("--token is empty", hint="leave it out to use HF_TOKEN or the saved login")
    found = (token if token is not None else get_token()) or ""
    clean = found.strip() or None
    _set_timeout()
    _quieten()
    api = HfApi(token=clean or False, library_name="sla-ckpt", library_version=__version__)
    return HubClient(api, clean)


def _set_timeout() -> None:
    """Give every request of this process a timeout, through the public client factory."""
    from huggingface_hub import get_session, set_client_factory

    text = os.environ.get("SLA_CKPT_HTTP_TIMEOUT", str(DEFAULT_TIMEOUT))
    try:
        timeout = float(text)
    except ValueError as error:
        raise UsageError(f"SLA_CKPT_HTTP_TIMEOUT is {text!r}, not a number of seconds") from error
    session = get_session()
    kind, hooks = type(session), session.event_hooks
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=timeout))


def _quieten() -> None:
    """No remarks of the client's own, and its progress bars on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        logging,
    )

    logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty() and not are_progress_bars_disabled():
        with warnings.catch_warnings():
            # It warns where HF_HUB_DISABLE_PROGRESS_BARS=0 forces them on.
            warnings.simplefilter("ignore")
            disable_progress_bars()
