"""Time SLA on one GPU beside dense attention and thu-ml/SLA, and sweep launch parameters.

    python benchmarks/attention.py --output results.json            # the table
    python benchmarks/attention.py --peer path/to/SLA               # with thu-ml/SLA beside it
    python benchmarks/attention.py --sweep                          # launch parameters
    python benchmarks/attention.py --profile                        # time by kernel

TFLOP/s count kept work only: 4 L (kept keys) D per head forward, 2.5 times that backward.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton.testing import do_bench

from sla_ckpt.attention import SparseLinearAttention
from sla_ckpt.attention.triton import backward, forward
from sla_ckpt.attention.triton.operator import compute_blocks, sla_triton
from sla_ckpt.attention.triton.problem import (
    BlockLists,
    ForwardResult,
    Problem,
    padded,
    problem_for,
)
from sla_ckpt.attention.triton.tuning import Launch, tuning_for
from sla_ckpt.state import SLASettings


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    length: int
    dim: int
    topk: float

    def tensors(self, count: int) -> list[Tensor]:
        size = (self.batch, self.heads, self.length, self.dim)
        return [torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(count)]

    def teraflops(self, blkk: int = 64) -> float:
        """Of the sparse forward's kept work."""
        blocks = -(-self.length // blkk)
        kept = max(1, int(self.topk * blocks)) * blkk
        return 4e-12 * self.batch * self.heads * self.length * kept * self.dim


SHAPES = (
    Shape(1, 12, 32768, 128, 0.05),
    Shape(1, 12, 32768, 128, 0.20),
    Shape(1, 24, 4608, 128, 0.20),
    Shape(1, 24, 16384, 64, 0.10),
)


def median(run: Callable[[], object], rep: int = 60) -> float:
    """Milliseconds, with a cold cache before each run."""
    return float(do_bench(run, warmup=25, rep=rep, return_mode="median"))


def differentiated(
    run: Callable[..., Tensor], inputs: list[Tensor], parameters: Sequence[Tensor], g: Tensor
) -> dict[str, float | None]:
    """Forward, backward, both together, and both as a replayed CUDA graph (no launch costs)."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    wanted = [*leaves, *parameters]

    return {
        "forward": median(lambda: run(*leaves)),
        "backward": backward_alone(run(*leaves), wanted, g),
        "both": median(lambda: torch.autograd.grad(run(*leaves), wanted, g)),
        "replay": replayed(run, inputs, parameters, g),
    }


def backward_alone(out: Tensor, wanted: Sequence[Tensor], g: Tensor) -> float:
    """A function of its own, since the graph of ``out`` must be gone before one is captured."""
    return median(lambda: torch.autograd.grad(out, wanted, g, retain_graph=True))


def replayed(
    run: Callable[..., Tensor], inputs: list[Tensor], parameters: Sequence[Tensor], g: Tensor
) -> float | None:
    """Forward and backward as a CUDA graph; None where they cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            leaves = [x.detach().requires_grad_() for x in inputs]
            wanted = [*leaves, *parameters]
            for _ in range(2):
                torch.autograd.grad(run(*leaves), wanted, g)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=side):
                torch.autograd.grad(run(*leaves), wanted, g)
    except RuntimeError as error:
        print("no CUDA graph:", str(error).splitlines()[0], file=sys.stderr)
        return None
    torch.cuda.synchronize()
    return median(graph.replay)


def ours(shape: Shape, blkq: int) -> dict[str, Any]:
    q, k, v, g = shape.tensors(4)
    module = SparseLinearAttention(shape.dim, topk=shape.topk, blkq=blkq, kernel="triton").cuda()
    torch.nn.init.normal_(module.proj_l.weight, std=0.05)
    parameters = list(module.parameters())
    result: dict[str, Any] = {"module": differentiated(module, [q, k, v], parameters, g)}
    with torch.no_grad():
        result["inference"] = median(lambda: module(q, k, v))
        result["block_map"] = median(lambda: compute_blocks(q, k, module.settings))
        kernels = Kernels.of(shape, blkq)
        result["sparse_forward"] = median(kernels.forward)
        result["sparse_backward"] = median(kernels.backward)
    work = shape.teraflops()
    result["sparse_forward_tflops"] = 1e3 * work / result["sparse_forward"]
    result["sparse_backward_tflops"] = 2.5e3 * work / result["sparse_backward"]
    return result


