"""``python -m tools.campaign NAME [--count N] [--seed N]``: run a part and keep its figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.campaign import faults, kills, powerloss, pushes, soak

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run_kills(options: argparse.Namespace) -> dict[str, Any]:
    return {
        command: kills.random_kills(command, options.count or 200, options.seed, note)
        for command in options.commands or kills.COMMANDS
    }


def run_boundaries(options: argparse.Namespace) -> dict[str, Any]:
    return {
        command: kills.boundary_kills(command, note)
        for command in options.commands or kills.COMMANDS
    }


def run_pushes(options: argparse.Namespace) -> dict[str, Any]:
    return pushes.campaign(options.count or 500, options.seed, note)


def run_powerloss(options: argparse.Namespace) -> dict[str, Any]:
    return powerloss.campaign(note)


def run_verify(options: argparse.Namespace) -> dict[str, Any]:
    return soak.verify_many(options.count or 2000, note)


def run_loop(options: argparse.Namespace) -> dict[str, Any]:
    return soak.push_pull_loop(options.seconds or 1200, options.seed, note)


def run_interrupts(options: argparse.Namespace) -> dict[str, Any]:
    return soak.interrupts(options.count or 50, options.seed, note)


def run_faults(options: argparse.Namespace) -> dict[str, Any]:
    return faults.campaign(options.commands or [], options.count or 30, options.seed, note)


PARTS = {
    "faults": run_faults,
    "verify": run_verify,
    "loop": run_loop,
    "interrupts": run_interrupts,
    "kills": run_kills,
    "boundaries": run_boundaries,
    "powerloss": run_powerloss,
    "pushes": run_pushes,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.campaign", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--count", type=int, help="kills, runs or rounds")
    parser.add_argument("--seconds", type=float, help="of a part that runs for a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="*", help="of the parts that have several")
    parser.add_argument(
        "--out", type=Path, help="by default benchmarks/results/reliability-PART.json"
    )
    options = parser.parse_args()
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ["OMP_NUM_THREADS"] = "1"
    result = PARTS[options.part](options)
    out = options.out or RESULTS / f"reliability-{options.part}.json"
    document = {
        "part": options.part,
        "command": f"python -m tools.campaign {' '.join(sys.argv[1:])}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        **result,
    }
    out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    note(f"wrote {out.name}")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
