"""What a regeneration did: for the terminal, for machines and for the twin's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sla_ckpt.state import PairKey

if TYPE_CHECKING:
    from sla_ckpt.regen.restore import Restored

SCHEMA = 1


@dataclass(frozen=True)
class CandidateResult:
    """One candidate as the judge saw it.

    Attributes:
        name: ``zero``, ``old``, ``calibrated``, ``trained from …``.
        loss: Mean held-out loss.
        present: Whether it is what the checkpoint had.
        chosen: Whether it is the result.
    """

    name: str
    loss: float
    present: bool
    chosen: bool


@dataclass(frozen=True)
class PairResult:
    """Attention error of one pair against dense attention, ‖o − o_dense‖ / ‖o_dense‖.

    Attributes:
        pair: ``128:bf16``.
        layers: Number of attention layers that share it.
        before: Over all layers, with what the checkpoint had.
        after: With the result.
        worst_before: Of the worst layer.
        worst_after: Likewise.
        worst_layer: The number of the worst layer after, from 0.
        layer_errors_before: Of each layer.
        layer_errors_after: Of each layer.
    """

    pair: str
    layers: int
    before: float
    after: float
    worst_before: float
    worst_after: float
    worst_layer: int
    layer_errors_before: tuple[float, ...] = ()
    layer_errors_after: tuple[float, ...] = ()


@dataclass(frozen=True)
class PassResult:
    """The regeneration of the pairs of one dtype.

    Attributes:
        dtype: ``bf16`` or ``fp16``.
        method: What made the result: ``calibrated``, ``trained from zero``, …; ``unchanged`` if
            nothing beat what was there.
        before: Held-out loss of what the checkpoint had.
        after: Held-out loss of the result.
        standard_error: Of the difference.
        candidates: Best first.
        pairs: Attention errors.
        train_losses: Loss of every evaluation, by name of the trained candidate.
        calls: What happened to the attention calls.
    """

    dtype: str
    method: str
    before: float
    after: float
    standard_error: float
    candidates: tuple[CandidateResult, ...]
    pairs: tuple[PairResult, ...]
    train_losses: Mapping[str, tuple[float, ...]]
    calls: str

    @property
    def improved(self) -> bool:
        return self.method != "unchanged"

    @classmethod
    def of(cls, dtype: str, restored: Restored) -> PassResult:
        """The result of one :func:`~sla_ckpt.regen.restore.restore`."""
        verdict = restored.verdict
        return cls(
            dtype=dtype,
            method=verdict.best.name if verdict.improved else "unchanged",
            before=verdict.present.loss,
            after=verdict.best.loss,
            standard_error=verdict.standard_error,
            candidates=tuple(
                CandidateResult(c.name, c.loss, c.present, c.name == verdict.best.name)
                for c in verdict.candidates
            ),
            pairs=tuple(_pair_result(restored, pair) for pair in restored.moments.pairs),
            train_losses=restored.train_losses,
            calls=restored.calls,
        )


def _pair_result(restored: Restored, pair: PairKey) -> PairResult:
    moments, verdict = restored.moments, restored.verdict
    before = moments.error(pair, verdict.present.projections[pair])
    after = moments.error(pair, verdict.best.projections[pair])
    layers_before = moments.layer_errors(pair, verdict.present.projections[pair])
    layers_after = moments.layer_errors(pair, verdict.best.projections[pair])
    return PairResult(
        pair=str(pair),
        layers=len(layers_after),
        before=before.overall,
        after=after.overall,
        worst_before=before.worst,
        worst_after=after.worst,
        worst_layer=after.worst_layer,
        layer_errors_before=layers_before,
        layer_errors_after=layers_after,
    )


@dataclass(frozen=True)
class RegenResult:
    """What :func:`sla_ckpt.regen.engine.regenerate` did.

    Attributes:
        checkpoint: The directory.
        written: The state file, None when nothing was written.
        reason: Why nothing was written; None otherwise.
        backups: Copies of what was there.
        passes: One per dtype.
        settings: SLA's settings, and where they come from under ``source``.
        backbone: What was loaded.
        samples: Where the samples come from.
        data: ``real`` or ``synthetic``.
        train_samples: How many trained.
        judge_samples: How many others judged; 0 when the same ones did, under other noise.
        seconds: Time of each stage.
        peak_memory: Bytes at most on the device; None on a CPU.
        device: Name of the device.
        kernel: Which kernel ran.
        versions: Of python, torch, diffusers and sla_ckpt.
        options: seed, steps, optimizer, draws, …
        warnings: What the user must know.
        verify_ok: Whether verify finds no error in the result; None when nothing was written.
        findings: What verify says about it.
        is_main: Whether this process is the one that writes and reports.
    """

    checkpoint: Path
    written: Path | None
    reason: str | None
    backups: tuple[Path, ...]
    passes: tuple[PassResult, ...]
    settings: Mapping[str, Any]
    backbone: str
    samples: str
    data: str
    train_samples: int
    judge_samples: int
    seconds: Mapping[str, float]
    peak_memory: int | None
    device: str
    kernel: str
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    verify_ok: bool | None = None
    findings: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    is_main: bool = True

    @property
    def ok(self) -> bool:
        """Whether every pass found something better than what was there."""
        return self.reason is None and self.verify_ok is not False

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, schema 1."""
        values = asdict(self)
        del values["is_main"]
        values["checkpoint"] = str(self.checkpoint)
        values["written"] = str(self.written) if self.written else None
        values["backups"] = [str(path) for path in self.backups]
        return {"schema": SCHEMA, "ok": self.ok, **values}

    def origin(self, *, base_model: str | None, variant: str, version: str) -> dict[str, str]:
        """The twin's metadata."""
        numbers = {
            f"{name}_{item.dtype}" if len(self.passes) > 1 else name: value
            for item in self.passes
            for name, value in (
                ("method", item.method),
                ("loss_before", f"{item.before:.6g}"),
                ("loss_after", f"{item.after:.6g}"),
                ("loss_difference_standard_error", f"{item.standard_error:.3g}"),
            )
        }
        return {
            "tool": f"sla-ckpt {version}",
            **numbers,
            "trained": "proj_l only; the backbone is as it was",
            "steps": str(self.options["steps"]),
            "optimizer": str(self.options["optimizer"]),
            "seed": str(self.options["seed"]),
            "kernel": self.kernel,
            "sla_variant": variant,
            "data": self.data,
            "samples": str(self.train_samples + self.judge_samples),
            "device": self.device,
            "torch": self.versions.get("torch", "unknown"),
            **({"base_model": base_model} if base_model else {}),
        }