@dataclass
class Kernels:
    """The walking kernels alone, on prepared inputs; sparse branch only."""

    problem: Problem
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    lists: BlockLists
    saved: ForwardResult
    dq: Tensor
    delta: Tensor

    @classmethod
    def of(cls, shape: Shape, blkq: int) -> Kernels:
        q, k, v, g = shape.tensors(4)
        settings = SLASettings(shape.topk, "softmax", blkq, 64)
        problem = problem_for(q, k, settings, None)
        lists = compute_blocks(q, k, settings)
        saved = forward.attend(problem, q, k, v, lists, None, None, save=True)
        assert saved.o_sparse is not None
        delta, dq, _ = backward.query_rows(problem, q, g, saved.o_sparse, None)
        return cls(problem, q, k, v, g, lists, saved, dq, delta)

    def forward(self) -> None:
        forward.attend(self.problem, self.q, self.k, self.v, self.lists, None, None, save=True)

    def query_grad(self) -> None:
        backward.query_grad(
            self.problem,
            *(self.q, self.k, self.v, self.g, self.dq),
            *(self.saved.lse, self.delta, self.lists.lut),
            linear=False,
        )

    def key_grad(self) -> None:
        backward.key_grad(
            self.problem,
            *(self.q, self.k, self.v, self.g),
            *(self.saved.lse, self.delta, self.lists.mask, None, None),
        )

    def backward(self) -> None:
        backward.query_rows(self.problem, self.q, self.g, self.saved.o_sparse, None)
        self.query_grad()
        self.key_grad()


def dense(shape: Shape) -> dict[str, Any]:
    q, k, v, g = shape.tensors(4)
    return {"module": differentiated(F.scaled_dot_product_attention, [q, k, v], [], g)}


def peer(shape: Shape, blkq: int) -> dict[str, Any]:
    """thu-ml/SLA, the whole module and its sparse kernel alone."""
    from sparse_linear_attention.core import SparseLinearAttention as Peer
    from sparse_linear_attention.kernel import _attention
    from sparse_linear_attention.utils import get_block_map

    q, k, v, g = shape.tensors(4)
    module = Peer(shape.dim, shape.topk, BLKQ=blkq, BLKK=64).cuda()
    torch.nn.init.normal_(module.proj_l.weight, std=0.05)
    result: dict[str, Any] = {
        "module": differentiated(module, [q, k, v], list(module.parameters()), g)
    }
    with torch.no_grad():
        result["inference"] = median(lambda: module(q, k, v))
        result["block_map"] = median(lambda: get_block_map(q, k, shape.topk, BLKQ=blkq, BLKK=64))
        mask, lut, kept = get_block_map(q, k, shape.topk, BLKQ=blkq, BLKK=64)
    sparse = differentiated(
        lambda *x: _attention.apply(*x, mask, lut, kept, blkq, 64), [q, k, v], [], g
    )
    result["sparse_forward"], result["sparse_backward"] = sparse["forward"], sparse["backward"]
    work = shape.teraflops()
    result["sparse_forward_tflops"] = 1e3 * work / result["sparse_forward"]
    result["sparse_backward_tflops"] = 2.5e3 * work / result["sparse_backward"]
    return result


