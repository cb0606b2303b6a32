"""How much of a lost SLA state does regeneration give back?

Trains small diffusion transformers on procedural images in two regimes, loses their SLA state,
and regenerates it through the code that ``sla-ckpt regen`` runs between loading and writing:

- ``adapted``: trained under SLA from the start; the model is broken without its state.
- ``light``: trained with dense attention, then briefly under SLA; little is at stake.

"Recovered" is the share of the validation loss that losing the state cost, on fresh images; 100 %
is the lost state itself. Beside it the peer: one plain AdamW step on the same samples.

    python benchmarks/recovery.py --device cuda --out benchmarks/results/recovery-h200.json
    python benchmarks/recovery.py --device cpu --scale cpu --jobs 1
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.toy_dit import CHANNELS, ToyAdapter, ToyConfig, ToyDiT, images
from sla_ckpt.attention.inject import use_sla
from sla_ckpt.regen import projections as proj
from sla_ckpt.regen.budget import parameters_of, plan_budget
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.families.base import Batch, Sample
from sla_ckpt.regen.plan import Plan
from sla_ckpt.regen.restore import restore
from sla_ckpt.regen.train import Runner
from sla_ckpt.regen.workload import make_workload, sampled_work, split_samples
from sla_ckpt.state import PairKey, SLASettings, SLAState

ADAPTER = ToyAdapter()
CONFIG = {"_class_name": "ToyDiT", "in_channels": CHANNELS}


@dataclass(frozen=True)
class Case:
    """One toy to train and to lose the state of."""

    regime: str
    head_dim: int
    topk: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.regime}-d{self.head_dim}-k{self.topk}-s{self.seed}"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        width: Channels of the transformer.
        layers: Its blocks.
        side: Of the images, in pixels; patches are 2 × 2.
        batch: Of the training.
        steps: Under SLA, in the adapted regime.
        dense_steps: With dense attention, in the light regime.
        brief_steps: Under SLA after that.
        validation: Fresh images.
        factors: (head_dim, topk, seed) of the toys of each regime.
    """

    width: int
    layers: int
    side: int
    batch: int
    steps: int
    dense_steps: int
    brief_steps: int
    validation: int
    factors: tuple[tuple[int, float, int], ...]

    def cases(self) -> list[Case]:
        return [Case(regime, *f) for f in self.factors for regime in ("adapted", "light")]


#: 1600 tokens are 25 key blocks: of them topk 0.07 keeps one, 0.10 two, 0.13 three. Every value of
#: each factor meets every value of the others.
_FULL = Scale(
    *(384, 8, 80, 8, 2000, 1200, 800, 256),
    ((64, 0.07, 30), (128, 0.1, 31), (128, 0.07, 31), (64, 0.1, 30)),
)
SCALES = {
    "full": _FULL,
    #: Losing the state costs less here, and noise weighs more.
    "little": replace(_FULL, factors=((64, 0.13, 32), (128, 0.13, 33))),
    "cpu": Scale(128, 4, 32, 8, 1000, 600, 250, 96, ((64, 0.26, 0), (128, 0.5, 1))),
    "smoke": Scale(128, 1, 32, 2, 12, 12, 6, 4, ((64, 0.26, 0),)),
}


def model_of(case: Case, scale: Scale) -> ToyDiT:
    heads = scale.width // case.head_dim
    return ToyDiT(ToyConfig(case.head_dim, heads, scale.layers, scale.side))


