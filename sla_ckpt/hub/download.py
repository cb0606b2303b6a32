"""Files from the Hub, each taken up where it stopped and checked against its hash.

huggingface_hub gives each attempt a new temporary file and deletes it on failure, so that an
interrupted 24 GB shard starts from zero. Ranged requests go on from the bytes that are there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import BinaryIO

from sla_ckpt.errors import HubError, WriteError
from sla_ckpt.hub.client import HubClient, wait_for_retry
from sla_ckpt.hub.hashes import CHUNK, hash_bytes
from sla_ckpt.hub.remote import HubSource, RemoteFile

PARALLEL = 4


class _Attempt:
    """What is known while one file is fetched."""

    def __init__(self, part: Path, expected: RemoteFile, tick: Callable[[int], None]) -> None:
        self.part = part
        self.tick = tick
        self.expected = expected
        self.have = 0
        self.sha256 = hashlib.sha256()

    def restart(self, handle: BinaryIO) -> None:
        self.tick(-self.have)
        handle.truncate(0)
        handle.seek(0)
        self.have = 0
        self.sha256 = hashlib.sha256()

    def adopt(self, handle: BinaryIO) -> None:
        """Take over the bytes of an earlier run."""
        while chunk := handle.read(CHUNK):
            self.sha256.update(chunk)
            self.have += len(chunk)
            self.tick(len(chunk))
        if self.have > self.expected.size:
            self.restart(handle)

    def is_right(self) -> bool:
        if not self.have == self.part.stat().st_size == self.expected.size:
            return False
        if self.expected.sha256 is not None:
            return self.sha256.hexdigest() == self.expected.sha256
        return hash_bytes(self.part.read_bytes()).git == self.expected.blob_id


def fetch(
    client: HubClient,
    repo_id: str,
    commit: str,
    path: str,
    expected: RemoteFile,
    part: Path,
    *,
    tick: Callable[[int], None] = lambda count: None,
) -> None:
    """Bring one file to ``part``, whose bytes from an earlier run are used.

    Args:
        client: Access.
        repo_id: ``org/model``.
        commit: Full commit id.
        path: In the repository.
        expected: Size and hash that the repository lists.
        part: Local file; its folder exists.
        tick: Called with the number of bytes that are there; negative when some are discarded.
            What it raises ends the download.

    Raises:
        HubError: It cannot be fetched, or other bytes arrive, twice.
        WriteError: It cannot be written.
    """
    for _ in range(2):
        try:
            # Unbuffered: what a full disk refused must not be written by a later flush.
            with part.open("a+b", buffering=0) as handle:
                handle.seek(0)
                attempt = _Attempt(part, expected, tick)
                attempt.adopt(handle)
                _transfer(client, repo_id, commit, path, attempt, handle)
                os.fsync(handle.fileno())
            if attempt.is_right():
                return
            tick(-attempt.have)
            part.unlink()
        except OSError as error:
            raise _write_error(part, error) from error
    raise HubError(
        f"{repo_id}/{path}: the bytes that arrive are not those it lists (sha256)",
        hint="run the command again; if it stays, the file on the Hub is damaged",
    )


def _transfer(
    client: HubClient, repo_id: str, commit: str, path: str, attempt: _Attempt, handle: BinaryIO
) -> None:
    """Append until everything is there; failures count only while nothing arrives."""
    failures = 0
    with client.errors("fetch", f"{repo_id}/{path}"):
        while attempt.have < attempt.expected.size:
            before = attempt.have
            attempt.tick(0)  # lets the listener stop the download
            try:
                _append(client, repo_id, commit, path, attempt, handle)
            except WriteError:
                raise
            except Exception as error:
                failures = 0 if attempt.have > before else failures + 1
                if not wait_for_retry(error, failures):
                    raise


def _append(
    client: HubClient, repo_id: str, commit: str, path: str, attempt: _Attempt, handle: BinaryIO
) -> None:
    with client.stream(repo_id, path, commit, start=attempt.have) as response:
        if attempt.have and response.status_code != 206:
            attempt.restart(handle)  # ranges are ignored: this is the file from its start
        for chunk in response.iter_bytes(CHUNK // 4):
            room = attempt.expected.size - attempt.have
            _write(handle, chunk[:room], attempt)
            if len(chunk) >= room:
                return
    raise ConnectionError(f"{path}: {attempt.have} of {attempt.expected.size} bytes arrived")


def _write(handle: BinaryIO, data: bytes, attempt: _Attempt) -> None:
    try:
        left = memoryview(data)
        while left:
            left = left[handle.write(left) :]
    except OSError as error:
        raise _write_error(attempt.part, error) from error
    attempt.sha256.update(data)
    attempt.have += len(data)
    attempt.tick(len(data))


def _write_error(part: Path, error: OSError) -> WriteError:
    folder = part.parent.parent
    return WriteError(
        f"cannot write to {folder}: {error.strerror or error}",
        hint="free some space or check permissions, then run it again; what arrived is kept",
        path=str(folder),
    )


def fetch_all(
    client: HubClient,
    root: HubSource,
    staging: Path,
    wanted: Mapping[str, str],
    tick: Callable[[int], None],
) -> dict[str, Path]:
    """Every file in the staging folder, complete and checked. Local path -> staged file."""

    stopped = Event()

    def counted(size: int) -> None:
        if stopped.is_set():
            raise HubError("the download was stopped", hint="run the command again")
        tick(size)

    def one(path: str) -> Path:
        full = wanted[path]
        expected = root.listing[full]
        identity = f"{path}\0{expected.sha256 or expected.blob_id}".encode()
        # Named after path and content, so that a later revision never goes on with other bytes.
        part = staging / f"{hashlib.sha256(identity).hexdigest()[:32]}.part"
        fetch(client, root.ref.repo_id, root.commit, full, expected, part, tick=counted)
        return part

    try:
        return _in_threads(one, wanted)
    except BaseException:
        stopped.set()  # the other downloads would go on for gigabytes
        raise


def _in_threads(work: Callable[[str], Path], items: Iterable[str]) -> dict[str, Path]:
    """``work`` of every item, several at a time, in threads that the process does not wait for.

    An executor's threads are joined when the interpreter ends: Ctrl-C would have to wait for a
    server that does not answer.
    """
    futures: dict[str, Future[Path]] = {item: Future() for item in items}
    waiting = SimpleQueue[str]()
    for item in futures:
        waiting.put(item)

    def worker() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                futures[item].set_result(work(item))
            except Exception as error:  # raised again where the result is asked for
                futures[item].set_exception(error)

    for _ in range(min(PARALLEL, len(futures))):
        Thread(target=worker, daemon=True).start()
    return {item: future.result() for item, future in futures.items()}
