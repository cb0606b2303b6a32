"""A Hub repository as a :class:`~sla_ckpt.checkpoint.source.Source`: listing and ranged reads.

Nothing is downloaded whole but small files: a repository of 24 GB costs a listing, one range of
each shard's header and the state itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sla_ckpt.checkpoint.weights import INDEX_SUFFIXES
from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.hub.client import HubClient, connect
from sla_ckpt.hub.repo import RepoRef, parse_repo
from sla_ckpt.state import STATE_FILE, TWIN_FILE

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

#: Most shard headers fit; a longer one costs a second request.
HEAD_BYTES = 32 * 1024
#: Files that verify reads whole.
SMALL_FILE = 512 * 1024
PARALLEL = 8
_WHOLE = (STATE_FILE, TWIN_FILE, "config.json", "model_index.json", "simpletuner_config.json")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        size: Bytes.
        sha256: Of its content, for LFS and xet files.
        blob_id: Git object id; of the pointer for LFS files.
    """

    size: int
    sha256: str | None
    blob_id: str | None


class HubSource:
    """A repository at one commit, or a folder of it.

    Args:
        client: Access.
        ref: Which repository, as the user named it.
        commit: The commit that ``ref`` meant when it was opened; everything is read there.
        listing: Every file of the commit, by path from the root.
        prefix: Folder that is the root of this source, ``""`` or ending in ``/``.
        cache: Bytes already read, by full path: the start of each file.
    """

    is_remote = True

    def __init__(
        self,
        client: HubClient,
        ref: RepoRef,
        commit: str,
        listing: Mapping[str, RemoteFile],
        *,
        prefix: str = "",
        cache: dict[str, bytes] | None = None,
    ) -> None:
        self.client = client
        self.ref = ref
        self.commit = commit
        self.listing = listing
        self.prefix = prefix
        self._cache: dict[str, bytes] = {} if cache is None else cache

    @property
    def label(self) -> str:
        return str(RepoRef(self.ref.repo_id, self.ref.revision, self.prefix.rstrip("/")))

    def files(self) -> Mapping[str, int]:
        return {
            path.removeprefix(self.prefix): file.size
            for path, file in self.listing.items()
            if path.startswith(self.prefix)
        }

    def subsource(self, prefix: str) -> HubSource:
        folder = f"{self.prefix}{prefix.strip('/')}/"
        return HubSource(
            self.client, self.ref, self.commit, self.listing, prefix=folder, cache=self._cache
        )

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        full = self.prefix + path
        if full not in self.listing:
            raise TargetNotFoundError(f"{self.label} has no file {path}", path=path)
        size = self.listing[full].size
        end = size if length is None else min(size, start + length)
        if end <= start:
            return b""
        known = self._cache.get(full, b"")
        if end <= len(known):
            return known[start:end]
        if start == 0:
            data = self._fetch(full, 0, min(size, max(end, HEAD_BYTES)))
            self._cache[full] = data
            return data[:end]
        return self._fetch(full, start, end)

    def prefetch(self, paths: Iterable[str]) -> None:
        """Read the start of several files at once (all of the small ones)."""

        def one(path: str) -> None:
            whole = path.rpartition("/")[2] in _WHOLE or path.endswith(INDEX_SUFFIXES)
            size = self.listing[self.prefix + path].size
            self.read(path, 0, min(size, SMALL_FILE) if whole else HEAD_BYTES)

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(one, paths))

    def _fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) by one ranged request, never more than that, whatever comes."""
        with self.client.errors("read", f"{self.ref.repo_id}/{path}"):
            return self.client.retry(lambda: self._request(path, start, end))

    def _request(self, path: str, start: int, end: int) -> bytes:
        repo_id, commit = self.ref.repo_id, self.commit
        with self.client.stream(repo_id, path, commit, start=start, end=end) as response:
            # A server that ignores ranges sends the file from its beginning.
            skip = start if response.status_code == 200 else 0
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skip + end - start:
                    break
        found = bytes(data[skip : skip + end - start])
        if len(found) != end - start:
            raise ConnectionError(f"{path}: {len(found)} of {end - start} bytes arrived")
        return found


def open_remote(text: str | RepoRef, *, token: str | None = None) -> HubSource:
    """Open a repository for verification.

    Args:
        text: Any form :func:`sla_ckpt.hub.repo.parse_repo` reads.
        token: Hub token; by default the user's.

    Raises:
        UsageError: Not a repository name.
        HubError: It cannot be reached or seen.
        TargetNotFoundError: The folder named is not in it.
    """
    ref = text if isinstance(text, RepoRef) else parse_repo(text)
    source = open_at(connect(token), ref)
    if ref.subfolder:
        source = source.subsource(ref.subfolder)
        if not source.files():
            raise TargetNotFoundError(
                f"{ref.repo_id} has no folder {ref.subfolder}", hint="check the path in the repo"
            )
    source.prefetch(_wanted(source))
    return source


def open_at(client: HubClient, ref: RepoRef) -> HubSource:
    """The root of a repository at a revision: one request for commit and listing."""
    with client.errors("read", ref.repo_id):
        return source_at(client, ref)


def source_at(client: HubClient, ref: RepoRef) -> HubSource:
    """:func:`open_at` with the client's own exceptions, for who tells one from another."""
    info: Any = client.retry(
        lambda: client.api.repo_info(ref.repo_id, revision=ref.revision, files_metadata=True)
    )
    listing = {item.rfilename: _remote_file(item) for item in info.siblings or []}
    return HubSource(client, ref, str(info.sha), listing)


def _remote_file(item: RepoSibling) -> RemoteFile:
    lfs: Any = item.lfs
    sha256 = None if lfs is None else (lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256)
    return RemoteFile(item.size or 0, sha256, item.blob_id)


def _wanted(source: HubSource) -> list[str]:
    """What verify will read: configs, indexes, states, and the heads of weight files."""
    files = source.files()
    wanted = []
    for path in files:
        name = path.rpartition("/")[2]
        if path.count("/") <= 1 and (
            name in _WHOLE
            or path.endswith((*INDEX_SUFFIXES, ".safetensors"))
            or path == "README.md"
        ):
            wanted.append(path)
    return wanted


def list_org(organisation: str, *, token: str | None = None) -> list[str]:
    """The ids of every model of an organisation or user that the token can see.

    Raises:
        HubError: The Hub cannot be reached, or there is no such organisation.
    """
    client = connect(token)
    with client.errors("list the models of", organisation):
        models = client.retry(lambda: list(client.api.list_models(author=organisation)))
    return sorted(model.id for model in models)
