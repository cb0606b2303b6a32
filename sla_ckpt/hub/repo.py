"""Repository names in every form that people paste."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from sla_ckpt.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
_VERBS = ("tree", "blob", "resolve", "raw", "commit", "commits")
_NOT_MODELS = ("datasets", "spaces", "buckets", "collections", "papers", "docs", "blog")


@dataclass(frozen=True)
class RepoRef:
    """A model repository, perhaps at a revision, perhaps a folder in it.

    Attributes:
        repo_id: ``org/model``.
        revision: Branch, tag, commit or ``refs/pr/N``; None for the default branch.
        subfolder: POSIX path below the root, ``""`` for the root.
    """

    repo_id: str
    revision: str | None = None
    subfolder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        folder = f"/{self.subfolder}" if self.subfolder else ""
        return f"{self.repo_id}{revision}{folder}"


def parse_repo(text: str) -> RepoRef:
    """Read ``org/model[@revision][/folder]``, ``hf://…`` or a Hub URL.

    Raises:
        UsageError: It is none of these; says what is wrong and what was probably meant.
    """
    given = text.strip()
    if looks_like_path(given):
        raise UsageError(f"no such folder: {given}", hint="check the path", path=given)
    if "://" in given:
        scheme = given.partition("://")[0].lower()
        return _from_hf_uri(given) if scheme == "hf" else _from_url(given)
    host = given.partition("/")[0].lower()
    if host in _HOSTS:
        return _from_url(f"https://{given}")
    return _from_id(given)


def at_revision(text: str, revision: str) -> str:
    """The same repository or folder at another revision, as ``hf://org/model@rev/folder``.

    Raises:
        UsageError: It is no repository, or names another revision itself.
    """
    ref = parse_repo(text)
    if ref.revision not in (None, revision):
        raise UsageError(f"{text!r} names a revision, and --revision {revision} another one")
    folder = f"/{ref.subfolder}" if ref.subfolder else ""
    return f"hf://{ref.repo_id}@{quote(revision, safe='')}{folder}"


def looks_like_path(text: str) -> bool:
    """Whether the text can only be a local path: ``./x``, ``~/x``, ``/x``, ``C:\\x``, ``a/b/``."""
    if "://" in text or text.partition("/")[0].lower() in _HOSTS:
        return False
    return (
        text in ("", ".", "..")
        or text.startswith(("./", "../", "~", "/", "\\", ".\\", "..\\"))
        or "\\" in text
        or re.match(r"[A-Za-z]:", text) is not None
        or text.endswith((".pt", ".safetensors"))
        or len(text) > 500
        or "\0" in text
    )


def looks_like_repo(text: str) -> bool:
    """Whether the text has the form of a repository name or URL and of nothing local."""
    if looks_like_path(text.strip()):
        return False
    try:
        parse_repo(text)
    except UsageError:
        return "://" in text
    return True


def _from_id(text: str) -> RepoRef:
    clean = text.split("#", 1)[0].split("?", 1)[0].rstrip("/")
    head, at, tail = clean.partition("@")
    parts = head.split("/")
    if parts and parts[0] in _NOT_MODELS and len(parts) == 3:
        raise _not_a_model(parts[0])
    if len(parts) < 2:
        raise UsageError(
            f"{text!r} is neither a folder here nor a repository",
            hint="write org/model for a Hub repository",
        )
    revision, folder = None, "/".join(parts[2:])
    if at:
        if folder:
            raise UsageError(
                f"{text!r}: the revision comes before the folder",
                hint=f"write {parts[0]}/{parts[1]}@{tail}/{folder}",
            )
        revision, folder = _split_revision(tail)
    return _checked(f"{parts[0]}/{parts[1]}", revision, folder, text)


def _split_revision(tail: str) -> tuple[str, str]:
    """``refs/pr/3/sub`` -> (``refs/pr/3``, ``sub``); else the first part is the revision."""
    match = re.match(r"(refs/(?:pr/\d+|heads/[^/]+|tags/[^/]+|convert/[^/]+))(?:/(.*))?$", tail)
    if match:
        return match[1], match[2] or ""
    revision, _, folder = tail.partition("/")
    return unquote(revision), folder


def _from_hf_uri(text: str) -> RepoRef:
    rest = text.split("://", 1)[1].split("?", 1)[0].split("#", 1)[0].strip("/")
    first = rest.partition("/")[0]
    if first in _NOT_MODELS:
        raise _not_a_model(first)
    return _from_id(rest.removeprefix("models/"))


def _from_url(text: str) -> RepoRef:
    try:
        url = urlsplit(text)
        host = (url.hostname or "").lower()
    except ValueError as error:
        raise UsageError(f"{text!r} is not a URL: {error}") from error
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    if host not in _HOSTS and host != (endpoint.hostname or "").lower():
        raise UsageError(
            f"{host or text!r} is not the Hub", hint="write org/model, or set HF_ENDPOINT"
        )
    parts = [unquote(part) for part in url.path.split("/") if part]
    if parts and parts[0] in _NOT_MODELS:
        raise _not_a_model(parts[0])
    if parts and parts[0] == "models":
        parts = parts[1:]
    if len(parts) < 2:
        raise UsageError(f"{text!r} names no repository", hint="write org/model")
    repo_id, rest = f"{parts[0]}/{parts[1]}", parts[2:]
    if not rest:
        return _checked(repo_id, None, "", text)
    verb, tail = rest[0], "/".join(rest[1:])
    if verb not in _VERBS:
        return _checked(repo_id, None, "", text)
    revision, folder = _split_revision(tail) if tail else (None, "")
    if verb in ("blob", "resolve", "raw"):
        folder = folder.rpartition("/")[0]  # a file's page stands for the folder it is in
    return _checked(repo_id, revision, folder, text)


def _checked(repo_id: str, revision: str | None, folder: str, text: str) -> RepoRef:
    for part in repo_id.split("/"):
        if not _NAME.fullmatch(part) or "--" in part or ".." in part:
            raise UsageError(
                f"{text!r}: {part!r} is not a name the Hub accepts",
                hint="letters, digits, '-', '_' and '.', at most 96, no '--' and no '..'",
            )
    folder = folder.strip("/")
    if any(part in ("", ".", "..") for part in folder.split("/")) and folder:
        raise UsageError(f"{text!r}: {folder!r} is not a folder of a repository")
    if revision is not None and (not revision or re.search(r"[\s~^:?*\[\\]|\.\.", revision)):
        raise UsageError(f"{text!r}: {revision!r} is not a revision")
    return RepoRef(repo_id, revision, folder)


def _not_a_model(kind: str) -> UsageError:
    return UsageError(
        f"this is in {kind} on the Hub, not a model", hint="name a model repository: org/model"
    )
