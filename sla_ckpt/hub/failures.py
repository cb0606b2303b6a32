"""Every way the Hub says no, as one line with the next step.

Which exceptions huggingface_hub raises was found by running it against a loopback server; it maps
most statuses by the header ``X-Error-Code``, and lets some through bare (docs/hub.md).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sla_ckpt.errors import HubError, SlaCkptError

_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}|Bearer\s+\S+", re.IGNORECASE)
LOGIN = "run: hf auth login, or set HF_TOKEN"


@contextmanager
def hub_errors(action: str, repo_id: str | None = None, *, has_token: bool) -> Iterator[None]:
    """Turn whatever the client raises into a :class:`HubError`.

    Args:
        action: What was being done, for the message: ``"read"``, ``"create"``, ``"commit to"``.
        repo_id: The repository concerned.
        has_token: Whether a token was sent; decides what a 401 or 404 probably means.
    """
    try:
        yield
    except SlaCkptError:
        raise
    except Exception as error:
        translated = translate(error, action, repo_id, has_token=has_token)
        if translated is None:
            raise
        raise translated from None


def translate(
    error: BaseException, action: str, repo_id: str | None, *, has_token: bool
) -> HubError | None:
    """One error of the client as a HubError; None when it is not the Hub's or the network's."""
    where = repo_id or "the Hub"
    chain = list(_chain(error))
    names = {type(item).__name__ for item in chain}
    status = next((code for item in chain if (code := _status(item)) is not None), None)
    text = redact(str(error))
    full = [item for item in chain if getattr(item, "errno", None) in (errno.ENOSPC, errno.EDQUOT)]
    if full:
        return HubError(
            f"no space left on the disk while trying to {action} {where}",
            hint="free some space and run the command again; what is complete is kept",
        )
    if any(getattr(item, "errno", None) == errno.ENAMETOOLONG for item in chain):
        names_of = (getattr(item, "filename", None) for item in chain)
        name = next((name for name in names_of if name), "a file")
        return HubError(
            f"the path is too long for this file system: {name}", hint="choose a shorter folder"
        )
    if "OfflineModeIsEnabled" in names or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true"):
        return HubError(f"cannot {action} {where}: offline mode is on", hint="unset HF_HUB_OFFLINE")
    if "LocalTokenNotFoundError" in names:
        return HubError(f"cannot {action} {where}: there is no Hub token", hint=LOGIN)
    if "GatedRepoError" in names:
        return HubError(
            f"{where} is gated and this {'account' if has_token else 'request without a token'} "
            "has no access",
            hint=f"open the model's page, ask for access, then {LOGIN}",
        )
    if "RevisionNotFoundError" in names:
        return HubError(
            f"{where} has no such revision", hint="check the branch, tag or commit after the @"
        )
    if names & {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        return HubError(f"{where}: the file is not there ({_first_line(text)})")
    if "DisabledRepoError" in names:
        return HubError(f"{where} is disabled by the Hub", hint="see the model's page")
    if "RepositoryNotFoundError" in names or status in (401, 404):
        return _no_access(status, action, where, has_token=has_token, names=names)
    if status is not None:
        after = retry_after(error)
        return _by_status(status, text, action, where, has_token=has_token, after=after)
    if names & _NETWORK or any(isinstance(item, ConnectionError | TimeoutError) for item in chain):
        timeout = any("Timeout" in name for name in names)
        what = "did not answer in time" if timeout else "cannot be reached"
        return HubError(
            f"cannot {action} {where}: the Hub {what}",
            hint="check the network and HF_ENDPOINT, then run the command again",
        )
    if names & {"HFValidationError"}:
        return HubError(f"{where}: {_first_line(text)}", hint="write org/model")
    if names & {"XetDownloadError", "FileMetadataError"} or _is_xet(error):
        return HubError(
            f"cannot {action} {where}: {_first_line(text)}",
            hint="run the command again; if it stays, set HF_HUB_DISABLE_XET=1",
        )
    if isinstance(error, ValueError) and "LFS batch" in text:
        said = next((found[1] for found in re.finditer(r"`([^`\n]+)", text)), _first_line(text))
        if re.search(r"limit|too large", said):
            return _too_large(action, where, said)
        return HubError(f"cannot {action} {where}: {said}", hint="run the command again")
    return None


_NETWORK = {
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "ReadError",
    "WriteError",
    "CloseError",
    "RemoteProtocolError",
    "LocalProtocolError",
    "ProxyError",
    "NetworkError",
    "TimeoutException",
    "TransportError",
    "gaierror",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an exception of the client, if there is one."""
    return next((code for item in _chain(error) if (code := _status(item)) is not None), None)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: no answer, a broken connection, 408, 429, 5xx."""
    status = status_of(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    # Ours may have the name of one of httpx's: a WriteError of ours is a full disk.
    names = {type(item).__name__ for item in _chain(error) if not isinstance(item, SlaCkptError)}
    return bool(names & _NETWORK) or any(
        isinstance(item, ConnectionError | TimeoutError) for item in _chain(error)
    )


def _is_xet(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "xet" in str(error).lower()


def _no_access(
    status: int | None, action: str, where: str, *, has_token: bool, names: set[str]
) -> HubError:
    if status == 401 and has_token and "RepositoryNotFoundError" not in names:
        return HubError(
            f"cannot {action} {where}: the Hub does not accept this token",
            hint=f"it may be wrong, expired or revoked; {LOGIN}",
        )
    if has_token:
        return HubError(
            f"cannot {action} {where}: it does not exist, or this token may not see it",
            hint="check the spelling; for a private repository use a token of a member",
        )
    return HubError(
        f"cannot {action} {where}: it does not exist or is private, and no token was sent",
        hint=f"check the spelling, or {LOGIN}",
    )


def retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait (Retry-After), if it does."""
    for item in _chain(error):
        headers = getattr(getattr(item, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers.get("Retry-After", "")))
        except ValueError:
            continue
    return None


