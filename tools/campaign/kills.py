"""kill -9 of real processes: at random times, at every change of a file, and inside writes."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tools.campaign.cases import (
    Case,
    contents,
    error_codes,
    fix_case,
    is_ours,
    migrate_case,
    pull_case,
    regen_case,
)
from tools.campaign.children import Server
from tools.loopback_hub import LoopbackHub

COMMANDS = ("migrate", "fix", "regen", "pull")


@contextmanager
def cases(
    command: str, folder: Path, *, hub_port: int | None = None
) -> Iterator[tuple[Server, list[Case]]]:
    """A fork server and the cases of a command, measured."""
    with ExitStack() as stack:
        # Before the Hub, whose sockets the children would else inherit.
        kind = "hub" if command == "pull" else "regen"
        server = stack.enter_context(Server(kind, hub_port=hub_port))
        yield server, stack.enter_context(measured(command, server, folder))


@contextmanager
def measured(command: str, server: Server, folder: Path) -> Iterator[list[Case]]:
    """The cases of a command, a whole run of each behind them."""
    with ExitStack() as stack:
        if command == "migrate":
            found = [migrate_case(folder / "one")]
        elif command == "fix":
            found = [fix_case(folder / "one")]
        elif command == "regen":
            found = [regen_case(folder / n, present=n == "two") for n in ("one", "two")]
        else:
            hub = stack.enter_context(LoopbackHub(folder / "hub", port=server.hub_port))
            found = [pull_case(hub, folder / n, over=n == "two") for n in ("one", "two")]
        for number, case in enumerate(found):
            case.measure(server, folder / f"measure-{number}" / "checkpoint-3")
        yield found


def random_kills(
    command: str, count: int, seed: int, note: Callable[[str], None]
) -> dict[str, Any]:
    """``count`` kills that hit a running process. Four of five fall after its first write."""
    rng = random.Random(f"{seed}-{command}")
    tally: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    leftovers: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    started = time.monotonic()
    with scratch() as folder, cases(command, folder) as (server, found):
        seconds = [round(case.seconds, 4) for case in found]
        hits = trial = 0
        while hits < count:
            trial += 1
            case = found[trial % len(found)]
            root = case.fresh(folder / "run" / "checkpoint-3")
            when = _kill_once(server, case, root, rng)
            done = server.wait()
            # The machine is shared: follow how long the command takes now.
            case.seconds *= 1.01 if done.code == -9 else 0.95
            if done.code != -9:
                tally["ended before the kill"] += 1
                assert done.code == 0, done.text
                continue
            hits += 1
            try:
                left = [p for p in contents(root) if is_ours(p)] if root.exists() else []
                leftovers["some" if left else "none"] += 1
                tally[judge_killed(case, server, root, codes)] += 1
            except AssertionError as error:
                faults.append({"trial": trial, "when": when, "what": _clean(str(error), folder)})
                note(f"{command} {trial} {when}: {faults[-1]['what']}")
            if hits % 50 == 0:
                note(f"{command}: {hits} kills, {dict(tally)}, {len(faults)} faults")
    return {
        "kills": hits,
        "ended_before_the_kill": tally.pop("ended before the kill", 0),
        "found_after_the_kill": dict(tally),
        "working_files_left_by_the_kill": dict(leftovers),
        "error_codes_while_interrupted": dict(codes),
        "seconds_of_the_write_part": seconds,
        "faults": faults,
        "seed": seed,
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def _kill_once(server: Server, case: Case, root: Path, rng: random.Random) -> str:
    """Start, wait, kill; when it was, in words."""
    server.start(*case.command(root), root=root, env=case.env, announce=True)
    if rng.random() < 0.8:
        if not server.wait_for_write():
            return "ended"
        delay = rng.uniform(0, case.seconds * 1.1)
        time.sleep(delay)
        server.kill()
        return f"{delay * 1000:.1f} ms after the first write"
    delay = rng.uniform(0, case.seconds * 1.5)
    time.sleep(delay)
    server.kill()
    return f"{delay * 1000:.1f} ms after the start"


def boundary_kills(command: str, note: Callable[[str], None]) -> dict[str, Any]:
    """A kill before each change of the file system that a command makes, then inside writes."""
    tally: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    events: list[int] = []
    inside = 0
    with scratch() as folder, cases(command, folder) as (server, found):
        for case in found:
            for options in _everywhere(case):
                root = case.fresh(folder / "run" / "checkpoint-3")
                done = case.run(server, root, **options)
                if done.code == 0:
                    continue
                inside += "file_limit" in options
                events.append(options.get("at", 0))
                try:
                    assert done.code in (-9, -25), done.text
                    tally[judge_killed(case, server, root, codes)] += 1
                except AssertionError as error:
                    faults.append({**options, "what": _clean(str(error), folder)})
                    note(f"{command} {options}: {faults[-1]['what']}")
    note(f"{command}: {len(events)} boundaries, {dict(tally)}, {len(faults)} faults")
    return {
        "boundaries": len(events) - inside,
        "kills_inside_a_write": inside,
        "found_after_the_kill": dict(tally),
        "error_codes_while_interrupted": dict(codes),
        "faults": faults,
    }


def judge_killed(case: Case, server: Server, root: Path, codes: Counter[str]) -> str:
    """What a killed run left is whole, verify names a mix, and a rerun comes to its end."""
    state = case.check_killed(root)
    if state != "absent":
        new = error_codes(root) - case.allowed
        codes.update(new)
        if state == "between" and case.name != "regen":
            assert "SLA301" in new, "old and new are mixed, and verify does not say so"
        assert case.name != "regen" or not new, new
    case.check_rerun(case.run(server, root), root)
    return state


def _everywhere(case: Case) -> Iterator[dict[str, Any]]:
    """Every change, with some room for runs that make a few more; then sizes at which the kernel
    ends a process that writes on (SIGXFSZ), in the middle of a file."""
    for at in range(1, case.events + 1):
        yield {"at": at, "action": "kill"}
    for size in (4096, 8192, 30_000, 60_000, 100_000, 200_000, 260_000, 400_000, 524_288):
        yield {"file_limit": size, "limit_kills": True}


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sla-campaign-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clean(text: str, folder: Path) -> str:
    return text.replace(str(folder), "…").strip()[:2000]
