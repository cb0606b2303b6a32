"""The other side of the fork server: start a command, kill it, read what it said."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
#: Variables of the machine that would change what a command does.
UNSET = ("NO_COLOR", "FORCE_COLOR", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Done:
    """How a command ended; ``code`` is negative after a signal."""

    args: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float
    events: tuple[tuple[str, tuple[str, ...], tuple[tuple[int, ...], ...]], ...] = ()

    @property
    def text(self) -> str:
        return f"{' '.join(self.args)}: exit {self.code}\n{self.stdout}\n{self.stderr}"


def clean_environment() -> dict[str, str]:
    """The environment without proxies, tokens and settings of this tool."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in UNSET and not name.lower().endswith("_proxy") and name[:4] != "SLA_"
    }
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """A fork server; one command at a time. Use as a context manager.

    Args:
        kind: What it imports: ``hub`` the client of the Hub, ``regen`` torch and diffusers.
        xet: Whether the client may use xet.
        hub_port: Of another server's Hub.

    Its commands talk to the Hub on 127.0.0.1 at ``hub_port``, to be started later: the client
    reads its settings when it is imported, and children would inherit a running Hub's sockets.
    """

    def __init__(self, kind: str, *, xet: bool = False, hub_port: int | None = None) -> None:
        self._buffer = b""
        self._pending: list[dict[str, Any]] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="sla-campaign-")
        self.scratch = Path(self._scratch.name)
        self.scratch.chmod(0o777)
        self.hub_port = hub_port or _free_port()
        self._env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.hub_port}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self.scratch / "hf"),
            "SLA_CKPT_CACHE": str(self.scratch / "cache"),
            "SLA_CKPT_RETRY_DELAY": "0.02",
            # The client's own patience is six minutes a request.
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
            "HF_XET_CLIENT_RETRY_MAX_DURATION": "10s",
            **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.campaign.forkserver", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**clean_environment(), "HOME": str(self.scratch), **self._env},
            cwd=ROOT,
        )
        self._request: dict[str, Any] = {}
        self.pid = 0

    def __enter__(self) -> Self:
        self._expect("ready", 120)
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._scratch.cleanup()

    def start(
        self,
        *args: object,
        root: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> int:
        """Start ``sla-ckpt ARGS``; what it changes below ``root`` is counted. Its process id.

        Options: see ``forkserver``: at, action, announce, file_limit, limit_kills, uid, log.
        """
        request = {
            "args": [str(arg) for arg in args],
            "env": {**self._env, **(env or {})},
            "cwd": str(cwd or self.scratch),
            "root": str(root),
            "stdout": str(self.scratch / "stdout"),
            "stderr": str(self.scratch / "stderr"),
            **options,
        }
        if request.get("log"):
            request["log"] = str(self.scratch / "log")
        for name in ("stdout", "stderr", "log"):
            (self.scratch / name).unlink(missing_ok=True)
        self._request = request
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        self._pending = []
        self.pid = int(self._expect("started", 60)["pid"])
        return self.pid

    def wait_for_write(self, timeout: float = 120) -> bool:
        """Wait until the child changes the first file (its lock apart); False if it ended."""
        while True:
            message = self._next(timeout)
            if message["event"] == "ended":
                self._pending.append(message)
                return False
            if message["event"] == "write":
                return True

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        try:
            os.kill(self.pid, sent)
        except ProcessLookupError:
            return

    def wait(self, timeout: float = 300) -> Done:
        """Wait for the end; a child that goes on for longer is killed and that is an error."""
        try:
            ended = self._expect("ended", timeout)
        except TimeoutError:
            self.kill()
            self._expect("ended", 30)
            raise AssertionError(f"hangs: {self._request['args']}") from None
        read = {
            name: (self.scratch / name).read_text(errors="replace")
            if (self.scratch / name).exists()
            else ""
            for name in ("stdout", "stderr", "log")
        }
        events = tuple(
            (name, tuple(paths), tuple(tuple(stamp) for stamp in stamps))
            for name, paths, stamps in map(json.loads, read["log"].splitlines())
        )
        return Done(
            tuple(self._request["args"]),
            int(ended["code"]),
            read["stdout"],
            read["stderr"],
            float(ended["seconds"]),
            events,
        )

    def run(self, *args: object, root: Path, timeout: float = 300, **options: Any) -> Done:
        self.start(*args, root=root, **options)
        return self.wait(timeout)

    def _expect(self, event: str, timeout: float) -> dict[str, Any]:
        for index, message in enumerate(self._pending):
            if message["event"] == event:
                return self._pending.pop(index)
        kept = []
        while (message := self._next(timeout, fresh=True))["event"] != event:
            kept.append(message)
        self._pending = [*self._pending, *kept]
        return message

    def _next(self, timeout: float, *, fresh: bool = False) -> dict[str, Any]:
        if not fresh and self._pending:
            return self._pending.pop(0)
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError("the fork server does not answer")
            data = os.read(descriptor, 65536)
            if not data:
                raise AssertionError("the fork server died")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
