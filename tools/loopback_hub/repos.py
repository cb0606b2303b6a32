"""Repos: commits (each a whole map of paths), refs, pull requests; kept as JSON under the root."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import HubError
from .objects import ObjectStore, git_blob_id, lfs_pointer, new_file

LARGE_SUFFIXES = (
    *("7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "lfs.*", "mlmodel"),
    *("model", "msgpack", "npy", "npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "pt"),
    *("pth", "rar", "safetensors", "tar", "tflite", "tgz", "wasm", "xz", "zip", "zst"),
)
GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES
).encode()


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass(frozen=True)
class Entry:
    """One file of a commit: `oid` is its git id, `sha256` is set when it is a large file."""

    size: int
    oid: str
    sha256: str | None = None

    @classmethod
    def large(cls, sha256: str, size: int) -> Entry:
        return cls(size, git_blob_id(lfs_pointer(sha256, size)), sha256)


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    files: Mapping[str, Entry]
    title: str
    message: str
    author: str
    date: str


@dataclass
class PullRequest:
    num: int
    title: str
    description: str
    author: str
    status: str
    created: str
    is_pull_request: bool = True
    merge_commit: str | None = None


@dataclass
class Repo:
    """A model repo. Everything that changes goes through `RepoStore`, which writes it down."""

    id: str
    private: bool
    gated: bool
    created: str
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[PullRequest] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)  # who was let through the gate
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def ref(self, revision: str) -> str | None:
        """The full name of the branch, tag or pull request ref that `revision` names."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return name
        return None

    def commit_id(self, revision: str) -> str:
        """Raises HubError (RevisionNotFound)."""
        ref = self.ref(revision)
        if ref is not None:
            return self.refs[ref]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            for sha in self.commits:
                if sha.startswith(revision):
                    return sha
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def at(self, revision: str) -> Commit:
        return self.commits[self.commit_id(revision)]

    def history(self, revision: str) -> Iterator[Commit]:
        """Newest first."""
        sha: str | None = self.commit_id(revision)
        while sha is not None:
            commit = self.commits[sha]
            yield commit
            sha = commit.parent


class RepoStore:
    """All repos under `root/repos`; what is there when the server starts is there again."""

    def __init__(self, root: Path, objects: ObjectStore) -> None:
        self._root = root / "repos"
        self._objects = objects
        self._repos: dict[str, Repo] = {}
        for state in sorted(self._root.glob("*/*/repo.json")):
            repo = _load_repo(state)
            self._repos[repo.id] = repo

    def __iter__(self) -> Iterator[Repo]:
        return iter(list(self._repos.values()))

    def get(self, repo_id: str) -> Repo | None:
        return self._repos.get(repo_id)

    def create(self, repo_id: str, *, private: bool, gated: bool, author: str) -> Repo:
        """A repo with the Hub's first commit (.gitattributes)."""
        repo = Repo(repo_id, private, gated, now())
        first = Entry(len(GITATTRIBUTES), self._objects.add_blob(GITATTRIBUTES))
        commit = self._new_commit(
            repo, None, {".gitattributes": first}, "initial commit", "", author
        )
        repo.refs["refs/heads/main"] = commit.id
        self._repos[repo_id] = repo
        self.save(repo)
        return repo

    def delete(self, repo: Repo) -> None:
        (self._folder(repo.id) / "repo.json").unlink()
        del self._repos[repo.id]

    def commit(
        self,
        repo: Repo,
        ref: str | None,
        parent: str,
        files: Mapping[str, Entry],
        *,
        title: str,
        message: str = "",
        author: str,
    ) -> Commit:
        """Adds a commit and moves `ref` to it; without a ref the caller makes one."""
        commit = self._new_commit(repo, parent, files, title, message, author)
        if ref is not None:
            repo.refs[ref] = commit.id
            self.save(repo)
        return commit

    def save(self, repo: Repo) -> None:
        state = {
            "id": repo.id,
            "private": repo.private,
            "gated": repo.gated,
            "created": repo.created,
            "refs": repo.refs,
            "allowed": repo.allowed,
            "discussions": [asdict(discussion) for discussion in repo.discussions],
        }
        _write_json(self._folder(repo.id) / "repo.json", state)

    def _new_commit(
        self,
        repo: Repo,
        parent: str | None,
        files: Mapping[str, Entry],
        title: str,
        message: str,
        author: str,
    ) -> Commit:
        sha = hashlib.sha1(os.urandom(20)).hexdigest()
        commit = Commit(sha, parent, dict(files), title, message, author, now())
        repo.commits[sha] = commit
        _write_json(self._folder(repo.id) / "commits" / f"{sha}.json", asdict(commit))
        return commit

    def _folder(self, repo_id: str) -> Path:
        return self._root / repo_id


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with new_file(path) as out:
        out.write(json.dumps(value).encode())


def _load_repo(state_path: Path) -> Repo:
    state = json.loads(state_path.read_bytes())
    repo = Repo(state["id"], state["private"], state["gated"], state["created"], state["refs"])
    repo.allowed = state["allowed"]
    repo.discussions = [PullRequest(**item) for item in state["discussions"]]
    for path in (state_path.parent / "commits").glob("*.json"):
        raw = json.loads(path.read_bytes())
        raw["files"] = {name: Entry(**entry) for name, entry in raw["files"].items()}
        repo.commits[raw["id"]] = Commit(**raw)
    return repo
