"""Does everything reach the disk in the right order? Judged by the system calls of a run.

A new file is whole on the disk (fsync) before a rename gives it its final name, and the folder is
synced after the rename. A file that says "files are being replaced" is durable before the first
is. The calls come from strace, or from the hooks of the fork server, which see everything but the
writes themselves; there the size and time of a file must be the same at its fsync and its rename.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.layout import (
    MIGRATION_JOURNAL,
    MIGRATION_STAGING,
    PULL_MARKER,
    PULL_STAGING,
)
from tools.campaign.cases import is_backup, is_ours
from tools.campaign.children import Done, clean_environment
from tools.campaign.kills import COMMANDS, cases, scratch

_TRACED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,ftruncate,fsync,fdatasync,rename,renameat,"
    "renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,copy_file_range,sendfile"
)
_LINE = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)\) += (?P<result>-?\d+)")
_STRING = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<folder>[^>]*)>, )?"(?P<path>(?:[^"\\]|\\.)*)"')
_OPENED = re.compile(r"\d+<(?P<path>[^>]*)>")
_MARKERS = (f"{MIGRATION_STAGING}/{MIGRATION_JOURNAL}", f"{PULL_STAGING}/{PULL_MARKER}")


@dataclass(frozen=True)
class Call:
    """One call: its name, its paths from the checkpoint on, and size and time where known."""

    name: str
    paths: tuple[str, ...]
    stamp: tuple[int, ...] | None = None


def calls_of(done: Done) -> list[Call]:
    """What the hooks of the fork server saw."""
    return [
        Call(name, paths, stamps[0] if name in ("fsync", "rename") else None)
        for name, paths, stamps in done.events
    ]


def violations(calls: Sequence[Call]) -> list[str]:
    """What a power cut could damage; empty when the order is right."""
    found = []
    for index, call in enumerate(calls):
        if (call.name == "rename" and not is_ours(call.paths[1])) or _is_marker(call):
            found += _of_rename(calls, index)
        elif call.name == "link" and is_backup(call.paths[1]):
            if not _synced(calls[index:], _folder(call.paths[1])):
                found.append(f"the folder is not synced after the backup {call.paths[1]}")
        elif (
            call.name == "mkdir"
            and not is_ours(call.paths[0])
            and not _synced(calls[index:], _folder(call.paths[0]))
        ):
            found.append(f"the new folder {call.paths[0]} is not synced")
    return found


def _is_marker(call: Call) -> bool:
    return call.name == "rename" and call.paths[1] in _MARKERS


def _of_rename(calls: Sequence[Call], index: int) -> list[str]:
    source, target = calls[index].paths
    found = []
    before = calls[:index]
    written = [n for n, c in enumerate(before) if c.name in ("open", "write") and source in c.paths]
    synced = [n for n, c in enumerate(before) if c.name == "fsync" and c.paths == (source,)]
    # A file that was renamed or linked into its temporary name is not written there.
    if not synced:
        found.append(f"{target}: its content is not synced before the rename")
    elif written and written[-1] > synced[-1]:
        found.append(f"{target}: written after its fsync")
    elif calls[index].stamp is not None and before[synced[-1]].stamp != calls[index].stamp:
        found.append(f"{target}: changed between fsync and rename")
    if not _synced(calls[index:], _folder(target)):
        found.append(f"{target}: the folder is not synced after the rename")
    if not _is_marker(calls[index]):
        for marker in _MARKERS:
            placed = [n for n, c in enumerate(before) if _is_marker(c) and c.paths[1] == marker]
            if placed and not _synced(calls[placed[-1] : index], _folder(marker)):
                found.append(f"{target} is replaced before {marker} is durable")
    return found


def _synced(calls: Iterable[Call], folder: str) -> bool:
    return any(call.name == "fsync" and call.paths == (folder,) for call in calls)


def _folder(path: str) -> str:
    if path == ".":
        return ".."
    return path.rpartition("/")[0] or ("." if not path.startswith("..") else "..")


def renames(calls: Iterable[Call]) -> int:
    return sum(call.name == "rename" and not is_ours(call.paths[1]) for call in calls)


def parse_strace(text: str, root: Path) -> list[Call]:
    """The calls below a folder, in the order in which they returned."""
    calls, waiting = [], {}
    for line in text.splitlines():
        pid = line.partition(" ")[0]
        if "<unfinished ...>" in line:
            waiting[pid] = line.partition(" <unfinished ...>")[0]
            continue
        if "<... " in line and pid in waiting:
            line = waiting.pop(pid) + line.partition(" resumed>")[2]
        match = _LINE.match(line)
        if match is None or match["result"].startswith("-"):
            continue
        name = _name(match["name"], match["rest"])
        if name is None:
            continue
        paths = tuple(_relative(path, root) for path in _paths(name, match["rest"]))
        if paths and any(not path.startswith("..") or path == ".." for path in paths):
            calls.append(Call(name, paths))
    return calls


def _name(name: str, rest: str) -> str | None:
    if name in ("open", "openat", "creat"):
        writes = name == "creat" or re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", rest)
        return "open" if writes else None
    for short in ("fsync", "rename", "link", "unlink", "mkdir"):
        if name.startswith(short):
            return short
    return {"fdatasync": "fsync"}.get(name, "write")


def _paths(name: str, rest: str) -> list[str]:
    if name in ("write", "fsync"):
        opened = _OPENED.match(rest)
        return [opened["path"]] if opened else []
    wanted = 2 if name in ("rename", "link") else 1
    found = []
    for match in list(_STRING.finditer(rest))[:wanted]:
        path, folder = match["path"], match["folder"]
        found.append(path if path.startswith("/") or not folder else f"{folder}/{path}")
    return found


def _relative(path: str, root: Path) -> str:
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError:
        return ".." if Path(path) == root.parent else "../outside"


def traced(args: Sequence[str], root: Path, env: dict[str, str]) -> list[Call]:
    """Run the real command under strace."""
    log = root.parent.parent / "strace.log"
    command = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", f"trace={_TRACED}"]
    command += ["-s", "4096", "-o", str(log), sys.executable, "-m", "sla_ckpt", *args]
    done = subprocess.run(
        command, env={**clean_environment(), **env}, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise AssertionError(done.stdout + done.stderr)
    return parse_strace(log.read_text(errors="replace"), root)


def campaign(note: Callable[[str], None]) -> dict[str, Any]:
    """Every command under strace."""
    result: dict[str, Any] = {}
    for command in COMMANDS:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            _, found = stack.enter_context(cases(command, folder))
            runs = []
            for case in found:
                root = case.fresh(folder / "run" / "checkpoint-3")
                env = {"HOME": str(folder / "home"), **case.env}
                calls = traced(case.command(root), root, env)
                runs.append(
                    {
                        "calls": len(calls),
                        "writes": sum(call.name == "write" for call in calls),
                        "fsyncs": sum(call.name == "fsync" for call in calls),
                        "files_put_in_place": renames(calls),
                        "violations": violations(calls),
                    }
                )
                assert renames(calls), "nothing was put in place"
                case.check_killed(root)
            result[command] = runs
            note(f"{command}: {runs}")
    return result
