"""Access to the Hub through huggingface_hub, with timeouts and the retries it lacks.

huggingface_hub retries uploads, listings and downloads, but not the commit request, whoami,
create_repo and repo_info, and gives its requests no timeout: a server that never answers would
hang the command for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sla_ckpt._version import __version__
from sla_ckpt.errors import UsageError
from sla_ckpt.hub.failures import hub_errors, is_transient, retry_after

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
DEFAULT_TIMEOUT = 120.0
ATTEMPTS = 4
FIRST_DELAY = 1.0
MAX_DELAY = 30.0
_SESSION_LOCK = threading.Lock()


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

        headers = self._headers()

        def ask() -> Any:
            answer = get_session().post(self.endpoint + path, json=body, headers=headers)
            if answer.status_code not in accept:
                _raise_for_status(answer)
            return answer.json()

        return self.retry(ask)

    @contextmanager
    def stream(
        self, repo_id: str, path: str, commit: str, *, start: int = 0, end: int | None = None
    ) -> Iterator[Any]:
        """GET a file's bytes [start, end) as they come, to the end of the file when None.

        Yields the response, its status checked: 206 for a part, and 200 for the whole file, also
        from a server that ignores ranges. Not retried, and errors are the client's own.
        """
        from huggingface_hub import get_session, hf_hub_url

        url = hf_hub_url(repo_id, path, revision=commit, endpoint=self.endpoint)
        headers = self._headers() | {"Accept-Encoding": "identity"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with get_session().stream("GET", url, headers=headers) as response:
            if response.is_error:
                response.read()
            _raise_for_status(response)
            yield response

    def _headers(self) -> dict[str, str]:
        # Documented, but not re-exported explicitly, which mypy insists on.
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers: dict[str, str] = build_hf_headers(
            token=self.token or False, library_name="sla-ckpt"
        )
        return headers

    def retry(self, call: Callable[[], T], *, patience: float = float("inf")) -> T:
        """Run a request that is safe to repeat, again while the failure is transient.

        Waits 1, 2, 4 seconds, or what Retry-After asks for; gives up at once when that is over
        half a minute, or when an attempt took longer than ``patience`` (seconds): what has retries
        of its own was repeated often enough then.
        """
        for attempt in range(ATTEMPTS):
            started = time.monotonic()
            try:
                return call()
            except Exception as error:
                if time.monotonic() - started > patience or not wait_for_retry(error, attempt):
                    raise
        raise AssertionError("unreachable")


def _raise_for_status(response: Any) -> None:
    """Raise the client's exception for an error status; its kind comes from X-Error-Code."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    hf_raise_for_status(response)


def wait_for_retry(error: BaseException, attempt: int) -> bool:
    """Wait before the next attempt; False, without waiting, when there should be none."""
    asked = retry_after(error) or 0.0
    if attempt + 1 >= ATTEMPTS or not is_transient(error) or asked > MAX_DELAY:
        return False
    base = float(os.environ.get("SLA_CKPT_RETRY_DELAY", FIRST_DELAY))
    time.sleep(min(MAX_DELAY, max(asked, base * 2.0**attempt)))
    return True


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
        if not 0 < timeout < float("inf"):
            raise ValueError(text)
    except ValueError as error:
        raise UsageError(
            f"SLA_CKPT_HTTP_TIMEOUT is {text!r}, not a number of seconds",
            hint=f"unset it for the default of {DEFAULT_TIMEOUT:g} seconds",
        ) from error
    with _SESSION_LOCK:
        session: Any = get_session()
        if getattr(session, "sla_ckpt_timeout", None) == timeout:
            return  # a new factory would close the session under requests of other threads
        hooks, kind = session.event_hooks, getattr(session, "sla_ckpt_base", type(session))

        def build_request(self: Any, *args: Any, **options: Any) -> Any:
            # Some of the client's calls pass timeout=None on, which means: wait for ever.
            if options.get("timeout", timeout) is None:
                options["timeout"] = timeout
            return kind.build_request(self, *args, **options)

        extra = {
            "build_request": build_request,
            "sla_ckpt_timeout": timeout,
            "sla_ckpt_base": kind,
        }
        timed = type("TimedClient", (kind,), extra)
        set_client_factory(lambda: timed(event_hooks=hooks, follow_redirects=True, timeout=timeout))


def _quieten() -> None:
    """No remarks of the client's own, and its progress bars on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        logging,
    )

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty() and not are_progress_bars_disabled():
        with warnings.catch_warnings():
            # It warns where HF_HUB_DISABLE_PROGRESS_BARS=0 forces them on.
            warnings.simplefilter("ignore")
            disable_progress_bars()
