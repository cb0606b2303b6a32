"""What every handler gets: the server's state and the request, with the access checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from .auth import Accounts, Token
from .errors import HubError
from .objects import ObjectStore
from .repos import Commit, Entry, Repo, RepoStore

if TYPE_CHECKING:
    from .cas import Cas


@dataclass
class Settings:
    """What a test may change while the server runs (sizes in bytes)."""

    page_size: int = 1000  # entries per page of a listing
    redirect: bool = True  # large files are served by a signed URL, as the Hub's CDN does
    part_size: int | None = None  # larger LFS uploads go in parts of this size
    max_file_size: int | None = None
    quota: int | None = None  # for all large objects of one namespace


@dataclass
class State:
    objects: ObjectStore
    repos: RepoStore
    accounts: Accounts
    settings: Settings = field(default_factory=Settings)
    cas: Cas | None = None
    url: str = ""

    def is_stored(self, sha256: str) -> bool:
        return self.objects.lfs_size(sha256) is not None or self.xet_hash(sha256) is not None

    def stored_size(self, sha256: str) -> int | None:
        size = self.objects.lfs_size(sha256)
        if size is None and self.cas is not None:
            size = self.cas.size(sha256)
        return size

    def xet_hash(self, sha256: str) -> str | None:
        return self.cas.xet_hash(sha256) if self.cas is not None else None

    def check_limits(self, namespace: str, sizes: Mapping[str, int]) -> None:
        """Raises HubError for an object over the file limit or a namespace over its quota;
        `sizes` maps the sha256 of the objects that are about to be added."""
        limit, quota = self.settings.max_file_size, self.settings.quota
        if limit is not None and any(size > limit for size in sizes.values()):
            raise HubError(413, f"File size exceeds the limit of {limit} bytes per file")
        if quota is not None:
            used = dict(sizes)
            for repo in self.repos:
                if repo.namespace == namespace:
                    for commit in repo.commits.values():
                        used.update(_large_sizes(commit))
            if sum(used.values()) > quota:
                raise HubError(
                    403,
                    "Private repository storage limit reached, please upgrade your plan to "
                    "increase your private storage limit",
                )


def _large_sizes(commit: Commit) -> dict[str, int]:
    return {entry.sha256: entry.size for entry in commit.files.values() if entry.sha256}


@dataclass
class Call:
    state: State
    request: Request
    args: Mapping[str, str]  # named groups of the route, unquoted

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    async def json(self) -> Any:
        body = await self.request.body()
        try:
            return json.loads(body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def token(self) -> Token | None:
        return self.state.accounts.identify(self.request.headers.get("authorization"))

    def signed_in(self) -> Token:
        token = self.token()
        if token is None:
            raise HubError(401, "Invalid username or password.")
        return token

    def repo(self) -> Repo:
        """The repo of the route, if this caller may know that it exists."""
        token = self.token()
        repo = self.state.repos.get(self.args["repo"])
        if repo is None or not self.state.accounts.may_read(token, repo):
            raise HubError(404 if token else 401, "Repository not found", code="RepoNotFound")
        return repo

    def writable_repo(self, *, as_pull_request: bool = False) -> tuple[Repo, Token]:
        repo, token = self.repo(), self.signed_in()
        if as_pull_request:
            if not self.state.accounts.may_propose(token, repo):
                raise HubError(403, "Forbidden: this token may not open a pull request")
        elif not self.state.accounts.may_write(token, repo.namespace, repo.id):
            raise HubError(
                403,
                "Forbidden: you must use a write token to upload to a repository; pass "
                "`create_pr=1` as a query parameter to create a Pull Request",
            )
        return repo, token

    def entry_json(self, path: str, entry: Entry) -> dict[str, Any]:
        """A file as tree and paths-info list it."""
        item: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": entry.size,
            "oid": entry.oid,
        }
        if entry.sha256 is not None:
            item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            xet_hash = self.state.xet_hash(entry.sha256)
            if xet_hash is not None:
                item["xetHash"] = xet_hash
        return item
