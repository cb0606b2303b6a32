"""Disks that fill up, turn read-only or fail, files that vanish, two writers, links, the clock.

Most of it is injected at every change of a file in turn. What needs a real file system (tmpfs of a
few pages, immutable files, another user) needs root on Linux.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sla_ckpt.state import STATE_FILE
from tools.campaign.cases import Case, contents, error_codes, inodes, is_ours, live
from tools.campaign.children import Done, Server
from tools.campaign.kills import COMMANDS, cases, scratch

#: Who is nobody on every Linux.
NOBODY = 65534
Note = Callable[[str], None]


class Judge:
    """Counts outcomes and collects what should not be."""

    def __init__(self, note: Note) -> None:
        self.tally: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self._note = note

    @contextmanager
    def __call__(self, what: str, folder: Path) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            text = str(error).replace(str(folder), "…")[:2500]
            self.faults.append({"case": what, "what": text})
            self._note(f"{what}: {text}")

    def failed(self, case: Case, root: Path, done: Done) -> None:
        """A command that could not write says so in one line and leaves old or new, whole."""
        assert done.code in (0, 1, 2), done.text
        assert "Traceback" not in done.stderr, done.text
        assert "this is unexpected" not in done.stderr, done.text
        state = case.check_killed(root)
        self.tally[f"exit {done.code}, {state}"] += 1
        if state == "between" and case.name != "regen":
            assert "SLA301" in error_codes(root), f"mixed and nobody says so\n{done.text}"
        if done.code == 2 and not (case.name == "fix" and "error cannot read" in done.stdout):
            said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            assert len(said) == 1, done.text
            if state == "old" and case.name != "pull":
                left = [path for path in contents(root) if is_ours(path)]
                assert not left or "from:30" in done.text or _cannot_remove(done), f"left {left}"

    def result(self) -> dict[str, Any]:
        return {"found": dict(sorted(self.tally.items())), "faults": self.faults}


def _cannot_remove(done: Done) -> bool:
    return any(text in done.stderr for text in ("Read-only", "Input/output"))


#: What happens to one change, or from one on: the disk full, over quota, failing, read-only.
INJECTED = (
    f"from:{errno.ENOSPC}",
    f"once:{errno.ENOSPC}",
    f"once:{errno.EDQUOT}",
    f"once:{errno.EIO}",
    f"from:{errno.EROFS}",
)


@dataclass(frozen=True)
class Trial:
    """One case of a command, where it runs and who judges it."""

    command: str
    case: Case
    server: Server
    folder: Path
    judge: Judge

    @property
    def root(self) -> Path:
        return self.folder / "run" / "checkpoint-3"


def _by_command(
    note: Note, what: str, commands: tuple[str, ...], attempt: Callable[[Trial], int]
) -> dict[str, Any]:
    """Attempt every case of every command.

    Args:
        attempt: Returns how often it ran the command.
    """
    result = {}
    for command in commands:
        judge = Judge(note)
        with scratch() as folder, cases(command, folder) as (server, found):
            runs = sum(attempt(Trial(command, case, server, folder, judge)) for case in found)
        result[command] = {"runs": runs, **judge.result()}
        faults = len(judge.faults)
        note(f"{what}, {command}: {runs} runs, {faults} faults, {result[command]['found']}")
    return result


def injected(note: Note, commands: tuple[str, ...] = COMMANDS, step: int = 1) -> dict[str, Any]:
    """Every error at every change of a file, and the state file vanishing there."""

    def attempt(trial: Trial) -> int:
        case, server, root = trial.case, trial.server, trial.root
        actions = [*INJECTED, f"vanish:{root / STATE_FILE}"]
        places = range(1, case.events + 1, step)
        for at in places:
            for action in actions:
                case.fresh(root)
                done = case.run(server, root, at=at, action=action)
                what = f"{trial.command} {action.partition('/')[0]} at {at}"
                with trial.judge(what, trial.folder):
                    if action.startswith("vanish"):
                        vanished(case, root, done, trial.judge)
                        continue
                    trial.judge.failed(case, root, done)
                    case.check_rerun(case.run(server, root), root)
        return len(places) * len(actions)

    return _by_command(note, "injected", commands, attempt)


def vanished(case: Case, root: Path, done: Done, judge: Judge) -> None:
    """Somebody removed the state file on the way: no traceback, and what is there is whole."""
    assert done.code in (0, 1, 2), done.text
    assert "Traceback" not in done.stderr and "this is unexpected" not in done.stderr, done.text
    found = live(contents(root)) if root.exists() else {}
    for path, digest in found.items():
        known = {case.old.get(path), case.reference.get(path)}
        assert digest in known or not case.repeatable, f"{path} is neither old nor new"
    judge.tally[f"vanished: exit {done.code}, state {STATE_FILE in found}"] += 1


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


#: From none to enough.
FREE_PAGES = (0, 1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)


def full_disk(note: Note, commands: tuple[str, ...] = COMMANDS) -> dict[str, Any]:
    """A tmpfs with a few free pages."""

    def attempt(trial: Trial) -> int:
        # pull asks for 64 MiB to spare before it starts, so its disk fills on the way.
        size = 96 if trial.command == "pull" else 8
        with mounted(trial.folder / "disk", f"size={size}m") as disk:
            root = disk / "checkpoint-3"
            for pages in FREE_PAGES:
                trial.case.fresh(root)
                with trial.judge(f"{trial.command}, {pages} pages free", trial.folder):
                    done = _fill_and_run(trial.case, trial.server, root, disk, pages)
                    trial.judge.failed(trial.case, root, done)
                    (disk / "ballast").unlink(missing_ok=True)
                    trial.case.check_rerun(trial.case.run(trial.server, root), root)
        return len(FREE_PAGES)

    return _by_command(note, "full disk", commands, attempt)


def _fill_and_run(case: Case, server: Server, root: Path, disk: Path, pages: int) -> Done:
    ballast = disk / "ballast"
    if case.name != "pull":
        _fill(ballast, disk, pages)
        return case.run(server, root)
    server.start(*case.command(root), root=root, env=case.env, announce=True)
    if server.wait_for_write():
        _fill(ballast, disk, pages)
    return server.wait()


def _fill(ballast: Path, disk: Path, pages: int) -> None:
    with ballast.open("wb") as handle:
        while True:
            free = shutil.disk_usage(disk).free - pages * 4096
            try:
                os.posix_fallocate(handle.fileno(), 0, max(1, free))
            except OSError:
                continue  # the command took some of it meanwhile
            return


FILE_LIMITS = (1, 2, 3, 4, 8, 16, 32, 64, 66, 100, 200, 260, 300, 400, 900)


def limited(note: Note) -> dict[str, Any]:
    """The kernel refuses the rest of a write in the middle of a file, as a quota does.

    (RLIMIT_FSIZE, EFBIG; a quota's own EDQUOT is among the injected errors.)
    """

    def attempt(trial: Trial) -> int:
        case, server, root = trial.case, trial.server, trial.root
        for kilobytes in FILE_LIMITS:
            case.fresh(root)
            with trial.judge(f"{trial.command}, files up to {kilobytes} kB", trial.folder):
                done = case.run(server, root, file_limit=kilobytes * 1024)
                trial.judge.failed(case, root, done)
                case.check_rerun(case.run(server, root), root)
        return len(FILE_LIMITS)

    return _by_command(note, "limited", COMMANDS, attempt)


def no_permission(note: Note) -> dict[str, Any]:
    """A read-only disk, a folder of somebody else, immutable files, files one may not read."""
    judge = Judge(note)
    runs = 0
    for command in COMMANDS:
        with scratch() as folder, cases(command, folder) as (server, found):
            folder.chmod(0o755)
            for case in found:
                for how in ("ro", "owner", "immutable file", "immutable folder", "unreadable"):
                    with mounted(folder / "disk", "size=64m") as disk:
                        place = folder / "plain" if how.startswith("immutable") else disk
                        root = case.fresh(place / "checkpoint-3")
                        root.mkdir(parents=True, exist_ok=True)
                        options = _take_away(how, root, disk, folder)
                        try:
                            with judge(f"{command}, {how}", folder):
                                before = inodes(root)
                                done = case.run(server, root, **options)
                                runs += 1
                                judge.failed(case, root, done)
                                if how in ("ro", "owner", "immutable folder"):
                                    assert inodes(root) == before, "something was written"
                                    assert done.code in (1, 2) or command == "fix", done.text
                        finally:
                            _give_back(root, disk)
                            shutil.rmtree(folder / "plain", ignore_errors=True)
    note(f"no permission: {runs} runs, {judge.result()['found']}")
    return {"runs": runs, **judge.result()}


def _take_away(how: str, root: Path, disk: Path, folder: Path) -> dict[str, Any]:
    if how == "ro":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    elif how == "owner":
        return {"uid": NOBODY}
    elif how == "immutable file":
        for name in (STATE_FILE, "optimizer.bin"):
            if (root / name).exists():
                subprocess.run(["chattr", "+i", str(root / name)], check=True)
    elif how == "immutable folder":
        subprocess.run(["chattr", "+i", str(root)], check=True)
    else:
        for path in root.rglob("*"):
            os.chown(path, NOBODY, NOBODY)
        os.chown(root, NOBODY, NOBODY)
        for path in (root / STATE_FILE, root / "transformer" / "config.json"):
            if path.exists():
                path.chmod(0)
        return {"uid": NOBODY}
    return {}


def _give_back(root: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=False, capture_output=True)
    subprocess.run(["chattr", "-R", "-i", str(root)], check=False, capture_output=True)


def two_writers(rounds: int, seed: int, note: Note) -> dict[str, Any]:
    """The same command twice at once, the second a moment later."""
    rng = random.Random(seed)
    result = {}
    for command in COMMANDS:
        judge = Judge(note)
        with (
            Server("hub" if command == "pull" else "regen") as other,
            scratch() as folder,
            cases(command, folder, hub_port=other.hub_port) as (server, found),
        ):
            for number in range(rounds):
                case = found[number % len(found)]
                root = case.fresh(folder / "run" / "checkpoint-3")
                server.start(*case.command(root), root=root, env=case.env)
                time.sleep(rng.uniform(0, case.seconds))
                other.start(*case.command(root), root=root, env=case.env)
                pair = (server.wait(), other.wait())
                with judge(f"{command}, round {number}", folder):
                    judge_pair(case, root, pair, judge)
        result[command] = {"rounds": rounds, **judge.result()}
        note(f"two writers, {command}: {result[command]}")
    return result


def judge_pair(case: Case, root: Path, pair: tuple[Done, Done], judge: Judge) -> None:
    both = "\n".join(done.text for done in pair)
    codes = sorted(done.code for done in pair)
    judge.tally[f"exits {codes[0]} and {codes[1]}"] += 1
    assert codes[0] == 0 and codes[1] in (0, 1, 2), both
    assert "Traceback" not in both and "this is unexpected" not in both, both
    found = contents(root)
    assert not [path for path in found if is_ours(path)], sorted(found)
    state = case.check_killed(root, rewritten=not case.repeatable)
    assert state == "new" or not case.repeatable, f"{state}\n{both}"
    assert error_codes(root) <= case.allowed, both


def links(note: Note) -> dict[str, Any]:
    """Files that are links into a cache, and files with a second name: both keep their bytes."""
    judge = Judge(note)
    runs = 0
    for command in COMMANDS:
        with scratch() as folder, cases(command, folder) as (server, found):
            for case in found:
                for hard in (False, True):
                    root = case.fresh(folder / "run" / "checkpoint-3")
                    blobs = folder / "blobs"
                    shutil.rmtree(blobs, ignore_errors=True)
                    root.mkdir(parents=True, exist_ok=True)
                    link_out(root, blobs, hard)
                    kept = contents(blobs)
                    kept_inodes = inodes(blobs)
                    with judge(f"{command}, {'hard' if hard else 'symbolic'} links", folder):
                        done = case.run(server, root)
                        runs += 1
                        assert done.code == 0, done.text
                        assert contents(blobs) == kept, "written through a link"
                        assert inodes(blobs) == kept_inodes
                        state = case.check_killed(root)
                        judge.tally[f"exit {done.code}, {state}"] += 1
                        assert state == "new" or not case.repeatable
    note(f"links: {runs} runs, {judge.result()}")
    return {"runs": runs, **judge.result()}


def link_out(root: Path, blobs: Path, hard: bool) -> None:
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
        blob = blobs / str(number)
        if hard:
            os.link(path, blob)
        else:
            path.rename(blob)
            path.symlink_to(os.path.relpath(blob, path.parent))


def clock(note: Note) -> dict[str, Any]:
    """Repairs within one second, and while the clock goes back an hour: every backup is kept."""
    judge = Judge(note)
    backups = 0
    for command in ("migrate", "fix", "regen"):
        with scratch() as folder, cases(command, folder) as (server, found):
            case = found[-1]
            root = case.fresh(folder / "run" / "checkpoint-3")
            expected: Counter[str] = Counter()
            with judge(f"{command}, clock", folder):
                for now in (1_700_003_600, 1_700_003_600, 1_700_003_600, 1_700_000_000, 1):
                    for path in case.old:
                        shutil.copy(case.before / path, root / path)
                    done = case.run(server, root, clock=now)
                    assert done.code == 0, done.text
                    changed = (p for p in case.old if case.reference[p] != case.old[p])
                    if case.repeatable:
                        expected.update(case.old[p] for p in changed)
                    else:
                        expected[case.old[STATE_FILE]] += 1
                    held = Counter(d for p, d in contents(root).items() if ".bak-" in p)
                    assert all(held[digest] >= n for digest, n in expected.items()), (
                        f"backups lost: {held} {expected}"
                    )
                backups += sum(expected.values())
                judge.tally["five runs, every backup kept"] += 1
    note(f"clock: {backups} backups, {judge.result()}")
    return {"backups": backups, **judge.result()}


PARTS: dict[str, Callable[[Note], dict[str, Any]]] = {
    "links": links,
    "clock": clock,
    "no_permission": no_permission,
    "limited": limited,
    "full_disk": full_disk,
    "injected": injected,
}


def campaign(chosen: list[str], rounds: int, seed: int, note: Note) -> dict[str, Any]:
    """All of it, or the chosen parts."""
    result: dict[str, Any] = {"seed": seed}
    for name, part in PARTS.items():
        if not chosen or name in chosen:
            result[name] = part(note)
    if not chosen or "two_writers" in chosen:
        result["two_writers"] = two_writers(rounds, seed, note)
    return result