class _Trainer:
    """One training step over fixed tensors; on a card a CUDA graph, since the toys' kernels are
    shorter than it takes to start them."""

    _EAGER_STEPS = 3

    def __init__(
        self, model: ToyDiT, parameters: list[torch.nn.Parameter], shape: Any, device: str
    ) -> None:
        self._model, self._parameters = model, parameters
        self._cuda = device == "cuda"
        self.latents, self.noise = (torch.zeros(shape, device=device) for _ in range(2))
        self.t = torch.zeros(shape[0], device=device)
        self._rate = torch.tensor(0.0, device=device)
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=self._rate if self._cuda else 0.0,
            weight_decay=0.0,
            capturable=self._cuda,
        )
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Everything in it runs on one stream of its own, as capturing asks for."""
        if not self._cuda:
            yield
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def run(self, rate: float) -> None:
        """Train on what the tensors hold."""
        if self._cuda:
            self._rate.fill_(rate)
        else:
            self._optimizer.param_groups[0]["lr"] = rate
        if self._cuda and self._graph is None and self._steps == self._EAGER_STEPS:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
                self._step()
        self._steps += 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()

    def _step(self) -> None:
        noisy, target = ADAPTER.add_noise(self.latents, self.noise, self.t)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._cuda):
            prediction = self._model(noisy, self.t)
        loss = (prediction.float() - target).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()


def fit(
    model: ToyDiT, steps: int, scale: Scale, device: str, *, sla: SLASettings | None, seed: int
) -> SLAState | None:
    """Train all parameters, under SLA with its projection if ``sla`` is given."""
    generator = torch.Generator(device).manual_seed(seed)
    noise_levels = torch.Generator().manual_seed(seed)
    pool = images(min(4096, 512 * scale.batch), scale.side, generator, device)
    parameters = list(model.parameters())
    context: Any = contextlib.nullcontext()
    if sla is not None:
        context = use_sla(SLAState({}, sla), trainable=True, missing="zero")
    with context as session:
        if session is not None:
            session.materialise([PairKey(model.config.head_dim, "bf16")])
            for module in session.modules.values():
                module.to(device)
            parameters += list(session.parameters())
        trainer = _Trainer(model, parameters, (scale.batch, *pool.shape[1:]), device)
        levels = torch.cat(
            [
                ADAPTER.sample_timesteps(CONFIG, Batch(pool[: scale.batch], {}), noise_levels)
                for _ in range(steps)
            ]
        ).to(device)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 100) * (
                0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))
            )

        with trainer.stream():
            for step in range(steps):
                picks = torch.randint(len(pool), (scale.batch,), generator=generator, device=device)
                trainer.latents.copy_(pool[picks])
                trainer.noise.normal_(generator=generator)
                trainer.t.copy_(levels[step * scale.batch : (step + 1) * scale.batch])
                trainer.run(1e-3 * rate(step))
        return session.to_state() if session is not None else None


def train_case(case: Case, scale: Scale, device: str, folder: Path) -> None:
    """Train one toy and store it."""
    torch.manual_seed(case.seed)
    settings = SLASettings(topk=case.topk)
    model = model_of(case, scale).to(device)
    started = time.perf_counter()
    if case.regime == "adapted":
        state = fit(model, scale.steps, scale, device, sla=settings, seed=case.seed)
    else:
        fit(model, scale.dense_steps, scale, device, sla=None, seed=case.seed)
        state = fit(model, scale.brief_steps, scale, device, sla=settings, seed=case.seed + 100)
    assert state is not None
    tensors = {f"p{key}": value for key, value in proj.from_tensors(state.pairs).items()}
    saved = {"model": model.state_dict(), **tensors, "seconds": time.perf_counter() - started}
    torch.save(saved, folder / f"{case.name}.pt")


def load_case(
    case: Case, scale: Scale, device: str, folder: Path
) -> tuple[ToyDiT, proj.Projections, float]:
    saved = torch.load(folder / f"{case.name}.pt", map_location=device, weights_only=True)
    model = model_of(case, scale).to(device)
    model.load_state_dict(saved["model"])
    if device == "cuda":
        model.bfloat16()
    model.requires_grad_(False).eval()
    key = PairKey(case.head_dim, "bf16")
    return model, {key: saved[f"p{key}"].cpu()}, saved["seconds"]


def real_samples(count: int, scale: Scale, seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [Sample(picture, {}, "procedural") for picture in images(count, scale.side, generator)]


def synthetic_samples(count: int, scale: Scale, seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ADAPTER.synthetic_sample(CONFIG, height=scale.side, width=scale.side, generator=generator)
        for _ in range(count)
    ]


class Subject:
    """A trained toy whose state is lost."""

    def __init__(
        self, case: Case, scale: Scale, arguments: argparse.Namespace, folder: Path
    ) -> None:
        device = arguments.device
        self.case, self.scale = case, scale
        self.every: bool = arguments.ablate
        self.draws, self.evaluations = arguments.draws, arguments.evaluations
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.settings = SLASettings(topk=case.topk)
        self.model, self.truth, self.train_seconds = load_case(case, scale, device, folder)
        self.zero = proj.zeros(tuple(self.truth))
        fresh = real_samples(scale.validation, scale, 10_000 + case.seed)
        self.validation = make_workload(ADAPTER, CONFIG, fresh, repeats=1, batch_size=32, seed=77)
        self.true_loss, self.lost_loss = self.loss(self.truth), self.loss(self.zero)

    def loss(self, projections: proj.Projections) -> float:
        with use_sla(SLAState({}, self.settings), missing="zero") as session:
            session.materialise(list(projections))
            runner = Runner(self.model, session, self.device, self.dtype, Group())
            return float(runner.losses(self.validation, projections, lambda: None).mean())

    def recovered(self, projections: proj.Projections) -> float:
        stake = self.lost_loss - self.true_loss
        return 100 * (self.lost_loss - self.loss(projections)) / stake if stake else 0.0

    def regenerate(self, samples: list[Sample], **options: Any) -> dict[str, Any]:
        """What ``sla-ckpt regen`` does with these samples."""
        metric = {k: options.pop(k) for k in ("metric_ridge",) if k in options}
        train, held_out = split_samples(samples)
        budget = plan_budget(
            parameters_of(self.model),
            self.model.config.tokens,
            train=len(train),
            judged=len(held_out or train),
            device_type=self.device.type,
            draws=self.draws,
            evaluations=options.pop("evaluations", self.evaluations),
        )
        work = sampled_work(ADAPTER, CONFIG, samples, budget, self.case.seed)
        plan = Plan(settings=self.settings, dtype=self.dtype, **metric, **options)
        self._synchronise()
        started = time.perf_counter()
        found = restore(self.model, work, plan, budget, device=self.device)
        self._synchronise()
        seconds = time.perf_counter() - started
        verdict = found.verdict
        return {
            "recovered": self.recovered(verdict.best.projections),
            "written": verdict.improved,
            "method": verdict.best.name,
            "seconds": seconds,
            "stages": dict(found.seconds),
            "candidates": {
                c.name: {
                    "held_out": c.loss,
                    **({"recovered": self.recovered(c.projections)} if self.every else {}),
                }
                for c in verdict.candidates
            },
            "train_losses": {name: list(values) for name, values in found.train_losses.items()},
        }

    def peer(self, samples: list[Sample], lr: float) -> float:
        """One plain AdamW step from zero."""
        workload = make_workload(ADAPTER, CONFIG, samples, repeats=1, batch_size=32, seed=5)
        with use_sla(SLAState({}, self.settings), trainable=True, missing="zero") as session:
            session.materialise(list(self.zero))
            runner = Runner(self.model, session, self.device, self.dtype, Group())
            runner.losses(workload, self.zero, lambda: None)
            parameters = {key: value.clone().requires_grad_() for key, value in self.zero.items()}
            _, gradients = runner.loss_and_gradients(workload, self.zero, lambda: None)
            optimizer = torch.optim.AdamW(parameters.values(), lr=lr)
            for key, parameter in parameters.items():
                parameter.grad = gradients[key]
            optimizer.step()
        return self.recovered({key: value.detach() for key, value in parameters.items()})

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(subject: Subject, *, ablate: bool) -> dict[str, Any]:
    scale, seed = subject.scale, subject.case.seed
    eight = real_samples(8, scale, 20_000 + seed)
    synthetic = synthetic_samples(8, scale, 30_000 + seed)
    result: dict[str, Any] = {
        **asdict(subject.case),
        "train_seconds": subject.train_seconds,
        "true_loss": subject.true_loss,
        "lost_loss": subject.lost_loss,
        "regen_8_real": subject.regenerate(eight),
        "regen_1_real": subject.regenerate(eight[:1]),
        "regen_8_synthetic": subject.regenerate(synthetic, cautious=True),
        "peer_adamw_1_step_8_real": {str(lr): subject.peer(eight, lr) for lr in (1e-4, 1e-3, 1e-2)},
    }
    if ablate:
        variants: dict[str, dict[str, Any]] = {
            "lbfgs": {"optimizer": "lbfgs"},
            "lbfgs, 10 evaluations": {"optimizer": "lbfgs", "evaluations": 10},
            "lbfgs, metric_ridge 10": {"optimizer": "lbfgs", "metric_ridge": 10.0},
            "adamw 30 steps": {"optimizer": "adamw", "steps": 30, "lr": 1e-2},
            "calibrate only": {"method": "calibrate"},
            "24 updates": {"evaluations": 24},
            "2 steps": {"steps": 2},
        }
        result["ablations_8_real"] = {
            name: subject.regenerate(eight, **options) for name, options in variants.items()
        }
        result["regen_32_real"] = subject.regenerate(real_samples(32, scale, 40_000 + seed))
    return result


def train_all(arguments: argparse.Namespace, chosen: list[Case], folder: Path) -> None:
    """Train what is not there yet, several at a time: the toys are too small to fill a card."""
    waiting = [case for case in chosen if not (folder / f"{case.name}.pt").exists()]
    running: list[subprocess.Popen[bytes]] = []
    cards = arguments.cards
    while waiting or running:
        while waiting and len(running) < arguments.jobs * cards:
            command = [sys.executable, __file__, "--case", waiting.pop(0).name]
            command += ["--device", arguments.device, "--scale", arguments.scale]
            command += ["--folder", str(folder)]
            visible = {"CUDA_VISIBLE_DEVICES": str(len(waiting) % cards)} if cards > 1 else {}
            running.append(subprocess.Popen(command, env={**os.environ, **visible}))
        for process in list(running):
            if process.poll() is not None:
                running.remove(process)
                if process.returncode:
                    raise SystemExit(f"training failed: {process.args}")
        time.sleep(0.1)


def show(item: dict[str, Any]) -> None:
    eight, one, made = (item[f"regen_{k}"] for k in ("8_real", "1_real", "8_synthetic"))
    peers = item["peer_adamw_1_step_8_real"]
    print(
        f"{item['regime']:8} D{item['head_dim']:<4} topk {item['topk']:<5} seed {item['seed']} "
        f"| {item['true_loss']:.5f} -> {item['lost_loss']:.5f} "
        f"| 8 real {eight['recovered']:7.1f} % {eight['seconds']:5.2f} s ({eight['method']}) "
        f"| 1 real {one['recovered']:7.1f} % {one['seconds']:5.2f} s ({one['method']}) "
        f"| synthetic {made['recovered']:7.1f} % {'' if made['written'] else 'not '}written "
        f"| AdamW step {', '.join(f'{lr}: {value:.1f} %' for lr, value in peers.items())}",
        flush=True,
    )
    for name, values in item.get("ablations_8_real", {}).items():
        print(f"    {name:20} {values['recovered']:7.1f} % {values['seconds']:5.2f} s", flush=True)
    if "regen_32_real" in item:
        print(f"    32 real samples      {item['regen_32_real']['recovered']:7.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=4, help="toys trained at a time, per card")
    parser.add_argument("--cards", type=int, default=1, help="cards to train on")
    parser.add_argument("--draws", type=int, help="as the command's; derived by default")
    parser.add_argument("--evaluations", type=int, help="as the command's")
    parser.add_argument("--regime", choices=["adapted", "light"], help="this one only")
    parser.add_argument("--only", type=int, help="the first cases only")
    parser.add_argument(
        "--folder", type=Path, help="keep the trained toys here, and use those there"
    )
    parser.add_argument("--ablate", action="store_true", help="other methods on the first toys too")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the command sets it
    torch.backends.cuda.matmul.allow_tf32 = True
    if arguments.case:
        case = next(case for case in scale.cases() if case.name == arguments.case)
        train_case(case, scale, arguments.device, arguments.folder)
        return
    chosen = [case for case in scale.cases() if arguments.regime in (None, case.regime)]
    chosen = chosen[: arguments.only]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        train_all(arguments, chosen, folder)
        trained = time.perf_counter() - started
        print(f"trained {len(chosen)} toys in {trained:.0f} s", flush=True)
        if arguments.train_only:
            return
        if arguments.device == "cuda":  # compiles the kernels
            warm = Subject(chosen[0], scale, arguments, folder)
            warm.regenerate(real_samples(1, scale, 1), evaluations=2)
        results = []
        for number, case in enumerate(chosen):
            subject = Subject(case, scale, arguments, folder)
            results.append(measure(subject, ablate=arguments.ablate and number < 2))
            show(results[-1])
            if arguments.out:
                write(arguments, scale, results, trained, time.perf_counter() - started)
    print(f"total {time.perf_counter() - started:.0f} s", flush=True)


def write(
    arguments: argparse.Namespace,
    scale: Scale,
    results: list[dict[str, Any]],
    trained: float,
    seconds: float,
) -> None:
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    with contextlib.suppress(ImportError):
        import triton

        versions["triton"] = triton.__version__
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": card,
        "versions": versions,
        "scale": asdict(scale),
        "draws": arguments.draws or "derived",
        "evaluations": arguments.evaluations or "derived",
        "train_seconds": trained,
        "total_seconds": seconds,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
