"""Time `sla-ckpt push` beside a bare `HfApi.create_commit` of the same files.

    python benchmarks/push.py --gigabytes 4 --output benchmarks/results/push.json

Everything is a process of its own against a loopback Hub in another process: a bare commit and a
push of random weights in two shards, in turn; then a push with nothing changed, with and without
the cache of hashes, beside one read of the files. Needs three times the size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from tests import factories  # noqa: E402

REPO = "alice/model"
BARE = """
import sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi
root = Path(sys.argv[1])
api = HfApi()
api.create_repo("alice/model", private=True)
files = [p for p in sorted(root.rglob("*")) if p.is_file()]
adds = [CommitOperationAdd(p.relative_to(root).as_posix(), str(p)) for p in files]
api.create_commit("alice/model", adds, commit_message="bare")
"""


@dataclass(frozen=True)
class Cost:
    """One process: seconds by the clock, seconds of processor time."""

    wall: float
    cpu: float


@dataclass
class Server:
    url: str
    token: str
    process: subprocess.Popen[str]

    def peak_mb(self) -> float:
        """The most memory that the server ever held, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000

    def fetch(self, path: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{REPO}/resolve/main/{path}")
        # not sent on to the storage, which takes no token
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as answer:
            data: bytes = answer.read()
        return data


@contextmanager
def server(root: Path, xet: bool) -> Iterator[Server]:
    """A loopback Hub in its own process; its files are deleted afterwards."""
    command = [sys.executable, "-m", "tools.loopback_hub", "--root", str(root)]
    process = subprocess.Popen(
        [*command, "--token", "alice:write", *(["--xet"] if xet else [])],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        yield Server(url, process.stdout.readline().split()[1], process)
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(root)


def run(command: list[str], hub: Server, home: Path, xet: bool) -> Cost:
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home / "hf"),
        "SLA_CKPT_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "PYTHONPATH": str(ROOT),
    }
    os.sync()  # what the run before wrote must not slow this one
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=home, capture_output=True, text=True, check=False
    )
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return Cost(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def make_checkpoint(root: Path, gigabytes: float) -> Path:
    """A good checkpoint whose two shards are random, so that nothing in them repeats."""
    factories.write_full_checkpoint(root, shards=2)
    elements = int(gigabytes * 1e9 / 4)  # of 2 bytes, in each of two shards
    rng = np.random.default_rng(0)
    folder = root / "transformer"
    index_path = folder / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = {}
    for number in (1, 2):
        name = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        entry = {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}
        header = json.dumps({f"block{number}.weight": entry}).encode()
        header += b" " * (-len(header) % 8)
        with (folder / name).open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            left = 2 * elements
            while left:
                out.write(rng.bytes(min(left, 1 << 24)))
                left -= min(left, 1 << 24)
        weight_map[f"block{number}.weight"] = name
    index_path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return root


def read_all(root: Path) -> float:
    """Seconds for one plain read of the files."""
    begin = time.monotonic()
    buffer = bytearray(1 << 22)
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as source:
                while source.readinto(buffer):
                    pass
    return time.monotonic() - begin


def overhead(
    of: Callable[[list[float]], float], field: str, pushes: list[Cost], bare: list[Cost]
) -> float:
    """By how many percent a push costs more than a bare commit."""
    ours, theirs = (of([getattr(cost, field) for cost in costs]) for costs in (pushes, bare))
    return round(100 * (ours / theirs - 1), 1)


def measure(work: Path, checkpoint: Path, repeats: int, xet: bool) -> dict[str, object]:
    """One transport: bare commits and pushes in turn, then pushes of what is there already."""
    push = ["-m", "sla_ckpt", "push", REPO, str(checkpoint)]
    published = work / "published"  # what a push sends, for the bare commit
    bare: list[Cost] = []
    pushes: list[Cost] = []
    unchanged: list[Cost] = []
    uncached: list[Cost] = []
    reads: list[float] = []
    peaks: list[float] = []

    def home(name: str) -> Path:
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    for index in range(repeats):
        with server(work / "hub", xet) as hub:
            user = home("home")
            pushes.append(run(push, hub, user, xet))
            peaks.append(hub.peak_mb())
            unchanged.append(run(push, hub, user, xet))
            reads.append(read_all(checkpoint))
            uncached.append(run(push, hub, home("home"), xet))
            if not published.exists():
                shutil.copytree(checkpoint, published, copy_function=os.link)
                for path in ("README.md", "sla_attention.safetensors"):
                    (published / path).write_bytes(hub.fetch(path))
        with server(work / "hub", xet) as hub:
            bare.append(run(["-c", BARE, str(published)], hub, home("home"), xet))
        print(f"  {index + 1}: push {pushes[-1]}, bare {bare[-1]}", flush=True)
    shutil.rmtree(published)
    return {
        "bare": [asdict(cost) for cost in bare],
        "push": [asdict(cost) for cost in pushes],
        "overhead_percent": {
            "wall_median": overhead(statistics.median, "wall", pushes, bare),
            "wall_best": overhead(min, "wall", pushes, bare),
            "cpu_median": overhead(statistics.median, "cpu", pushes, bare),
        },
        "nothing_changed": [asdict(cost) for cost in unchanged],
        "nothing_changed_without_hash_cache": [asdict(cost) for cost in uncached],
        "one_read_seconds": reads,
        "server_peak_mb": max(peaks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--transport", choices=["lfs", "xet", "both"], default="both")
    parser.add_argument("--work", type=Path, help="folder for the files; a temporary one if not")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    kinds = ["lfs", "xet"] if options.transport == "both" else [options.transport]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        checkpoint = make_checkpoint(work / "checkpoint-500", options.gigabytes)
        results: dict[str, object] = {}
        for kind in kinds:
            print(kind, flush=True)
            results[kind] = measure(work, checkpoint, options.repeats, kind == "xet")
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "gigabytes": options.gigabytes,
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),  # this includes the benchmark's own two processes
        "python": platform.python_version(),
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
