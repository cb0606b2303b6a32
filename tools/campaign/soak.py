"""For long: many checkpoints in one call, push and pull for 20 minutes, Ctrl-C in regen."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import factories
from tools.campaign.cases import Case, contents, error_codes, is_ours, live, regen_case
from tools.campaign.children import Server, clean_environment
from tools.campaign.kills import scratch
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"


def memory(pid: int) -> int:
    """Resident kilobytes of a process, 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def verify_many(count: int, note: Callable[[str], None]) -> dict[str, Any]:
    """One ``verify`` of ``count`` checkpoints, in text and in JSON; its memory over time."""
    result: dict[str, Any] = {"checkpoints": count}
    with scratch() as folder:
        paths = [_synthetic(folder / f"checkpoint-{n}", n) for n in range(1, count + 1)]
        note(f"{count} checkpoints written")
        for form in ("text", "json"):
            command = [sys.executable, "-m", "sla_ckpt", "verify", "--format", form]
            out = folder / "out"
            started = time.monotonic()
            with out.open("wb") as handle:
                process = subprocess.Popen(
                    [*command, *map(str, paths)],
                    stdout=handle,
                    stderr=subprocess.STDOUT,
                    env={**clean_environment(), "HOME": str(folder)},
                )
                curve = _curve(process)
            seconds = time.monotonic() - started
            # The first fifth is the start: imports, the first buffers.
            settled = curve[len(curve) // 5 :]
            result[form] = {
                "exit": process.returncode,
                "seconds": round(seconds, 1),
                "kilobytes_after_a_fifth": settled[0],
                "kilobytes_at_the_end": settled[-1],
                "kilobytes_at_most": max(curve),
                "kilobytes_more_per_checkpoint": round(
                    (settled[-1] - settled[0]) / (0.8 * count), 3
                ),
                "curve": curve[:: max(1, len(curve) // 40)],
                "output_bytes": out.stat().st_size,
            }
            note(f"{form}: { {k: v for k, v in result[form].items() if k != 'curve'} }")
    return result


def _curve(process: subprocess.Popen[bytes]) -> list[int]:
    curve = []
    while process.poll() is None:
        curve.append(memory(process.pid))
        time.sleep(0.05)
    return [value for value in curve if value]


def _synthetic(folder: Path, number: int) -> Path:
    """Every fifth is broken in one of four ways, so that findings are made too."""
    state = factories.state(seed=number)
    factories.write_full_checkpoint(folder, state, trainer=number % 2 == 0, shards=1 + number % 3)
    file = folder / "sla_attention.pt"
    if number % 20 == 5:
        file.write_bytes(file.read_bytes()[: 1000 + number])
    elif number % 20 == 10:
        file.unlink()
    elif number % 20 == 15:
        file.write_bytes(b"<html>" + b"x" * 1000)
    elif number % 20 == 0:
        next((folder / "transformer").glob("*.safetensors")).unlink()
    return folder


_LOOP = """
import json, os, random, sys, threading, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.hub.pull import PullOptions, pull
from sla_ckpt.hub.push import push
from sla_ckpt.checks.verify import verify
from tests import factories
folder, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
rng, checkpoint = random.Random(seed), folder / "checkpoint-500"
end, rounds = time.monotonic() + seconds, 0
def measure():
    status = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    return [rounds, int(status), len(os.listdir("/proc/self/fd")), threading.active_count()]
while time.monotonic() < end:
    state = factories.state(seed=rng.randrange(1 << 30))
    if rounds % 10 == 0:
        factories.write_full_checkpoint(checkpoint, state, shards=2)
    (checkpoint / "sla_attention.pt").write_bytes(encode_state(state))
    repo = f"alice/model-{rounds // 200}"
    pushed = push(repo, checkpoint)
    assert pushed.ok and pushed.commit, pushed.to_dict()
    target = folder / f"down-{rounds % 5}"
    pulled = pull(repo, target, PullOptions(force=True))
    assert pulled.ok, pulled.to_dict()
    sent, got = ((f / "sla_attention.pt").read_bytes() for f in (checkpoint, target))
    assert sent == got and verify(target).ok and not list(target.glob(".sla_ckpt*"))
    rounds += 1
    if rounds % 10 == 0 or rounds == 1:
        print(json.dumps(measure()), flush=True)
print(json.dumps(measure()), flush=True)
"""


def push_pull_loop(seconds: float, seed: int, note: Callable[[str], None]) -> dict[str, Any]:
    """One process pushes a new state and pulls it back, again and again."""
    with scratch() as folder, LoopbackHub(folder / "hub") as hub:
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token("write"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(folder / "hf"),
            "HOME": str(folder / "home"),
            "SLA_CKPT_CACHE": str(folder / "cache"),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(folder), str(seconds), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), **env},
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        rows: list[list[int]] = []
        for line in process.stdout:
            rows.append([int(v) for v in line.strip("[]\n").split(",")])
            hub.clear_requests()
            if len(rows) % 10 == 0:
                note(f"{rows[-1][0]} rounds, {rows[-1][1]} kB, {rows[-1][2]} files open")
        error = process.stderr.read() if process.stderr else ""
        code = process.wait()
        revisions = 0
        repos = [f"alice/model-{n}" for n in range(rows[-1][0] // 200 + 1) if rows]
        for repo in filter(hub.has_repo, repos):
            for commit in hub.all_commits(repo):
                weights = [p for p in commit.files if p.startswith("transformer/")]
                assert bool(weights) == ("sla_attention.pt" in commit.files)
                revisions += 1
    settled = rows[len(rows) // 5 :]
    return {
        "exit": code,
        "error": error[-2000:].replace(str(folder), "…"),
        "seconds": seconds,
        "rounds": rows[-1][0],
        "revisions_all_whole": revisions,
        "kilobytes_after_a_fifth": settled[0][1],
        "kilobytes_at_the_end": settled[-1][1],
        "open_files_first_and_last": [rows[0][2], rows[-1][2]],
        "threads_first_and_last": [rows[0][3], rows[-1][3]],
        "curve": [row[1] for row in rows[:: max(1, len(rows) // 40)]],
        "seed": seed,
    }


def interrupts(count: int, seed: int, note: Callable[[str], None]) -> dict[str, Any]:
    """``regen`` as its own process, Ctrl-C at a random time of its whole life."""
    # A shell that starts this in the background has Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(seed)
    tally: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    waits: list[float] = []
    with scratch() as folder:
        with Server("regen") as server:
            cases = [regen_case(folder / n, present=n == "two") for n in ("one", "two")]
            for number, case in enumerate(cases):
                case.measure(server, folder / f"measure-{number}" / "checkpoint-3")
        environment = {**clean_environment(), "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
        started = time.monotonic()
        done = _regen(
            cases[0], cases[0].fresh(folder / "whole" / "checkpoint-3"), environment, None
        )
        whole = time.monotonic() - started
        assert done[0] == 0, done
        for number in range(count):
            case = cases[number % 2]
            root = case.fresh(folder / "run" / "checkpoint-3")
            when = rng.uniform(0, whole)
            code, text, waited = _regen(case, root, environment, when)
            waits.append(waited)
            stages[_stage(text)] += 1
            try:
                _judge(case, root, code, text)
                state = case.check_killed(root)
                tally[f"exit {code}, {state}"] += 1
            except AssertionError as error:
                faults.append({"run": number, "when": round(when, 3), "what": str(error)[-2500:]})
                note(f"{number} at {when:.2f} s: {faults[-1]['what']}")
            if number % 10 == 9:
                note(f"{number + 1} of {count}: {dict(tally)}")
        note(f"{dict(tally)}, {dict(stages)}, {len(faults)} faults")
    return {
        "runs": count,
        "found": dict(tally),
        "stage_when_it_came": dict(stages),
        "seconds_of_a_whole_run": round(whole, 2),
        "seconds_to_the_end_after_it": {
            "median": round(statistics.median(waits), 2),
            "most": round(max(waits), 2),
        },
        "faults": faults,
        "seed": seed,
    }


def _regen(
    case: Case, root: Path, env: Mapping[str, str], when: float | None
) -> tuple[int, str, float]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sla_ckpt", *case.command(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(env),
    )
    sent = time.monotonic()
    if when is not None:
        time.sleep(when)
        sent = time.monotonic()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err, time.monotonic() - sent


def _stage(text: str) -> str:
    named = [line.split()[0] for line in text.splitlines() if line.endswith("…")]
    return named[-1] if named else "start"


def _judge(case: Case, root: Path, code: int, text: str) -> None:
    # -2: the signal came before Python itself had a handler.
    assert code in (0, 130, -signal.SIGINT), f"exit {code}\n{text}"
    assert code == 130 or "Traceback" not in text or _stage(text) == "start", text
    found = contents(root)
    assert not [path for path in found if is_ours(path)], sorted(found)
    seen = live(found)
    if code == 130 and seen != case.old:
        assert seen.keys() == case.reference.keys() or _stage(text) == "write", sorted(seen)
    assert error_codes(root) <= case.allowed, error_codes(root)
