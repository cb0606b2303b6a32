"""What verify says: findings, and the report that collects them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from sla_ckpt.errors import EXIT_CANNOT, EXIT_FINDINGS, EXIT_OK

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Finding:
    """One thing a rule has to say.

    Attributes:
        code: Rule code, ``SLA101``.
        level: ``error``, ``warning`` or ``info``.
        message: One line that names file, key and numbers.
        path: File concerned, relative to the target, POSIX separators.
        fixable: Whether ``sla-ckpt verify --fix`` can repair it.
        help: The next step.
    """

    code: str
    level: Level
    message: str
    path: str | None = None
    fixable: bool = False
    help: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "level": self.level,
            "message": self.message,
            "path": self.path,
            "fixable": self.fixable,
            "help": self.help,
        }


@dataclass(frozen=True)
class Report:
    """The result of verifying one target.

    Attributes:
        target: As the user named it.
        kind: What it is (``full``, ``lora``, …); ``unreadable`` when it could not be examined.
        expected: Pairs the model materialises, as ``"128:bf16"``; empty when unknown.
        found: Pairs in the file.
        findings: Errors first, then by code.
        problem: Why the target could not be examined at all; None when it was.
        problem_help: The next step for that.
        notes: Remarks: which checkpoint of an output directory was taken, what is unusual but
            harmless about the file (re-zipped, trailing bytes).
    """

    target: str
    kind: str
    expected: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())
    problem: str | None = None
    problem_help: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Examined, and nothing at error level."""
        return self.problem is None and not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.level == "warning")

    def exit_code(self, *, strict: bool = False) -> int:
        """The CLI's exit code: 0, 1 (errors; with ``strict`` warnings too) or 2."""
        if self.problem is not None:
            return EXIT_CANNOT
        if self.errors or (strict and self.warnings):
            return EXIT_FINDINGS
        return EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """The JSON schema, version 1 (docs/json-schema.md)."""
        result: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "target": self.target,
            "ok": self.ok,
            "kind": self.kind,
            "pairs": {"expected": list(self.expected), "found": list(self.found)},
            "findings": [item.to_dict() for item in self.findings],
            "notes": list(self.notes),
        }
        if self.problem is not None:
            result["problem"] = {"message": self.problem, "help": self.problem_help}
        return result


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then infos; by code and path within a level."""
    return tuple(
        sorted(findings, key=lambda f: (LEVELS.index(f.level), f.code, f.path or "", f.message))
    )


def combined_exit_code(reports: Iterable[Report], *, strict: bool = False) -> int:
    """The worst exit code of several reports."""
    return max((report.exit_code(strict=strict) for report in reports), default=EXIT_OK)