def agreement(dtype: torch.dtype, blkq: int, dim: int, length: int) -> dict[str, float]:
    """Relative difference between thu-ml/SLA and ours on thu-ml/SLA's block map."""
    from sparse_linear_attention.core import SparseLinearAttention as Peer
    from sparse_linear_attention.utils import get_block_map

    q, k, v, g = (torch.randn(1, 4, length, dim, device="cuda", dtype=dtype) for _ in range(4))
    theirs = Peer(dim, 0.1, BLKQ=blkq, BLKK=64, use_bf16=dtype == torch.bfloat16).cuda()
    torch.nn.init.normal_(theirs.proj_l.weight, std=0.05)
    torch.nn.init.normal_(theirs.proj_l.bias, std=0.05)
    projection = list(theirs.parameters())
    blocks = get_block_map(q, k, 0.1, BLKQ=blkq, BLKK=64)[0].bool()
    settings = SLASettings(0.1, "softmax", blkq, 64)
    own = compute_blocks(q, k, settings).mask
    assert own is not None
    overlap = (own.transpose(1, 2).bool() & blocks.flatten(0, 1)).sum() / blocks.sum()
    results = []
    for run in (theirs, lambda *x: sla_triton(*x, *projection, settings, blocks=blocks)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = run(*leaves)
        results.append([out, *torch.autograd.grad(out, [*leaves, *projection], g)])
    names = ("o", "dq", "dk", "dv", "dW", "db")
    errors = {
        name: ((a.double() - b.double()).norm() / a.double().norm()).item()
        for name, a, b in zip(names, *results, strict=True)
    }
    return errors | {"same_blocks": overlap.item()}


def sweep_space(kernel: str, dim: int, blkq: int) -> Iterator[Launch]:
    tiles = {64: (64,), 128: (64, 128)}[blkq]
    if kernel == "key_grad":
        for inner, warps, stages in itertools.product((64, 128), (4, 8), (1, 2, 3)):
            if inner <= blkq and not (inner == 128 and stages == 3 and dim == 128):
                yield Launch(64, inner, warps, stages)
        return
    for tile, inner, warps, stages in itertools.product(tiles, (64, 128), (4, 8), (2, 3, 4)):
        if inner == 128 and stages > 2 and dim == 128:
            continue
        if tile == 128 and warps == 4:
            continue
        if tile == 64 and warps == 8 and kernel == "forward":
            continue
        yield Launch(tile, inner, warps, stages)


def time_launch(job: tuple[Shape, int, str, Launch], kernels: Kernels | None = None) -> float:
    """Milliseconds of one kernel under one launch; NaN when it does not run."""
    shape, blkq, name, parameters = job
    if kernels is None:
        kernels = Kernels.of(replace(shape, length=1024, heads=1), blkq)
    tuning = replace(tuning_for(padded(shape.dim), blkq, 64), **{name: parameters})
    kernels.problem = replace(kernels.problem, tuning=tuning)
    try:
        getattr(kernels, name)()
        torch.cuda.synchronize()
        if kernels.q.shape[2] == 1024:
            return 0.0
        return median(getattr(kernels, name), rep=20)
    except (triton.runtime.errors.OutOfResources, RuntimeError) as error:
        print(name, parameters, type(error).__name__, str(error)[:80], file=sys.stderr)
        return float("nan")


def sweep(shapes: list[Shape], workers: int) -> list[dict[str, Any]]:
    """Compile every variant in parallel, then time one after the other."""
    names = ("forward", "query_grad", "key_grad")
    jobs = [
        (shape, blkq, name, parameters)
        for shape in shapes
        for blkq in (64, 128)
        for name in names
        for parameters in sweep_space(name, shape.dim, blkq)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(time_launch, jobs, chunksize=2))
    rows = []
    for (shape, blkq), group in itertools.groupby(jobs, key=lambda job: job[:2]):
        kernels = Kernels.of(shape, blkq)
        timed = [(job, time_launch(job, kernels)) for job in group]
        for name in names:
            best = sorted((ms, job[3]) for job, ms in timed if job[2] == name and ms == ms)
            rows += [
                {"shape": asdict(shape), "blkq": blkq, "kernel": name, "ms": ms, **asdict(found)}
                for ms, found in best
            ]
            print(f"{shape} blkq {blkq} {name}")
            for ms, found in best:
                print(f"   {ms:8.3f} ms  {found}")
    return rows


def profile(shape: Shape, blkq: int) -> list[dict[str, Any]]:
    """Time by kernel of one forward and backward of the whole module."""
    q, k, v, g = shape.tensors(4)
    module = SparseLinearAttention(shape.dim, topk=shape.topk, blkq=blkq, kernel="triton").cuda()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    wanted = [*leaves, *module.parameters()]

    def run() -> None:
        torch.autograd.grad(module(*leaves), wanted, g)

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(5):
            run()
        torch.cuda.synchronize()
    rows = [
        {"kernel": event.key[:60], "us": event.device_time_total / 5, "calls": event.count // 5}
        for event in recorded.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.count >= 5
    ]
    rows.sort(key=lambda row: -row["us"])
    for row in rows:
        print(f"   {row['us']:9.1f} us x{row['calls']}  {row['kernel']}")
    return rows


def environment() -> dict[str, str]:
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "dtype": "bfloat16",
        "unit": "ms, median, cold cache",
    }


def table(shapes: list[Shape], with_peer: bool) -> Iterator[dict[str, Any]]:
    """One row per shape; each is printed as it comes."""
    for shape in shapes:
        row: dict[str, Any] = {"shape": asdict(shape), "dense": dense(shape)}
        print(f"{shape}")
        runs = {f"ours_{blkq}": (ours, blkq) for blkq in (64, 128)}
        if with_peer:
            runs |= {f"thu_{blkq}": (peer, blkq) for blkq in (64, 128)}
        for name, (measure, blkq) in runs.items():
            row[name] = measure(shape, blkq)
        for name, result in row.items():
            if name != "shape":
                print("  ", f"{name:9s}", _line(result))
        yield row
        torch.cuda.empty_cache()


def _line(result: dict[str, Any]) -> str:
    module = result["module"]
    text = " ".join(f"{key} {value:7.3f}" for key, value in module.items() if value is not None)
    for key in ("inference", "block_map", "sparse_forward", "sparse_backward"):
        if key in result:
            text += f" {key} {result[key]:.3f}"
    if "sparse_forward_tflops" in result:
        text += f" ({result['sparse_forward_tflops']:.0f} / "
        text += f"{result['sparse_backward_tflops']:.0f} TFLOP/s)"
    return text


def save(results: dict[str, Any], output: Path | None) -> None:
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", type=Path, help="checkout of thu-ml/SLA")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--shapes", default="0,1,2,3", help="which of the four shapes")
    parser.add_argument("--sweep", action="store_true", help="sweep launch parameters instead")
    parser.add_argument("--profile", action="store_true", help="time by kernel instead")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    options = parser.parse_args()
    shapes = [SHAPES[int(i)] for i in options.shapes.split(",")]
    if options.peer:
        sys.path.insert(0, str(options.peer))
    torch.manual_seed(0)
    results: dict[str, Any] = {"environment": environment()}
    if options.sweep:
        results["sweep"] = sweep(shapes, options.workers)
    elif not options.profile:
        if options.peer:
            results["agreement"] = {
                f"{dtype} blkq {blkq} D {dim} L {length}": agreement(dtype, blkq, dim, length)
                for dtype in (torch.bfloat16, torch.float16)
                for blkq, dim, length in ((64, 128, 4096), (128, 64, 4000))
            }
            for name, errors in results["agreement"].items():
                print(name, {key: f"{value:.1e}" for key, value in errors.items()})
        results["table"] = []
        for row in table(shapes, options.peer is not None):
            results["table"].append(row)
            save(results, options.output)
    if options.profile:
        results["profile"] = {}
        for shape in shapes:
            print(shape)
            results["profile"][str(shape)] = profile(shape, 64)
    save(results, options.output)


if __name__ == "__main__":
    main()
