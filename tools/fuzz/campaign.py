"""Many inputs in worker processes that may crash or hang without ending the campaign."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tools.fuzz import limits
from tools.fuzz.running import Finding, Tally, make_input, run, warm_up

_BATCH = 1000
#: A worker that spends this long on one input is killed.
_HANG_SECONDS = 30.0
#: For its imports, on a busy machine.
_START_SECONDS = 600.0
_REPORT_SECONDS = 30.0


@dataclass(frozen=True)
class Campaign:
    """What to run: indexes ``first`` to ``first + inputs`` of a seed, over some targets."""

    seed: int
    first: int
    inputs: int
    jobs: int
    names: tuple[str, ...]


@dataclass
class _Worker:
    """A process and the batch that it works on."""

    process: Any
    connection: Connection
    progress: Any
    batch: tuple[int, int] | None = None
    skip: set[int] = field(default_factory=set)
    seen: tuple[int, float] = (-1, 0.0)


def run_campaign(
    campaign: Campaign,
    *,
    output: Path | None = None,
    keep: Path | None = None,
    signatures: Path | None = None,
) -> dict[str, Any]:
    """Run a campaign to its end.

    Args:
        campaign: What to run.
        output: Write the figures there, every half minute and at the end.
        keep: Folder for one input of each kind of finding.
        signatures: Folder for the smallest input of each different verdict.

    Returns:
        The figures.
    """
    total = Tally()
    started = time.monotonic()
    stop = campaign.first + campaign.inputs
    pending = [(n, min(n + _BATCH, stop)) for n in range(campaign.first, stop, _BATCH)][::-1]
    workers = [_start(campaign) for _ in range(campaign.jobs)]
    peak_rss = 0
    reported = started
    try:
        while pending or any(worker.batch for worker in workers):
            for position, worker in enumerate(workers):
                if worker.batch is None and pending:
                    _give(worker, pending.pop())
                elif worker.batch is not None and _stuck(worker):
                    workers[position] = _replace(worker, campaign, total)
            ready = wait([worker.connection for worker in workers if worker.batch], timeout=1)
            for position, worker in enumerate(workers):
                if worker.connection in ready:
                    try:
                        tally, rss = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        workers[position] = _replace(worker, campaign, total)
                        continue
                    total.add(tally)
                    peak_rss = max(peak_rss, rss)
                    worker.batch = None
                    worker.skip = set()
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                figures = _figures(campaign, total, reported - started, peak_rss, complete=False)
                _report(figures, output)
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.join(5)
            worker.process.kill()
    _keep(campaign, total, keep, signatures)
    figures = _figures(campaign, total, time.monotonic() - started, peak_rss, complete=True)
    _report(figures, output)
    return figures


def _start(campaign: Campaign) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    progress = context.Value("q", -1, lock=False)
    process = context.Process(target=_work, args=(theirs, progress, campaign), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, progress)


def _work(connection: Connection, progress: Any, campaign: Campaign) -> None:
    warm_up(campaign.names)
    while True:
        try:
            start, stop, skip = connection.recv()
        except EOFError:
            return
        tally = run(campaign.seed, start, stop, campaign.names, progress, skip)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send((tally, rss))


def _give(worker: _Worker, batch: tuple[int, int]) -> None:
    worker.batch = batch
    worker.seen = (-1, time.monotonic())
    worker.connection.send((*batch, worker.skip))


def _stuck(worker: _Worker) -> bool:
    current = worker.progress.value
    if current != worker.seen[0]:
        worker.seen = (current, time.monotonic())
    limit = _START_SECONDS if current < 0 else _HANG_SECONDS
    return time.monotonic() - worker.seen[1] > limit


def _replace(worker: _Worker, campaign: Campaign, total: Tally) -> _Worker:
    """Note the input that killed or stopped a worker, and run its batch again without it."""
    index = worker.progress.value
    if index < 0:
        raise RuntimeError("a worker ended before its first input")
    hung = worker.process.is_alive() and _stuck(worker)
    worker.process.kill()
    worker.process.join()
    target, _ = make_input(campaign.seed, index, campaign.names)
    what = "hangs" if hung else f"the process dies, exit code {worker.process.exitcode}"
    total.findings.append(Finding(target.name, index, what))
    total.inputs[target.name] += 1
    fresh = _start(campaign)
    fresh.skip = {*worker.skip, index}
    assert worker.batch is not None
    _give(fresh, worker.batch)
    return fresh


def _keep(campaign: Campaign, total: Tally, keep: Path | None, signatures: Path | None) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for finding in {each.kind: each for each in total.findings}.values():
            _, data = make_input(campaign.seed, finding.index, campaign.names)
            (keep / f"{finding.target}-{finding.index}").write_bytes(data)
            (keep / f"{finding.target}-{finding.index}.txt").write_text(finding.kind + "\n")
    if signatures is not None:
        signatures.mkdir(parents=True, exist_ok=True)
        for name, (_, index) in total.signatures.items():
            target, data = make_input(campaign.seed, index, campaign.names)
            (signatures / f"{target.name}-{index}").write_bytes(data)
            (signatures / f"{target.name}-{index}.txt").write_text(name + "\n")


def _figures(
    campaign: Campaign, total: Tally, seconds: float, peak_rss: int, *, complete: bool
) -> dict[str, Any]:
    import torch

    kinds = Counter(finding.kind for finding in total.findings)
    example = {finding.kind: finding.index for finding in total.findings}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": campaign.seed,
        "first": campaign.first,
        "complete": complete,
        "inputs": sum(total.inputs.values()),
        "seconds": round(seconds),
        "targets": {
            name: {"inputs": count,
            "outcomes": dict(total.outcomes.get(name, Counter()).most_common())}
            for name, count in sorted(total.inputs.items())
        },
        "findings": [
            {"kind": kind, "count": count, "index": example[kind]}
            for kind, count in kinds.most_common()
        ],
        "different_verdicts": len(total.signatures),
        "largest_input_bytes": total.largest_input,
        "bounds": {"seconds": limits.SECONDS, "memory": "10 x size + 64 MB"},
        "worst_seconds": round(total.worst_seconds, 3),
        "worst_input": total.worst_at,
        "memory_traced_inputs": total.traced,
        "memory_traced_peak_bytes": total.traced_peak,
        "memory_traced_share_of_bound": round(total.traced_share, 3),
        "process_peak_rss_bytes": peak_rss,
    }  # fmt: skip


def _commit() -> str:
    """The commit of the code that runs, marked when the files differ from it."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout.strip() or "unknown"


def _report(figures: dict[str, Any], output: Path | None) -> None:
    found = sum(each["count"] for each in figures["findings"])
    print(f"{figures['inputs']:,} inputs, {found:,} findings of {len(figures['findings'])} kinds, "
          f"{figures['seconds']} s", file=sys.stderr)  # fmt: skip
    if output is not None:
        staged = output.with_name(f".{output.name}.{os.getpid()}")
        staged.write_text(json.dumps(figures, indent=2) + "\n")
        staged.replace(output)
