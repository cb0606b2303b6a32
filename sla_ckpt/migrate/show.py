"""A migration's plan and result as text and as JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.verify import verify_source
from sla_ckpt.formats.layouts.write import writable
from sla_ckpt.migrate.api import FixResult, remaining_problems
from sla_ckpt.migrate.options import MigrateOptions
from sla_ckpt.migrate.plan import Plan
from sla_ckpt.state import STATE_FILE, TWIN_FILE
from sla_ckpt.text import for_target, one_line, quoted

SCHEMA_VERSION = 1


def with_remaining(result: FixResult, options: MigrateOptions, *, dry_run: bool) -> FixResult:
    """Add the errors that verify still finds in the checkpoint (or would, after a dry run).

    A per-layer file that was written for another project is not judged by them.
    """
    plan = result.plan
    if options.to in writable():
        return result
    with tempfile.TemporaryDirectory(prefix="sla-ckpt-") as folder:
        planned = _write_small(plan, Path(folder)) if dry_run else {}
        report = verify_source(_Planned(plan.root, planned), options.verify_options())
    target = quoted(str(plan.root))
    problems = tuple(
        replace(problem, hint=for_target(problem.hint, target))
        for problem in remaining_problems(plan, report.findings)
    )
    return replace(result, plan=replace(plan, problems=problems))


def _write_small(plan: Plan, folder: Path) -> dict[str, Path]:
    """The files of a plan that is not carried out, but for the optimizer's."""
    written = {}
    for number, change in enumerate(plan.changes):
        if change.path.endswith((STATE_FILE, TWIN_FILE, MANIFEST_FILE)):
            written[change.path] = folder / str(number)
            change.write(written[change.path])
    return written


class _Planned(LocalSource):
    """A checkpoint as it would be: some of its files are read from elsewhere."""

    def __init__(self, root: Path, planned: Mapping[str, Path]) -> None:
        super().__init__(root)
        self._planned = planned
        self._sizes = {path: file.stat().st_size for path, file in planned.items()}

    def files(self) -> Mapping[str, int]:
        return {**super().files(), **self._sizes}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path not in self._planned:
            return super().read(path, start, length)
        data = self._planned[path].read_bytes()[start:]
        return data if length is None else data[:length]


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
