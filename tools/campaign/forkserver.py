"""Runs the command line in forked children, so that 200 processes do not import torch 200 times.

``python -m tools.campaign.forkserver hub|regen`` imports once, then reads one JSON request a line
and forks a child for each. A child is a process of its own: it can be killed, limited in the size
of the files it writes, run as another user, and be made to fail or die at its n-th change of the
file system (an audit hook sees each before it happens; ``os.fsync``, which has no audit event, is
wrapped).
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Audit event -> positions of its paths, and of the directory descriptors they are relative to.
_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
}
_NAMES = {"os.rename": "rename", "os.remove": "unlink"}
#: Changes that need no room; a full disk lets them pass.
_FREE = {"rename", "unlink", "rmdir", "chmod"}
LOCK = ".sla_ckpt.lock"


@dataclass
class Tracer:
    """Counts the changes below a folder, writes them down, and acts at one of them.

    ``action`` is ``kill``, ``vanish:PATH`` (somebody removes that file), ``once:ERRNO`` or
    ``from:ERRNO``: this change fails, or it and all later ones that the error concerns.
    """

    root: str
    at: int
    action: str
    log: int | None
    announce: Callable[[], None] | None
    count: int = 0

    def install(self) -> None:
        sys.addaudithook(self._audit)
        real = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._meet("fsync", [f"/proc/self/fd/{number}"])
            real(descriptor)

        os.fsync = fsync

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & _WRITING:
                self._meet("open", [os.fsdecode(path)])
        elif event in _EVENTS:
            paths = []
            for position, relative_to in _EVENTS[event]:
                path = arguments[position]
                if not isinstance(path, (str, bytes, os.PathLike)):
                    return
                text = os.fsdecode(path)
                folder = arguments[relative_to] if relative_to is not None else -1
                if isinstance(folder, int) and folder >= 0:
                    text = f"/proc/self/fd/{folder}/{text}"
                paths.append(text)
            self._meet(_NAMES.get(event, event.removeprefix("os.")), paths)

    def _meet(self, name: str, paths: list[str]) -> None:
        paths = [_real(path) for path in paths]
        if name == "mkdir" and Path(paths[0]).is_dir():
            return
        if name == "fsync" and paths[0] == str(Path(self.root).parent) and self.log is not None:
            self._write_down(name, paths)  # where a new checkpoint gets its own name
            return
        if not any(path == self.root or path.startswith(self.root + "/") for path in paths):
            return
        self.count += 1
        if self.announce is not None and not paths[-1].endswith(LOCK):
            self.announce()
            self.announce = None
        if self.log is not None:
            self._write_down(name, paths)
        if self.action.startswith("from:") and self.count >= self.at > 0:
            code = int(self.action[5:])
            if code != errno.ENOSPC or name not in _FREE:
                raise OSError(code, os.strerror(code), paths[-1])
        if self.count == self.at:
            self._act(paths)

    def _act(self, paths: list[str]) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action.startswith("once:"):
            code = int(self.action[5:])
            raise OSError(code, os.strerror(code), paths[-1])
        if self.action.startswith("vanish:"):
            Path(self.action[7:]).unlink(missing_ok=True)

    def _write_down(self, name: str, paths: list[str]) -> None:
        assert self.log is not None
        stamps = []
        for path in paths:
            try:
                info = os.lstat(path)
                stamps.append([info.st_size, info.st_mtime_ns])
            except OSError:
                stamps.append([])
        line = json.dumps([name, [os.path.relpath(p, self.root) for p in paths], stamps])
        os.write(self.log, line.encode() + b"\n")


def _real(path: str) -> str:
    """Absolute, links in its folders resolved, the last part not."""
    if path.startswith("/proc/self/fd/"):
        number, _, rest = path[len("/proc/self/fd/") :].partition("/")
        try:
            opened = str(Path(f"/proc/self/fd/{number}").readlink())
        except OSError:
            return path
        return f"{opened}/{rest}" if rest else opened
    absolute = Path.cwd() / os.path.normpath(path)
    return f"{os.path.realpath(absolute.parent)}/{absolute.name}"


def _preload(kind: str) -> None:
    """What the commands import, without running any of it."""
    import sla_ckpt.cli.main
    import sla_ckpt.cli.migrate
    import sla_ckpt.cli.pull
    import sla_ckpt.cli.push
    import sla_ckpt.cli.verify
    import sla_ckpt.hub.pull
    import sla_ckpt.hub.push
    import sla_ckpt.migrate.api
    import sla_ckpt.migrate.show
    import sla_ckpt.migrate.verify_fix

    importlib.import_module("huggingface_hub.hf_api")
    if kind == "regen":
        import torch
        from diffusers import FluxTransformer2DModel  # noqa: F401

        import sla_ckpt.cli.regen
        import sla_ckpt.regen.engine  # noqa: F401

        torch.set_num_threads(1)


def _import_all() -> None:
    import pkgutil

    import sla_ckpt

    for name in ("_strptime", "encodings.idna", "encodings.utf_8_sig", "huggingface_hub.hf_api"):
        importlib.import_module(name)
    left_out = ("triton", "__main__", *(() if "torch" in sys.modules else ("attention", "regen")))
    for module in pkgutil.walk_packages(sla_ckpt.__path__, "sla_ckpt."):
        if not any(name in module.name for name in left_out):
            importlib.import_module(module.name)


def _limit(request: dict[str, Any]) -> None:
    if (limit := request.get("file_limit")) is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if request.get("limit_kills"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (uid := request.get("uid")) is not None:
        _import_all()  # another user may not reach the interpreter's folder
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _set_clock(now: float) -> None:
    """The time of day, for whoever asks Python for it."""
    real = time.gmtime
    time.time = lambda: now
    time.gmtime = lambda seconds=None: real(now if seconds is None else seconds)


def _child(request: dict[str, Any], channel: int) -> None:
    """Never returns."""
    streams = [
        os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for name in ("stdout", "stderr")
    ]
    log = None
    if request.get("log"):
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    reply = os.dup(channel)
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    announced = b'{"event": "write"}\n'
    tracer = Tracer(
        os.path.realpath(request["root"]),
        request.get("at", 0),
        request.get("action", ""),
        log,
        (lambda: (os.write(reply, announced), None)[1]) if request.get("announce") else None,
    )
    if "clock" in request:
        _set_clock(request["clock"])
    _limit(request)
    tracer.install()
    from sla_ckpt.cli.main import run

    code = 70
    try:
        run(request["args"])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 71
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 72
        os._exit(code)


def _serve() -> None:
    _preload(sys.argv[1])
    gc.collect()
    gc.freeze()
    channel = os.dup(1)
    os.write(channel, b'{"event": "ready"}\n')
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(request, channel)
        os.write(channel, json.dumps({"event": "started", "pid": child}).encode() + b"\n")
        _, status = os.waitpid(child, 0)
        ended = {
            "event": "ended",
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
        }
        os.write(channel, json.dumps(ended).encode() + b"\n")
    os._exit(0)  # what torch says when it is taken apart is no news


if __name__ == "__main__":
    _serve()
