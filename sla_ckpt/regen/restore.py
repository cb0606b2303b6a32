"""From a model and samples to the best projections: calibrate, train, judge.

This is regeneration without files: what ``regenerate`` runs between loading and writing, and
what the benchmarks run on models of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.errors import RegenError
from sla_ckpt.regen import projections as proj
from sla_ckpt.regen.ahead import made_ahead
from sla_ckpt.regen.anneal import Sweep, train_annealed
from sla_ckpt.regen.branches import make_branches
from sla_ckpt.regen.budget import Budget
from sla_ckpt.regen.contest import Contest
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.judge import Candidate, Verdict, judge
from sla_ckpt.regen.plan import Plan
from sla_ckpt.regen.progress import SILENT, Progress
from sla_ckpt.regen.projections import Coordinates, Projections
from sla_ckpt.regen.stages import Stages
from sla_ckpt.regen.statistics import Collector, LayerMoments
from sla_ckpt.regen.train import (
    Runner,
    Trained,
    check_loss,
    deterministic,
    train_adamw,
    train_lbfgs,
)
from sla_ckpt.regen.workload import Work, Workload
from sla_ckpt.state import SLAState

#: First rate of an annealed step, in attention's own size, of so many updates or more.
FULL_RATE = 8e-3
FULL_UPDATES = 36
#: Made-up samples are believed only where their loss falls by more than this share: a fall of 7 %
#: on them was seen to go with a rise on real ones.
MADE_UP_GAIN = 0.10
#: The same for varied copies of samples that train as well.
COPIES_GAIN = 0.015


@dataclass(frozen=True, eq=False)
class Restored:
    """What :func:`restore` found.

    Attributes:
        verdict: The judge's decision, with every candidate.
        moments: Attention statistics of the calibration pass.
        train_losses: Training loss of every evaluation, by name of the trained candidate.
        seconds: Time of each stage.
        calls: What happened to the attention calls of the calibration pass.
    """

    verdict: Verdict
    moments: LayerMoments
    train_losses: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]
    calls: str


def restore(
    model: nn.Module,
    work: Work,
    plan: Plan,
    budget: Budget,
    *,
    device: torch.device,
    old: SLAState | None = None,
    extra: Mapping[str, Projections] | None = None,
    group: Group | None = None,
    progress: Progress = SILENT,
) -> Restored:
    """Find the best projections for a frozen model.

    Args:
        model: The backbone, on its device and in eval mode.
        work: What to train and to judge on.
        plan: How.
        budget: How much.
        device: Where the inputs go.
        old: What the checkpoint has now; None or missing pairs count as zero projections.
        extra: Further starts by name, for pairs among those that the model uses.
        group: The processes that share the work.

    Raises:
        RegenError: No attention call goes sparse, no key block is kept, the loss is 0 or not
            finite, proj_l does not change, memory runs out.
        AttentionError: The settings or the kernel cannot run.
    """
    with (
        deterministic(),
        use_sla(
            SLAState({}, plan.settings),
            kernel=plan.kernel,
            variant=plan.variant,
            trainable=True,
            missing="zero",
        ) as session,
    ):
        runner = Runner(model, session, device, plan.dtype, group or Group())
        furthest = 2 if work.judge_samples and not plan.cautious else 1
        contest = Contest(runner, work.judge, furthest, progress.tick)
        stages = Stages(progress, device)
        return _Restoration(runner, work, plan, budget, old, extra or {}, contest, stages).run()


@dataclass
class _Restoration:
    """One run."""

    runner: Runner
    work: Work
    plan: Plan
    budget: Budget
    old: SLAState | None
    extra: Mapping[str, Projections]
    contest: Contest
    stages: Stages
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def run(self) -> Restored:
        with self.stages.stage("calibrate", len(self.work.calibration.draws)):
            moments = self._calibrate(self.work.calibration)
        calls = self.runner.session.stats.summary()
        zero = proj.zeros(moments.pairs)
        present = self._present(zero)
        starts = {"zero": zero}
        if self.plan.method == "calibrate" or (
            self.plan.method == "auto" and not self.plan.cautious
        ):
            starts["calibrated"] = {pair: moments.of(pair).solve() for pair in moments.pairs}
        if present is not None:
            starts["old"] = present
        for name, values in self.extra.items():
            starts[name] = {key: values.get(key, zero[key]) for key in zero}
        with self.stages.stage("judge", len(starts) * len(self.work.judge.draws)):
            judged = {name: self.contest.add(name, value) for name, value in starts.items()}
            calibrated = judged.get("calibrated")
            if calibrated is not None:
                judged["calibrated"] = self.contest.along(judged["zero"], calibrated)
        if self.plan.method != "calibrate":
            self._train(moments, list(judged.values()))
        verdict = judge(self.contest.entries(), optimism=self._optimism(moments))
        return Restored(verdict, moments, self.losses, self.stages.seconds, calls)

    def _optimism(self, moments: LayerMoments) -> float:
        """See :func:`judge`."""
        if self.plan.cautious:
            return MADE_UP_GAIN
        if self.work.judge_samples:
            return 0.0
        if self.work.varied:
            return COPIES_GAIN
        parameters = sum(pair.head_dim * (pair.head_dim + 1) for pair in moments.pairs)
        return 2 * parameters / self.work.numbers

    def _calibrate(self, workload: Workload) -> LayerMoments:
        session, plan = self.runner.session, self.plan
        collector = Collector(make_branches(plan.settings, plan.variant, plan.kernel))
        session.observer = collector
        try:
            total = 0.0
            for _, draw in self.runner.group.share(workload.draws):
                collector.start_forward()
                total += float(self.runner.forward(draw).sum())
                self.contest.tick()
        finally:
            session.observer = None
        moments = collector.collected(self.runner.group)
        if not moments.pairs:
            raise RegenError(
                f"no attention call of this model goes sparse: {session.stats.summary()}",
                hint="SLA takes fp16 and bf16 self-attention without a mask; see docs/regen.md",
            )
        session.materialise(moments.pairs)
        total = float(self.runner.group.sum(torch.tensor(total)))
        check_loss(total / workload.size)
        return moments

    def _present(self, zero: Projections) -> Projections | None:
        """What the checkpoint has, for the pairs that this model uses; None if it has nothing."""
        if self.old is None:
            return None
        held = {key: value for key, value in self.old.pairs.items() if key in zero}
        known = proj.from_tensors(held)
        if not known or not proj.is_finite(known):
            return None
        return {**zero, **known}

    def _train(self, moments: LayerMoments, starts: list[Candidate]) -> None:
        ranked = sorted(starts, key=lambda c: c.loss)
        optimizer = self.plan.optimizer
        if optimizer == "auto":
            noisy = self.work.redraws and not self.plan.cautious
            optimizer = "anneal" if noisy else "lbfgs"
        if optimizer == "anneal":
            self._anneal(moments, ranked[0])
            return
        for start in ranked[: self.budget.starts]:
            if optimizer == "adamw":
                self._train_adamw(start)
            else:
                self._train_lbfgs(moments, start)

    def _anneal(self, moments: LayerMoments, start: Candidate) -> None:
        updates = self.plan.steps * self.budget.updates
        scales = {pair: moments.of(pair).column_scales() for pair in moments.pairs}
        # Fewer updates have to go further each.
        rate = FULL_RATE * math.sqrt(max(1.0, FULL_UPDATES / self.budget.updates))
        with (
            self.stages.stage("train", updates * len(self.work.update(0).draws)),
            made_ahead(self.work.update, updates) as update,
        ):
            trained = train_annealed(
                self.runner,
                update,
                start.projections,
                scales,
                Sweep(updates, rate),
                tick=self.contest.tick,
            )
        self._add_trained(f"trained from {start.name}", trained, start)

    def _train_lbfgs(self, moments: LayerMoments, start: Candidate) -> None:
        coordinates = Coordinates.of(moments, self.plan.metric_ridge)
        current = start
        for step in range(self.plan.steps):
            workload = self.work.train(step)
            with self.stages.stage("train", self.budget.evaluations * len(workload.draws)):
                trained = train_lbfgs(
                    self.runner,
                    workload,
                    current.projections,
                    coordinates,
                    max_evaluations=self.budget.evaluations,
                    max_iterations=1 if self.plan.cautious else None,
                    keep=self.budget.checkpoints,
                    tick=self.contest.tick,
                )
            name = f"trained from {start.name}"
            name = name if self.plan.steps == 1 else f"{name}, step {step + 1}"
            current = self._add_trained(name, trained, current)

    def _train_adamw(self, start: Candidate) -> None:
        draws = len(self.work.train(0).draws)
        with self.stages.stage("train", self.plan.steps * draws):
            trained = train_adamw(
                self.runner,
                self.work.train,
                start.projections,
                steps=self.plan.steps,
                lr=self.plan.lr,
                tick=self.contest.tick,
            )
        self._add_trained(f"trained from {start.name}", trained, start)

    def _add_trained(self, name: str, trained: Trained, start: Candidate) -> Candidate:
        """Judge the result, some of the way to it, and the line to the best; return the result."""
        self.losses[name] = trained.losses
        if not trained.iterates or _same(trained.iterates[-1][1], start.projections):
            raise RegenError(
                f"training did not change proj_l ({len(trained.losses)} loss evaluations)",
                hint="try another --seed, more --samples, or --optimizer adamw",
            )
        with self.stages.stage("judge", len(trained.iterates) * len(self.work.judge.draws)):
            added = [
                self.contest.add(f"{name}, {label}" if label else name, projections)
                for label, projections in trained.iterates
            ]
            self.contest.along(start, min(added, key=lambda c: c.loss))
        return added[-1]


def _same(a: Projections, b: Projections) -> bool:
    return all(torch.equal(a[key].float(), b[key].float()) for key in a)
