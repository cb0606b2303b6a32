"""Time from the command to the finished file for a Flux-shaped checkpoint of 12 billion parameters.

Writes a random bf16 checkpoint and eight cached samples of 1024×1024, then runs ``sla-ckpt regen``
on them as a user would, in a process of its own, with the weights out of the page cache where the
system allows it; and beside it reads the same bytes into page-locked memory and onto the card.

    python benchmarks/regen_load.py --out benchmarks/results/regen-load-h200.json
    python benchmarks/regen_load.py --device cpu --gigabytes 0.7 --side 128
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.load_speed import FULL_GIGABYTES, evict, plain, write_checkpoint  # noqa: E402

SAMPLES = 8


def write_cache(root: Path, side: int) -> None:
    """SimpleTuner's VAE and text caches of Flux, with captions that pair them."""
    generator = torch.Generator().manual_seed(0)
    latents, text = root / "vae" / "flux", root / "text" / "flux"
    latents.mkdir(parents=True)
    text.mkdir(parents=True)
    for number in range(SAMPLES):
        noise = torch.randn(16, side // 8, side // 8, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) * 5
        stem = hashlib.sha256(f"picture{number}".encode()).hexdigest()
        torch.save((0.8 * smooth + 0.3 * noise).bfloat16(), latents / f"{stem}.pt")
        caption = hashlib.md5(f"caption {number}".encode()).hexdigest()
        embedding = {
            "prompt_embeds": torch.randn(1, 512, 4096, generator=generator).mul(0.2).bfloat16(),
            "pooled_prompt_embeds": torch.randn(768, generator=generator).bfloat16(),
            "time_ids": torch.zeros(1, 512, 3),
            "attention_masks": torch.ones(1, 512),
        }
        torch.save(embedding, text / f"{caption}-flux.pt")


def run_regen(checkpoint: Path, cache: Path, device: str, processes: int) -> dict[str, Any]:
    """One run of the command; its report and the wall clock around it."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "sla_ckpt", "regen", str(checkpoint), "--data", str(cache)]
    command += ["--device", device, "--format", "json", "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    seconds = time.perf_counter() - started
    print(done.stderr[-3000:], file=sys.stderr)
    if done.returncode not in (0, 1):
        return {"wall_seconds": seconds, "returncode": done.returncode}
    report = json.loads(done.stdout)
    stages = dict(report["seconds"])
    stages["start and import torch"] = seconds - sum(stages.values())
    item = report["passes"][0]
    return {
        "processes": processes,
        "wall_seconds": seconds,
        "stages": stages,
        "without_load": seconds - stages["load"],
        "peak_memory_gib": (report["peak_memory"] or 0) / 2**30,
        "device": report["device"],
        "kernel": report["kernel"],
        "versions": report["versions"],
        "options": report["options"],
        "before": item["before"],
        "after": item["after"],
        "method": item["method"],
        "train_losses": item["train_losses"],
        "candidates": item["candidates"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gigabytes", type=float, default=FULL_GIGABYTES)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--root", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--processes", type=int, nargs="*", default=[1])
    parser.add_argument("--write-only", action="store_true", help="only make the checkpoint")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary)
        checkpoint, cache = root / "checkpoint-1", root / "cache"
        if not cache.exists():
            started = time.perf_counter()
            write_checkpoint(checkpoint, arguments.gigabytes)
            write_cache(cache, arguments.side)
            print(f"made {checkpoint} in {time.perf_counter() - started:.0f} s", flush=True)
        if arguments.write_only:
            return
        size = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
        evict(checkpoint)
        seconds = plain(checkpoint, torch.device(arguments.device))
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        document: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "bytes": size,
            "plain_read": {"seconds": seconds, "gb_per_second": size / seconds / 1e9},
            "runs": [],
        }
        print(f"plain read {size / 1e9:.1f} GB in {seconds:.1f} s", flush=True)
        for processes in arguments.processes:
            evict(checkpoint)
            run = run_regen(checkpoint, cache, arguments.device, processes)
            document["runs"].append(run)
            show(run, size)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def show(run: dict[str, Any], size: int) -> None:
    if "stages" not in run:
        print(f"failed with {run['returncode']} after {run['wall_seconds']:.1f} s", flush=True)
        return
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run["stages"].items())
    rate = size / run["stages"]["load"] / 1e9
    print(
        f"{run['processes']} process(es) on {run['device']}: {run['wall_seconds']:.1f} s "
        f"({stages}); load {rate:.2f} GB/s, the rest {run['without_load']:.1f} s; "
        f"peak {run['peak_memory_gib']:.1f} GiB; loss {run['before']:.5f} -> {run['after']:.5f} "
        f"({run['method']})",
        flush=True,
    )


if __name__ == "__main__":
    main()
