"""How fast is verify? Run: python benchmarks/verify.py [--out FILE.json]

Side by side in one run, medians over --runs runs of whole processes:

- ``sla-ckpt verify`` on a checkpoint with 10 shards and 4 GB of weights (sparse files), and on one
  with 40 MB, to show that the time does not grow with the weights;
- a Python script that imports torch and does torch.load(weights_only=True) on the small file alone;
- ``verify --deep`` against ``sha256sum`` over the same files, warm in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from sla_ckpt import encode_state
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

CONFIG = {"_class_name": "FluxTransformer2DModel", "attention_head_dim": 128}


def write_checkpoint(folder: Path, shards: int, bytes_per_shard: int, *, sparse: bool) -> None:
    """A good checkpoint; sparse shards hold zeros that take no disk, dense ones random bf16."""
    transformer = folder / "transformer"
    transformer.mkdir(parents=True)
    (transformer / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    weight_map = {}
    rows = bytes_per_shard // (2 * 4096)
    for index in range(shards):
        name = f"diffusion_pytorch_model-{index + 1:05d}-of-{shards:05d}.safetensors"
        size = rows * 4096 * 2
        key = f"blocks.{index}.weight"
        header = json.dumps(
            {key: {"dtype": "BF16", "shape": [rows, 4096], "data_offsets": [0, size]}}
        )
        encoded = header.encode().ljust(-(-len(header) // 8) * 8)
        with (transformer / name).open("wb") as handle:
            handle.write(len(encoded).to_bytes(8, "little") + encoded)
            if sparse:
                handle.truncate(8 + len(encoded) + size)
            else:
                block = rng.integers(0x3C00, 0x3F80, 1 << 20, dtype=np.uint16).tobytes()
                for start in range(0, size, len(block)):
                    handle.write(block[: size - start])
        weight_map[key] = name
    (transformer / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    pair = ProjectionTensors(
        rng.normal(size=(128, 128)).astype(np.float32), rng.normal(size=128).astype(np.float32)
    )
    state = SLAState({PairKey(128, "bf16"): pair}, SLASettings())
    (folder / "sla_attention.pt").write_bytes(encode_state(state))


def measure(command: list[str], runs: int) -> tuple[float, float]:
    """Median wall time in seconds and the largest peak memory in MB over several runs."""
    # An installed package is byte-compiled by pip; let the first, uncounted run do the same here.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, stdout=subprocess.DEVNULL, env=env, check=True)
    times, peak = [], 0.0
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command} exited with {process.returncode}")
        peak = max(peak, _peak_megabytes(usage))
    return statistics.median(times), peak


def _peak_megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--deep-gigabytes", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    verify = [sys.executable, "-m", "sla_ckpt", "verify"]
    with tempfile.TemporaryDirectory() as root:
        big, small, deep = (Path(root) / name for name in ("big", "small", "deep"))
        write_checkpoint(big, 10, 400_000_000, sparse=True)
        write_checkpoint(small, 10, 4_000_000, sparse=True)
        write_checkpoint(deep, 4, int(options.deep_gigabytes * 2.5e8), sparse=False)
        load = f"import torch; torch.load({str(big / 'sla_attention.pt')!r}, weights_only=True)"
        shards = sorted(map(str, (deep / "transformer").glob("*.safetensors")))
        subprocess.run(["cat", *shards], stdout=subprocess.DEVNULL, check=True)
        big_time, big_peak = measure([*verify, str(big)], options.runs)
        small_time, _ = measure([*verify, str(small)], options.runs)
        torch_time, torch_peak = measure([sys.executable, "-c", load], options.runs)
        deep_runs = max(3, options.runs // 2)
        deep_time, deep_peak = measure([*verify, "--deep", str(deep)], deep_runs)
        sha_time, _ = measure(["sha256sum", *shards], deep_runs)
        size = sum(Path(path).stat().st_size for path in shards)
    results = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "runs": options.runs,
        "verify_4GB_seconds": round(big_time, 4),
        "verify_4GB_peak_MB": round(big_peak, 1),
        "verify_40MB_seconds": round(small_time, 4),
        "torch_load_seconds": round(torch_time, 4),
        "torch_load_peak_MB": round(torch_peak, 1),
        "torch_load_over_verify": round(torch_time / big_time, 2),
        "deep_GB_per_second": round(size / deep_time / 1e9, 3),
        "deep_peak_MB": round(deep_peak, 1),
        "sha256sum_GB_per_second": round(size / sha_time / 1e9, 3),
        "deep_over_sha256sum": round(sha_time / deep_time, 2),
    }
    for name, value in results.items():
        print(f"{name:28} {value}")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
