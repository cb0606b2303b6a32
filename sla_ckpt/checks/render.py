"""Reports as text, JSON, SARIF 2.1.0 and GitHub workflow commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from sla_ckpt._version import __version__
from sla_ckpt.checks.registry import all_rules
from sla_ckpt.checks.report import Finding, Report
from sla_ckpt.text import count, one_line

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_SARIF_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_GITHUB_LEVELS = {"error": "error", "warning": "warning", "info": "notice"}
_MARKS = {"error": ("error", "red"), "warning": ("warn ", "yellow"), "info": ("info ", "blue")}


def to_text(reports: Sequence[Report], *, quiet: bool = False) -> str:
    """For people: a line per finding, its next step below it, and a verdict.

    Args:
        reports: One or several.
        quiet: Leave out infos and targets without errors or warnings.
    """
    blocks = [block for report in reports if (block := _text_block(report, quiet=quiet))]
    if len(reports) > 1:
        bad = sum(not report.ok for report in reports)
        blocks.append(f"{count(len(reports), 'target')}: {len(reports) - bad} good, {bad} bad")
    return "\n".join(blocks)


def _text_block(report: Report, *, quiet: bool) -> str:
    import click

    shown = [f for f in report.findings if not (quiet and f.level == "info")]
    if quiet and report.ok and not shown:
        return ""
    title = click.style(one_line(report.target, limit=200), bold=True)
    lines = [f"{title}  ({report.kind})"]
    lines += [f"  note: {one_line(note)}" for note in report.notes]
    if report.problem is not None:
        lines.append(f"  {click.style('error', fg='red')} {one_line(report.problem)}")
        if report.problem_help:
            lines.append(f"        next: {one_line(report.problem_help)}")
        return "\n".join(lines)
    if report.found or report.expected:
        found = ", ".join(report.found) or "none"
        lines.append(f"  pairs: {found}; expected: {', '.join(report.expected) or 'unknown'}")
    for finding in shown:
        lines += _text_finding(finding)
    lines.append(_verdict(report))
    return "\n".join(lines)


def _text_finding(finding: Finding) -> list[str]:
    import click

    word, colour = _MARKS[finding.level]
    mark = click.style(f"{word} {finding.code}", fg=colour)
    tail = click.style(" [fixable]", fg="green") if finding.fixable else ""
    lines = [f"  {mark} {one_line(finding.message)}{tail}"]
    if finding.help:
        lines.append(f"        next: {one_line(finding.help)}")
    return lines


def _verdict(report: Report) -> str:
    import click

    if report.errors:
        numbers = [count(len(report.errors), "error")]
        if report.warnings:
            numbers.append(count(len(report.warnings), "warning"))
        return f"  {click.style('not whole', fg='red', bold=True)}: {', '.join(numbers)}"
    good = click.style("good", fg="green", bold=True)
    return f"  {good}" + (f", {count(len(report.warnings), 'warning')}" if report.warnings else "")


def to_json(reports: Sequence[Report]) -> str:
    """The documented schema: an object for one target, a list for several."""
    values = [report.to_dict() for report in reports]
    return json.dumps(values[0] if len(values) == 1 else values, indent=2)


def to_sarif(reports: Sequence[Report]) -> str:
    """SARIF 2.1.0, one run, for code-scanning uploads."""
    rules = all_rules()
    index = {item.code: position for position, item in enumerate(rules)}
    results = [
        _sarif_result(report, finding, index[finding.code])
        for report in reports
        for finding in report.findings
    ]
    problems = [
        {"level": "error", "message": {"text": f"{report.target}: {report.problem}"}}
        for report in reports
        if report.problem is not None
    ]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "sla-ckpt",
                "version": __version__,
                "rules": [
                    {
                        "id": item.code,
                        "shortDescription": {"text": item.title},
                        "help": {"text": f"Explained by: sla-ckpt rules {item.code}"},
                        "defaultConfiguration": {"level": _SARIF_LEVELS[item.level]},
                    }
                    for item in rules
                ],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not problems,
                "toolExecutionNotifications": problems,
            }
        ],
        "results": results,
    }
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _sarif_result(report: Report, finding: Finding, rule_index: int) -> dict[str, Any]:
    text = finding.message + (f" Next: {finding.help}" if finding.help else "")
    return {
        "ruleId": finding.code,
        "ruleIndex": rule_index,
        "level": _SARIF_LEVELS[finding.level],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report, finding)}}}],
    }


def _location(report: Report, finding: Finding) -> str:
    """The file a finding is about, as a path from where the command ran if it is below that."""
    path = PurePath(report.target)
    if path.suffix not in (".pt", ".safetensors") and finding.path:
        path /= finding.path
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def _uri(report: Report, finding: Finding) -> str:
    from urllib.parse import quote

    location = _location(report, finding)
    if PurePath(location).is_absolute():
        return PurePath(location).as_uri()
    return quote(location, safe="/@", errors="surrogateescape")


def to_github(reports: Sequence[Report]) -> str:
    """Workflow commands that GitHub shows as annotations."""
    lines = []
    for report in reports:
        if report.problem is not None:
            lines.append(f"::error title=sla-ckpt::{_escape(f'{report.target}: {report.problem}')}")
        for finding in report.findings:
            text = finding.message + (f" Next: {finding.help}" if finding.help else "")
            file = _escape(_location(report, finding)).replace(":", "%3A").replace(",", "%2C")
            lines.append(
                f"::{_GITHUB_LEVELS[finding.level]} file={file},title={finding.code}"
                f"::{_escape(text)}"
            )
    return "\n".join(lines)


def _escape(text: str) -> str:
    return one_line(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
