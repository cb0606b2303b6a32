"""The whole page: head, verdict, one section per run, and the rules that it mentions."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePath

from sla_ckpt._version import __version__
from sla_ckpt.checks.report import combined_exit_code
from sla_ckpt.errors import EXIT_CANNOT, EXIT_FINDINGS, EXIT_OK
from sla_ckpt.report.collect import Run, judged_reports
from sla_ckpt.report.guide import explain
from sla_ckpt.report.icons import icon, sprite
from sla_ckpt.report.markup import Child, Markup, el
from sla_ckpt.report.section import outcome, run_section
from sla_ckpt.text import count

_FAVICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%234058c9'/%3E%3Cpath d='M3 12l4-5 3 3 3-6' "
    "fill='none' stroke='white' stroke-width='2'/%3E%3C/svg%3E"
)


def to_html(runs: Sequence[Run], *, strict: bool = False) -> str:
    """One self-contained page: no scripts, nothing loaded, everything from files escaped.

    Args:
        runs: What :func:`~sla_ckpt.report.collect.collect` gathered.
        strict: Warnings count as errors, as for the exit code.
    """
    title = _title(runs)
    path = _path(runs) or title
    codes = sorted({f.code for run in runs for item in run.snapshots for f in item.report.findings})
    several = len(runs) > 1
    sections = [
        run_section(run, prefix=f"r{number}", level=2, alone=not several)
        for number, run in enumerate(runs, 1)
    ]
    rules = list(explain(codes, level=3))
    body = el(
        "body",
        sprite(),
        el("a", "Skip to the findings", href="#main", class_="skip"),
        el(
            "header",
            el("p", "sla-ckpt · SLA checkpoint report", class_="eyebrow"),
            el("h1", title),
            el("p", path, class_="path") if path != title else None,
            _verdict(runs, strict) if runs else None,
        ),
        _contents(runs, bool(rules)) if runs else None,
        el(
            "main",
            sections,
            el("section", el("h2", "The rules, explained"), rules, id="rules", class_="rules")
            if rules
            else None,
            id="main",
            tabindex=-1,
        ),
        el("footer", el("p", f"Made by sla-ckpt {__version__} on {_now()}.")),
    )
    page = f"<!doctype html>\n{el('html', _head(title), body, lang='en')}"
    # ASCII is right in whatever encoding standard output has, also for names that have none.
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _head(title: str) -> Markup:
    style = files("sla_ckpt.report").joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="generator", content=f"sla-ckpt {__version__}"),
        el("title", f"{title} · SLA checkpoint report"),
        el("link", rel="icon", href=_FAVICON),
        el("style", Markup(style)),
    )


def _title(runs: Sequence[Run]) -> str:
    if not runs:
        return "Nothing to verify"
    if len(runs) > 1:
        return count(len(runs), "target")
    snapshots = runs[0].snapshots
    title = runs[0].title if len(snapshots) > 1 else snapshots[0].name
    # A repository is called by its whole name, a folder by its last part.
    if any(item.url for item in snapshots):
        return title
    return PurePath(title).name or Path(title).resolve().name or title


def _path(runs: Sequence[Run]) -> str | None:
    """Where the one thing is that the page is about."""
    if len(runs) != 1:
        return None
    snapshots = runs[0].snapshots
    return runs[0].title if len(snapshots) > 1 else snapshots[0].report.target


def _verdict(runs: Sequence[Run], strict: bool) -> Markup:
    reports = judged_reports(runs)
    code = combined_exit_code(reports, strict=strict)
    errors = sum(len(report.errors) for report in reports)
    warnings = sum(len(report.warnings) for report in reports)
    counts = " and ".join(
        count(number, noun) for number, noun in ((errors, "error"), (warnings, "warning")) if number
    )
    if code == EXIT_CANNOT:
        failed = sum(report.problem is not None for report in reports)
        word = "Could not be examined"
        parts = [f"{failed} of {len(reports)} targets"] if len(reports) > 1 else []
        detail = "; ".join([*parts, f"{counts} in the others"] if counts else parts)
        name, class_ = "unknown", "unexamined"
    elif code == EXIT_FINDINGS:
        word, detail, name, class_ = "Not whole", counts, "error", "errors"
        if not errors:
            word, detail = "Warnings", f"{counts} (--strict: they count as errors)"
    else:
        assert code == EXIT_OK
        word, detail = "Whole", counts or "no errors, no warnings"
        name, class_ = ("warning", "warnings") if warnings else ("good", "good")
    return el(
        "p",
        icon(name),
        el("strong", word),
        el("span", f"{_subject(runs)}{detail}") if detail else None,
        class_=f"verdict {class_}",
    )


def _subject(runs: Sequence[Run]) -> str:
    """Which checkpoint of a run the verdict is about, where there are others beside it."""
    if len(runs) != 1 or len(runs[0].judged) > 1 or len(runs[0].snapshots) == 1:
        return ""
    return f"{runs[0].judged[0].name}: "


def _contents(runs: Sequence[Run], rules: bool) -> Markup:
    """Links to the parts of the page; with several targets, a table of them."""
    if len(runs) > 1:
        longest = max(len(run.snapshots) for run in runs)
        rows = [
            el(
                "tr",
                el("td", el("a", run.title, href=f"#r{number}")),
                el("td", outcome(run.latest)),
                el("td", str(len(run.snapshots)), class_="number") if longest > 1 else None,
            )
            for number, run in enumerate(runs, 1)
        ]
        head = [el("th", word, scope="col") for word in ("Target", "Verdict")]
        if longest > 1:
            head.append(el("th", "Checkpoints", scope="col", class_="number"))
        table = el("table", el("thead", el("tr", head)), el("tbody", rows))
        return el(
            "nav",
            el("h2", "Targets"),
            el("div", table, class_="scroll tall", tabindex=0, role="region", aria_label="Targets"),
            el("p", el("a", "The rules, explained", href="#rules")) if rules else None,
            aria_label="Contents",
        )
    links: list[Child] = [
        el("li", el("a", label, href=f"#r1-{part}")) for part, label in _parts(runs[0])
    ]
    if rules:
        links.append(el("li", el("a", "Rules", href="#rules")))
    return el("nav", el("ul", links), aria_label="Contents", class_="contents")


def _parts(run: Run) -> list[tuple[str, str]]:
    parts = [("timeline", "Timeline")] if len(run.snapshots) > 1 else []
    parts.append(("findings", "Findings"))
    if run.latest.state is not None:
        parts += [("pairs", "Pairs"), ("settings", "Settings")]
    return parts


def _now() -> str:
    """The time, or SOURCE_DATE_EPOCH where output has to be reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(epoch) if epoch.isdigit() else time.time()
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
