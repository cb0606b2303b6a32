"""``regenerate``: from a checkpoint that lost its SLA state to one that has it again.

Load the backbone, get samples, find the best projections (:mod:`sla_ckpt.regen.restore`), write
them if they beat what is there, verify the result. The backbone's files are only read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sla_ckpt._version import __version__
from sla_ckpt.attention.resolve import check_settings
from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.checks.verify import verify
from sla_ckpt.errors import RegenError, UsageError
from sla_ckpt.regen import environment
from sla_ckpt.regen import projections as proj
from sla_ckpt.regen.backbone import Backbone
from sla_ckpt.regen.budget import Budget, parameters_of, plan_budget, tokens_of
from sla_ckpt.regen.distributed import Group, process_group
from sla_ckpt.regen.families.base import FamilyAdapter
from sla_ckpt.regen.loading import load_with_kernels
from sla_ckpt.regen.options import DTYPES, RegenOptions, check_overrides
from sla_ckpt.regen.plan import TORCH_DTYPES, Plan
from sla_ckpt.regen.present import Present, choose_settings, read_present
from sla_ckpt.regen.progress import SILENT, Progress
from sla_ckpt.regen.projections import Projections
from sla_ckpt.regen.report import PassResult, RegenResult
from sla_ckpt.regen.restore import Restored, restore
from sla_ckpt.regen.samples import SampleRequest, SampleSet, load_samples
from sla_ckpt.regen.stages import Stages
from sla_ckpt.regen.train import enable_checkpointing
from sla_ckpt.regen.workload import Work, sampled_work, split_samples, stored_work
from sla_ckpt.regen.write import check_writable, write_result
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

#: Work budgets need some size; a stored call is taken for this many tokens.
_STORED_TOKENS = 4096


def regenerate(
    checkpoint: Path | str | None = None,
    options: RegenOptions | None = None,
    *,
    progress: Progress = SILENT,
) -> RegenResult:
    """Regenerate ``sla_attention.pt`` of a checkpoint.

    Args:
        checkpoint: A checkpoint folder, or a trainer's output folder (its newest checkpoint is
            meant); the current directory when None.
        options: How; see :class:`~sla_ckpt.regen.options.RegenOptions`.
        progress: Told about stages.

    Returns:
        What was done. ``result.ok`` is False when nothing beat what was there: nothing was
        written then.

    Raises:
        RegenError: It cannot start, or training gives nothing; the checkpoint is untouched.
        AttentionError, FormatError, TargetNotFoundError, UsageError, WriteError: As their names
            say; the checkpoint is untouched.
        MissingExtraError: diffusers, peft or accelerate is not installed.

    Example:
        >>> result = regenerate("output/checkpoint-500", RegenOptions(data=Path("cache")))
        >>> print(result.passes[0].before, "->", result.passes[0].after)  # doctest: +SKIP
    """
    options = options or RegenOptions()
    check_overrides(options.overrides)
    directory = resolve_checkpoint(checkpoint)
    # cuBLAS repeats its results bit by bit only with this, and reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    kind = _device_type(options.device)
    with process_group(kind) as group:
        if group.size > 1 and options.device == "auto":
            raise UsageError(
                "--device auto spreads one model over all cards; torchrun starts one per card",
                hint="use one of them",
            )
        if kind == "cuda" and (group.size > 1 or options.device == "auto"):
            device = torch.device("cuda", group.local_rank)
        else:
            device = torch.device(options.device)
        with environment.few_threads(device):
            return _Regeneration(directory, options, group, device, Stages(progress, device)).run()


def _device_type(name: str) -> str:
    try:
        kind = "cuda" if name == "auto" else torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"--device {name} is not a device", hint="use cuda or cpu") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise RegenError(
            "no CUDA device is available",
            hint="run on a machine with one, or add --device cpu (slow; fine for small models)",
        )
    return kind


@dataclass(frozen=True, eq=False)
class _Pass:
    """What the pairs of one dtype came from."""

    backbone: Backbone
    samples: SampleSet
    work: Work
    budget: Budget
    restored: Restored
    result: PassResult


@dataclass
class _Regeneration:
    """One run."""

    directory: Path
    options: RegenOptions
    group: Group
    device: torch.device
    stages: Stages
    warnings: list[str] = field(default_factory=list)

    def run(self) -> RegenResult:
        present = read_present(self.directory)
        self._warn(present.warnings)
        settings, source = choose_settings(self.directory, present, self.options)
        check_settings(settings, f"the settings of {source}")
        if not self.options.dry_run and self.group.is_main:
            check_writable(self.directory)
        old = present.state
        if old is not None and old.settings != settings:
            self._warn((f"the old state ran with other settings than {source}; it is not used",))
            old = None
        variant = self.options.variant or present.variant or "main"
        with self.stages.stage("import"):
            environment.require_diffusers()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        results: list[PassResult] = []
        found: dict[PairKey, ProjectionTensors] = {}
        extra: Projections = {}
        done: _Pass | None = None
        for token in DTYPES[self.options.dtype]:
            done = None  # the first model must be gone before the second comes
            done = self._pass(token, settings, variant, old, extra)
            results.append(done.result)
            best = done.restored.verdict.best.projections
            if done.result.improved:
                found |= proj.to_tensors(best)
            extra = {PairKey(key.head_dim, "fp16"): value for key, value in best.items()}
        assert done is not None
        result = self._result(done, tuple(results), settings, source)
        return self._finish(result, done, found, present, old, settings, variant)

    def _pass(
        self,
        token: str,
        settings: SLASettings,
        variant: str,
        old: SLAState | None,
        extra: Projections,
    ) -> _Pass:
        options = self.options
        backbone = load_with_kernels(
            self.directory, options, token, settings, variant, self.device, self.stages
        )
        adapter = environment.adapter_of(backbone, self.directory)
        samples = self._samples(adapter, backbone, settings)
        budget, work = self._work(adapter, backbone, samples)
        if options.offload:
            enable_checkpointing(backbone.model)
        plan = Plan(
            settings=settings,
            dtype=TORCH_DTYPES[token],
            variant=variant,
            kernel=options.kernel,
            method=options.method,
            optimizer=options.optimizer,
            steps=options.steps,
            lr=1e-2 if options.lr is None else options.lr,
            cautious=samples.kind == "synthetic",
        )
        # Around backward too: gradient checkpointing runs the forward again there.
        with adapter.running(backbone.model):
            restored = restore(
                backbone.model,
                work,
                plan,
                budget,
                device=self.device,
                old=old,
                extra={"other dtype": extra} if extra else {},
                group=self.group,
                progress=self.stages.progress,
            )
        self.stages.add(restored.seconds)
        result = PassResult.of(token, restored)
        return _Pass(backbone, samples, work, budget, restored, result)

    def _samples(
        self, adapter: FamilyAdapter, backbone: Backbone, settings: SLASettings
    ) -> SampleSet:
        options = self.options
        request = SampleRequest(
            data=options.data,
            images=options.images,
            inputs=options.inputs,
            count=options.samples,
            resolution=options.resolution,
            tokens=options.tokens,
            frames=options.frames,
            settings=settings,
            seed=options.seed,
            config=options.config,
            pipeline=options.base_model or backbone.base_model,
        )
        with self.stages.stage("samples"):
            samples = load_samples(
                self.directory, request, adapter, backbone.config, device=self.device
            )
        self._warn(samples.warnings)
        return samples

    def _work(
        self, adapter: FamilyAdapter, backbone: Backbone, samples: SampleSet
    ) -> tuple[Budget, Work]:
        train, held_out = split_samples(samples.samples or samples.calls)
        budget = plan_budget(
            parameters_of(backbone.model),
            tokens_of(samples.samples) if samples.samples else _STORED_TOKENS,
            train=len(train),
            judged=len(held_out or train),
            device_type=self.device.type,
            processes=self.group.size,
            draws=self.options.draws,
            evaluations=self.options.evaluations,
        )
        if samples.calls:
            return budget, stored_work(samples.calls, budget)
        work = sampled_work(adapter, backbone.config, samples.samples, budget, self.options.seed)
        return budget, work

    def _result(
        self, done: _Pass, passes: tuple[PassResult, ...], settings: SLASettings, source: str
    ) -> RegenResult:
        options, budget = self.options, done.budget
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return RegenResult(
            checkpoint=self.directory,
            written=None,
            reason=None,
            backups=(),
            passes=passes,
            settings={**settings.to_dict(), "source": source},
            backbone=done.backbone.description,
            samples=done.samples.description,
            data=done.samples.kind,
            train_samples=done.work.train_samples,
            judge_samples=done.work.judge_samples,
            seconds=self.stages.seconds,
            peak_memory=peak,
            device=environment.device_name(self.device, self.group),
            kernel=environment.kernel_name(
                options.kernel, self.device, done.restored.moments.pairs, settings
            ),
            versions=environment.versions(),
            options={
                "seed": options.seed,
                "steps": options.steps,
                "optimizer": options.optimizer,
                "method": options.method,
                "dry_run": options.dry_run,
                "draws_per_sample": budget.repeats,
                "held_out_draws_per_sample": budget.judge_repeats,
                "evaluations": budget.evaluations,
                "updates": budget.updates,
                "draws_per_update": budget.update_draws,
                "processes": self.group.size,
            },
            warnings=tuple(self.warnings) if self.group.is_main else (),
            is_main=self.group.is_main,
        )

    def _finish(
        self,
        result: RegenResult,
        done: _Pass,
        found: dict[PairKey, ProjectionTensors],
        present: Present,
        old: SLAState | None,
        settings: SLASettings,
        variant: str,
    ) -> RegenResult:
        reason = _why_not_written(result, present, found)
        if reason is not None or self.options.dry_run:
            return replace(result, reason=reason)
        kept = dict(old.pairs) if old is not None else {}
        origin = result.origin(
            base_model=done.backbone.base_model, variant=variant, version=__version__
        )
        state = SLAState({**kept, **found}, settings, origin=origin)
        if not self.group.is_main:
            self.group.barrier()
            return result
        with self.stages.stage("write"):
            written = write_result(self.directory, state, keep_old=self.options.backup)
        with self.stages.stage("verify"):
            report = verify(self.directory)
        self.group.barrier()
        findings = tuple(finding.to_dict() for finding in report.findings)
        return replace(
            result,
            written=written.path,
            backups=written.backups,
            verify_ok=report.ok,
            findings=findings,
        )

    def _warn(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            if text not in self.warnings:
                self.warnings.append(text)


def _why_not_written(
    result: RegenResult, present: Present, found: dict[PairKey, ProjectionTensors]
) -> str | None:
    made_up = result.data == "synthetic"
    if not found:
        return (
            "made-up samples did not make the loss fall so far that real ones surely gain too; "
            "name real ones with --data or --images"
            if made_up
            else "nothing beat what is there on the held-out samples"
        )
    if made_up and present.is_trained:
        return (
            "a trained state is there, and made-up samples cannot tell whether the new one is "
            "better; name real ones with --data or --images"
        )
    return None
