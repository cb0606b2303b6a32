"""A migration's plan and result as text and as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.verify import VerifyOptions, verify_source
from sla_ckpt.migrate.api import FixResult, remaining_problems
from sla_ckpt.migrate.options import MigrateOptions
from sla_ckpt.text import one_line

SCHEMA_VERSION = 1


def with_remaining(result: FixResult, options: MigrateOptions, *, dry_run: bool) -> FixResult:
    """Add the errors that verify still finds in the checkpoint (or would, after a dry run).

    A per-layer file that was written for another project is not judged by them.
    """
    plan = result.plan
    if options.to in ("turbodiffusion", "fastvideo"):
        return result
    report = verify_source(
        LocalSource(plan.root),
        VerifyOptions(expect=options.expect, config=options.config, base_model=options.base_model),
    )
    findings = list(report.findings)
    if dry_run and any(change.path.endswith("sla_attention.pt") for change in plan.changes):
        findings = [finding for finding in findings if finding.code != "SLA001"]
    return replace(result, plan=replace(plan, problems=remaining_problems(plan, findings)))


def to_json(result: FixResult, *, dry_run: bool) -> dict[str, Any]:
    """The documented JSON form, schema 1."""
    return {
        "schema": SCHEMA_VERSION,
        **result.plan.to_dict(),
        "dry_run": dry_run,
        "written": [str(path) for path in result.applied.written],
        "backups": [str(path) for path in result.applied.backups],
    }


def to_text(result: FixResult, *, dry_run: bool) -> str:
    """What was found, each step with before and after, and what stays wrong."""
    plan = result.plan
    lines = [f"{plan.root}: {plan.source}"]
    for number, step in enumerate(plan.steps, start=1):
        code = f"  [{step.code}]" if step.code else ""
        lines.append(f"  {number}. {step.path}: {step.title}{code}")
        lines.append(f"       {step.before} -> {step.after}")
    if not plan.steps:
        lines.append("  nothing to do")
    for problem in plan.problems:
        code = f" {problem.code}" if problem.code else ""
        lines.append(f"  left{code}: {problem.message}")
        if problem.hint:
            lines.append(f"       {problem.hint}")
    if plan.steps and dry_run:
        lines.append("dry run: nothing was written")
    elif result.applied.written:
        names = ", ".join(path.name for path in result.applied.written)
        lines.append(f"wrote {names}")
        if result.applied.backups:
            lines.append(f"kept {', '.join(path.name for path in result.applied.backups)}")
    return "\n".join(one_line(line) if not line.startswith(" ") else _indented(line)
                     for line in lines)  # fmt: skip


def _indented(line: str) -> str:
    text = line.lstrip(" ")
    return " " * (len(line) - len(text)) + one_line(text)
