"""The server itself: uvicorn on 127.0.0.1 in a thread, and what tests ask of it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api_files import is_large, lfs_patterns_of
from .app import build_app
from .auth import DEFAULT_USER, Accounts
from .cas import Cas
from .context import Settings, State
from .download import file_bytes
from .faults import Faults
from .objects import ObjectStore
from .repos import GITATTRIBUTES, Commit, Entry, Repo, RepoStore
from .traffic import RequestLog, RequestRecord

Content = bytes | str | Path


class LoopbackHub:
    """A Hub on 127.0.0.1, for tests and demonstrations.

    `root` holds its whole state: another server started there goes on with it. `settings`,
    `faults` and `requests` may be used while it runs.

    Example:
        >>> with LoopbackHub(tmp_path) as hub:
        ...     hub.add_repo("alice/model", files={"config.json": b"{}"})
        ...     HfApi(endpoint=hub.url, token=hub.token("read")).list_repo_files("alice/model")
    """

    def __init__(
        self, root: Path, *, xet: bool = False, port: int = 0, settings: Settings | None = None
    ) -> None:
        self.root = root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        objects = ObjectStore(root)
        self._state = State(
            objects,
            RepoStore(root, objects),
            Accounts(root),
            settings or Settings(),
            Cas(root / "xet") if xet else None,
        )
        self.faults = Faults()
        self._log = RequestLog()
        self._port = port
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # running

    def start(self) -> Self:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._port))
        self._port = sock.getsockname()[1]
        self._state.url = f"http://127.0.0.1:{self._port}"
        if self._state.cas is not None:
            self._state.cas.url = f"{self._state.url}/_cas"
        inner = build_app(self._state, self.faults, self._log)
        transports = self._transports

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["loopback.transport"] = transports.get(tuple(scope["client"]))
            await inner(scope, receive, send)

        class Protocol(H11Protocol):
            """Keeps the transports at hand, so that a fault can cut one."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if self.client is not None:
                    transports[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    transports.pop(self.client, None)

        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            access_log=False,
            log_level="critical",
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=1 << 20,
        )
        self._server = uvicorn.Server(config)
        server = self._server

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve(sockets=[sock])

        self._thread = threading.Thread(
            target=lambda: asyncio.run(serve()), name="loopback-hub", daemon=True
        )
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the loopback Hub did not start")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Cuts what is still open and ends the server; the state stays on disk."""
        if self._server is None or self._thread is None or self._loop is None:
            return
        self._server.should_exit = True
        self._loop.call_soon_threadsafe(self._cut_all)
        self._thread.join(timeout=10)
        self._server = None

    def _cut_all(self) -> None:
        for transport in list(self._transports.values()):
            transport.abort()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._state.url

    @property
    def has_xet(self) -> bool:
        return self._state.cas is not None

    @property
    def settings(self) -> Settings:
        return self._state.settings

    # accounts

    def token(
        self,
        role: str = "write",
        *,
        user: str = DEFAULT_USER,
        scopes: Mapping[str, Sequence[str]] | None = None,
    ) -> str:
        """A token of `user` with the role read, write or fineGrained (then with `scopes`)."""
        granted = {name: tuple(permissions) for name, permissions in (scopes or {}).items()}
        return self._state.accounts.issue(user, role, granted).value

    def revoke(self, token: str) -> None:
        self._state.accounts.revoke(token)

    def add_user(self, name: str, orgs: Sequence[str] = ()) -> None:
        self._state.accounts.add_user(name, tuple(orgs))

    # repos

    def add_repo(
        self,
        repo_id: str,
        *,
        private: bool = False,
        gated: bool = False,
        files: Mapping[str, Content] | None = None,
    ) -> None:
        """A new repo; with `files`, a second commit adds them."""
        author = repo_id.split("/")[0]
        self._state.repos.create(repo_id, private=private, gated=gated, author=author)
        if files:
            self.add_files(repo_id, files)

    def allow(self, repo_id: str, user: str) -> None:
        """Lets `user` through the gate of a gated repo."""
        repo = self._repo(repo_id)
        repo.allowed.append(user)
        self._state.repos.save(repo)

    def add_files(
        self,
        repo_id: str,
        files: Mapping[str, Content | None],
        *,
        revision: str = "main",
        message: str = "Add files",
    ) -> str:
        """A commit made behind the client's back; None removes a file. Its id."""
        repo = self._repo(repo_id)
        changed: dict[str, Entry | None] = {}
        for path, content in files.items():
            changed[path] = None if content is None else self._store(path, content)
        return self._commit(repo, revision, changed, message)

    def add_virtual_file(
        self,
        repo_id: str,
        path: str,
        size: int,
        header: bytes = b"",
        *,
        sha256: str | None = None,
        revision: str = "main",
    ) -> str:
        """A large file that takes no room: `header`, then zeros up to `size` bytes. The commit's
        id. Its sha256 is made up unless given."""
        oid = self._state.objects.add_virtual(size, header, sha256)
        entry = Entry.large(oid, size)
        return self._commit(self._repo(repo_id), revision, {path: entry}, f"Add {path}")

    def files(self, repo_id: str, revision: str = "main") -> dict[str, tuple[int, str]]:
        """Size in bytes and sha256 of every file of a revision."""
        found = {}
        for path, entry in self._repo(repo_id).at(revision).files.items():
            sha256 = entry.sha256
            if sha256 is None:
                sha256 = hashlib.sha256(self._state.objects.blob(entry.oid)).hexdigest()
            found[path] = (entry.size, sha256)
        return found

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The content of a file that was not uploaded over xet."""
        return file_bytes(self._state, self._repo(repo_id).at(revision).files[path])

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first."""
        return list(self._repo(repo_id).history(revision))

    def all_commits(self, repo_id: str) -> list[Commit]:
        """Every commit that any ref of the repo ever had."""
        return list(self._repo(repo_id).commits.values())

    def refs(self, repo_id: str) -> dict[str, str]:
        return dict(self._repo(repo_id).refs)

    def has_repo(self, repo_id: str) -> bool:
        return self._state.repos.get(repo_id) is not None

    def is_private(self, repo_id: str) -> bool:
        return self._repo(repo_id).private

    # traffic

    @property
    def requests(self) -> list[RequestRecord]:
        return list(self._log.records)

    def matching(self, pattern: str) -> list[RequestRecord]:
        """The requests whose "METHOD /path?query" the regular expression finds."""
        return list(self._log.matching(pattern))

    def clear_requests(self) -> None:
        self._log.records.clear()

    @property
    def bytes_sent(self) -> int:
        """Bytes that left the server (bodies and header fields) since the log was cleared."""
        return sum(record.bytes_sent for record in self._log.records)

    @property
    def bytes_received(self) -> int:
        return sum(record.bytes_received for record in self._log.records)

    # helpers

    def _repo(self, repo_id: str) -> Repo:
        repo = self._state.repos.get(repo_id)
        if repo is None:
            raise KeyError(repo_id)
        return repo

    def _commit(
        self, repo: Repo, revision: str, changed: Mapping[str, Entry | None], message: str
    ) -> str:
        ref = repo.ref(revision)
        if ref is None:
            raise KeyError(revision)
        files: dict[str, Any] = {**repo.at(revision).files, **changed}
        kept = {path: entry for path, entry in files.items() if entry is not None}
        made = self._state.repos.commit(
            repo, ref, repo.refs[ref], kept, title=message, author=repo.namespace
        )
        return made.id

    def _store(self, path: str, content: Content) -> Entry:
        patterns = lfs_patterns_of(GITATTRIBUTES.decode())
        if isinstance(content, Path):
            size = content.stat().st_size
            if is_large(path, size, b"", patterns):
                return Entry.large(*self._state.objects.add_lfs_file(content))
            content = content.read_bytes()
        data = content.encode() if isinstance(content, str) else content
        if is_large(path, len(data), data[:512], patterns):
            return Entry.large(*self._state.objects.add_lfs([data]))
        return Entry(len(data), self._state.objects.add_blob(data))
