"""The GitHub Action's outputs and job summary, from the JSON report of ``sla-ckpt verify``.

``python summary.py REPORT``; appends to the files that GITHUB_OUTPUT and GITHUB_STEP_SUMMARY name.
Without a report, because the command was refused, the outputs say so and the exit code is 2.
"""

from __future__ import annotations

import html
import json
import os
import sys
from pathlib import Path
from typing import Any

#: GitHub refuses a summary of more than 1 MiB.
MOST_ROWS = 500


def cell(text: object) -> str:
    """Text from a checkpoint as the content of a table's cell: no markup, no line break."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    for mark in "\\`*_[]|~#":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped


def summary(reports: list[dict[str, Any]]) -> str:
    """A Markdown table of what was found."""
    good = sum(report["ok"] for report in reports)
    lines = ["### SLA checkpoints", "", f"{good} of {len(reports)} good", ""]
    rows = []
    for report in reports:
        if report.get("problem"):
            rows.append((report["target"], "error", "", report["problem"]["message"]))
        rows += [
            (report["target"], finding["level"], finding["code"], finding["message"])
            for finding in report["findings"]
            if finding["level"] != "info"
        ]
    if rows:
        lines += ["| checkpoint | level | rule | what |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines += ["", f"and {len(rows) - MOST_ROWS} more, in the job's log"]
    return "\n".join(lines) + "\n"


def main(path: Path) -> int:
    if path.is_file():
        value = json.loads(path.read_text(encoding="utf-8"))
        reports = value if isinstance(value, list) else [value]
        levels = [finding["level"] for report in reports for finding in report["findings"]]
        errors = levels.count("error") + sum(bool(report.get("problem")) for report in reports)
        outputs = {
            "ok": str(all(report["ok"] for report in reports)).lower(),
            "errors": errors,
            "warnings": levels.count("warning"),
        }
        append("GITHUB_STEP_SUMMARY", summary(reports))
    else:
        outputs = {"ok": "false", "errors": 1, "warnings": 0}
    append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in outputs.items()))
    return 0 if path.is_file() else 2


def append(variable: str, text: str) -> None:
    """Add to one of the files through which a step talks to the runner."""
    with Path(os.environ[variable]).open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
