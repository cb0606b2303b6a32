"""The entry points: plan a migration, carry it out, and repair what ``verify`` found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.context import Context
from sla_ckpt.checks.report import Finding, Report
from sla_ckpt.errors import UsageError
from sla_ckpt.formats.layouts.write import writable
from sla_ckpt.fsio import directory_lock
from sla_ckpt.migrate.convert import plan_conversion
from sla_ckpt.migrate.options import MigrateOptions, targets
from sla_ckpt.migrate.plan import Plan, Problem
from sla_ckpt.migrate.repairs import plan_repairs
from sla_ckpt.migrate.sources import find_foreign
from sla_ckpt.migrate.transaction import STAGING, Applied, apply_plan, recover
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE, TWIN_FILE

#: What :func:`fix` does unless told otherwise: everything that loses nothing.
DEFAULT_CODES = frozenset(
    {"SLA001", "SLA002", "SLA004", "SLA101", "SLA201", "SLA204", "SLA208", "SLA209", "SLA212",
     "SLA304", "SLA306"}
)  # fmt: skip


@dataclass(frozen=True)
class FixResult:
    """What :func:`fix` planned and did.

    Attributes:
        plan: The plan.
        applied: What was written; empty for a dry run.
    """

    plan: Plan
    applied: Applied


def plan_migration(checkpoint: Path | str | None, options: MigrateOptions | None = None) -> Plan:
    """Detect what is there and plan what to do with it.

    Args:
        checkpoint: A checkpoint, an output directory, or a file of another project; the current
            directory when None.
        options: What to read and write.

    Returns:
        The plan; nothing was written.

    Raises:
        TargetNotFoundError: It does not exist.
        MigrationError: It cannot be migrated without losing something.
        UsageError: An option makes no sense here.
        FormatError: The source is damaged.
    """
    options = options or MigrateOptions()
    if options.to is not None and options.to not in targets():
        raise UsageError(f"no layout {options.to!r:.40}", hint=f"there are: {', '.join(targets())}")
    root, options = _resolve(checkpoint, options)
    context = Context(LocalSource(root), options.verify_options())
    own = context.checkpoint.state_path or context.checkpoint.twin_path
    if options.source is None and own is None:
        foreign = find_foreign(root, context)
        if foreign is not None:
            options = replace(options, source=foreign)
    if options.source is not None or options.to in writable():
        return plan_conversion(root, options, context)
    if options.output is not None:
        raise UsageError("--output is for --from and per-layer files", hint="leave it out")
    return plan_repairs(root, options)


def _resolve(checkpoint: Path | str | None, options: MigrateOptions) -> tuple[Path, MigrateOptions]:
    """The folder, and a foreign file given in its place as the source."""
    path = expand(checkpoint) if checkpoint is not None else Path()
    if path.is_file() and path.name not in (STATE_FILE, TWIN_FILE):
        if options.source is not None:
            raise UsageError(
                f"both {path} and --from {options.source} are files to read",
                hint="name the checkpoint folder and --from FILE",
            )
        return path.parent, replace(options, source=path)
    return resolve_checkpoint(path), options


def migrate(
    checkpoint: Path | str | None, options: MigrateOptions | None = None, *, dry_run: bool = False
) -> FixResult:
    """Plan a migration and carry it out, all of it or nothing.

    An earlier migration that was interrupted is finished first.

    Args:
        checkpoint: As for :func:`plan_migration`.
        options: Likewise.
        dry_run: Only plan.

    Raises:
        LockedError: Another process writes to this checkpoint.
        WriteError: Nothing was changed.
        SlaCkptError: As :func:`plan_migration`.
    """
    if not dry_run:
        finish_interrupted(checkpoint)
    plan = plan_migration(checkpoint, options)
    return FixResult(plan, Applied() if dry_run else apply_plan(plan))


def finish_interrupted(checkpoint: Path | str | None) -> tuple[Path, ...]:
    """Finish a migration that was killed half-way; the files that this completed."""
    root, _ = _resolve(checkpoint, MigrateOptions())
    if not (root / STAGING).is_dir():
        return ()
    with directory_lock(root):
        return recover(root)


def fix(
    checkpoint: Path | str,
    codes: Iterable[str] | Report | None = None,
    options: MigrateOptions | None = None,
    *,
    dry_run: bool = False,
) -> FixResult:
    """Repair what ``verify`` calls fixable; the library side of ``verify --fix``.

    Args:
        checkpoint: The checkpoint.
        codes: Rules to repair, or a report whose fixable findings are meant; by default
            everything that loses nothing. All-zero stray pairs (SLA207) are dropped only when
            that code is named or ``options.drop_strays`` is set.
        options: Further options.
        dry_run: Only plan.

    Raises:
        SlaCkptError: As :func:`migrate`.

    Example:
        >>> result = fix("output/checkpoint-500")  # doctest: +SKIP
        >>> [step.title for step in result.plan.steps]  # doctest: +SKIP
    """
    if isinstance(codes, Report):
        wanted = frozenset(finding.code for finding in codes.findings if finding.fixable)
        wanted -= {"SLA207"}
    else:
        wanted = DEFAULT_CODES if codes is None else frozenset(codes)
    options = options or MigrateOptions()
    options = replace(
        options, codes=wanted, drop_strays=options.drop_strays or "SLA207" in wanted, to=None
    )
    return migrate(checkpoint, options, dry_run=dry_run)


def remaining_problems(plan: Plan, findings: Iterable[Finding]) -> tuple[Problem, ...]:
    """Errors that a plan leaves, each once: its own, and the findings that no step repairs."""
    repaired = {step.code for step in plan.steps}
    named = {problem.code for problem in plan.problems}
    others = [
        Problem(finding.message, finding.help, finding.code)
        for finding in findings
        if finding.level == "error" and finding.code not in repaired | named
    ]
    return (*plan.problems, *others)