def render_text(result: RegenResult) -> str:
    """The result for a terminal."""
    lines = [
        f"checkpoint  {result.checkpoint}",
        f"backbone    {result.backbone}",
        f"samples     {result.samples}",
        f"device      {result.device}, kernel {result.kernel}, seed {result.options['seed']}",
        f"settings    {', '.join(f'{k} {v}' for k, v in result.settings.items())}",
        f"trained     proj_l only ({result.options['steps']} step(s) of "
        f"{result.options['optimizer']}); the backbone was not adapted",
    ]
    for item in result.passes:
        lines += ["", *_render_pass(item)]
    lines += ["", "time        " + ", ".join(f"{k} {v:.2f} s" for k, v in result.seconds.items())]
    if result.peak_memory is not None:
        lines.append(f"memory      {result.peak_memory / 2**30:.2f} GiB at most on the device")
    lines.append("")
    if result.written is not None:
        lines.append(f"written     {result.written}")
        lines += [f"old file    {path}" for path in result.backups]
    else:
        lines.append(f"not written: {result.reason or 'dry run'}")
    lines += [
        f"verify      {finding['code']} {finding['level']}: {finding['message']}"
        for finding in result.findings
        if finding["level"] != "info"
    ]
    if result.verify_ok:
        lines.append("verify      no errors")
    return "\n".join(lines)


def _render_pass(item: PassResult) -> list[str]:
    change = 100 * (item.after - item.before) / item.before if item.before else 0.0
    lines = [
        f"{'pairs in ' + item.dtype:<40}{'before':>12}{'after':>12}",
        f"{'held-out loss':<40}{item.before:>12.6f}{item.after:>12.6f}  "
        f"({change:+.2f} %, {item.method})",
    ]
    for pair in item.pairs:
        name = f"attention error {pair.pair}, {pair.layers} layers"
        lines += [
            f"{name:<40}{pair.before:>12.4f}{pair.after:>12.4f}",
            f"{f'  worst layer ({pair.worst_layer})':<40}"
            f"{pair.worst_before:>12.4f}{pair.worst_after:>12.4f}",
        ]
    lines.append("candidates, by held-out loss:")
    for candidate in item.candidates:
        marks = [
            text
            for text, shown in (("present", candidate.present), ("chosen", candidate.chosen))
            if shown
        ]
        note = f"  ({', '.join(marks)})" if marks else ""
        lines.append(f"  {candidate.name:<38}{candidate.loss:>12.6f}{note}")
    return lines