def _too_large(action: str, where: str, said: str) -> HubError:
    return HubError(
        f"cannot {action} {where}: a file is over the Hub's limit ({said})",
        hint="save the weights in smaller shards (max_shard_size of save_pretrained)",
    )


def _by_status(
    status: int,
    text: str,
    action: str,
    where: str,
    *,
    has_token: bool,
    after: float | None = None,
) -> HubError:
    said = _first_line(text)
    if status == 402 or "quota" in text.lower() or "storage limit" in text.lower():
        return HubError(
            f"cannot {action} {where}: the account's storage quota is used up",
            hint="free space on the Hub or upgrade, then run the command again",
        )
    if status == 403:
        return HubError(
            f"cannot {action} {where}: {'this token has' if has_token else 'no token:'} "
            f"no right to do that{'' if has_token else ' without one'}",
            hint="use a token with write access to this repository (hf.co/settings/tokens)",
        )
    if status == 409:
        return HubError(
            f"cannot {action} {where}: it is being changed at the same time ({said})",
            hint="run the command again",
        )
    if status == 412:
        return HubError(
            f"cannot {action} {where}: somebody else pushed meanwhile",
            hint="run the command again; it plans anew from the new head",
        )
    if status == 413 or "too large" in text.lower():
        return _too_large(action, where, said)
    if status == 429:
        wait = "some minutes"
        if after is not None:
            wait = f"{after:.0f} seconds" if after < 120 else f"{after / 60:.0f} minutes"
        return HubError(
            f"cannot {action} {where}: the Hub's rate limit is reached",
            hint=f"run the command again in {wait}",
        )
    if status >= 500:
        return HubError(
            f"cannot {action} {where}: the Hub has a problem of its own (HTTP {status})",
            hint="run the command again later; status.huggingface.co shows outages",
        )
    return HubError(f"cannot {action} {where}: the Hub answered HTTP {status} ({said})")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no details")[:300]


def redact(text: str) -> str:
    """Text without anything that looks like a token."""
    return _TOKEN.sub("hf_***", text)
