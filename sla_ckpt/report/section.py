"""One run, or one other target: its timeline, findings, pairs and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sla_ckpt.checks.summary import PairSummary, StateSummary
from sla_ckpt.report.chart import spectrum
from sla_ckpt.report.collect import Run, Snapshot
from sla_ckpt.report.findings import Occurrence, anchors, cards, command, occurrences
from sla_ckpt.report.icons import icon
from sla_ckpt.report.markup import Child, Markup, el
from sla_ckpt.report.timeline import mark_of, timeline
from sla_ckpt.text import count


def run_section(run: Run, *, prefix: str, level: int, alone: bool) -> Markup:
    """The section of a run.

    Args:
        run: What to show.
        prefix: Of every id in it.
        level: Heading level of the section, or of its parts when it stands alone.
        alone: The page is about this run only, whose name is its title already.
    """
    ids = {id(item): f"{prefix}-c{number}" for number, item in enumerate(run.snapshots)}
    heading = level if alone else level + 1
    found = occurrences(run.snapshots, ids)
    where = anchors(found, prefix)
    latest = run.latest
    return el(
        "section",
        None if alone else el(f"h{level}", run.title),
        _facts(run, ids) if latest.report.problem is None else None,
        timeline(run, ids, where, prefix=prefix, level=heading) if len(run.snapshots) > 1 else None,
        _findings(run, found, prefix, heading),
        _pairs(latest, prefix, heading) if latest.state else None,
        _settings(latest.state, latest.name, prefix, heading) if latest.state else None,
        id=prefix,
        class_="run",
    )


def outcome(snapshot: Snapshot) -> Markup:
    """A checkpoint's verdict: picture and word."""
    mark = mark_of(snapshot)
    return el("span", icon(mark.icon), mark.word, class_=f"mark {mark.class_}")


def _facts(run: Run, ids: Mapping[int, str]) -> Markup:
    latest = run.latest
    items: list[tuple[str, Child]] = []
    if len(run.snapshots) > 1:
        finished = [item for item in run.snapshots if not item.unfinished]
        having = sum(item.state is not None for item in finished)
        items.append(("State", f"in {having} of {count(len(finished), 'checkpoint')}"))
        judged = run.judged
        word = judged[0].name if len(judged) == 1 else count(len(judged), "checkpoint")
        items.append(("Judged", word))
        beside = [item for item in run.snapshots if not item.judged and not item.unfinished]
        if beside:
            bad = sum(item.verdict in ("errors", "unexamined") for item in beside)
            items.append(("Others", f"{bad} of {len(beside)} with errors" if bad else "no errors"))
    if (good := _last_good(run)) is not None:
        items.append(("Last good one", el("a", good.name, href=f"#{ids[id(good)]}")))
    items.append(("Kind", latest.report.kind))
    report = latest.report
    if report.found or report.expected:
        items.append(("Pairs", ", ".join(report.found) or "none"))
        items.append(("Expected", ", ".join(report.expected) or "unknown"))
    if latest.url:
        items.append(("On the Hub", el("a", latest.url, href=latest.url, rel="noreferrer")))
    notes = [el("p", note, class_="note") for note in report.notes]
    return _fact_list(items, notes)


def _last_good(run: Run) -> Snapshot | None:
    """The newest checkpoint without errors, where the judged one has some."""
    if run.latest.verdict in ("good", "warnings"):
        return None
    good = (
        item
        for item in reversed(run.snapshots)
        if item.verdict in ("good", "warnings") and item.state and not item.unfinished
    )
    return next(good, None)


def _fact_list(items: list[tuple[str, Child]], notes: list[Markup]) -> Markup:
    """Facts as a list of terms, remarks below."""
    terms = [el("div", el("dt", label), el("dd", value)) for label, value in items]
    return el("div", el("dl", terms, class_="facts"), notes)


def _findings(run: Run, found: Sequence[Occurrence], prefix: str, level: int) -> Markup:
    several = len(run.snapshots) > 1
    problems = [_problem(item) for item in run.snapshots if item.report.problem is not None]
    own = [item for item in found if item.judged]
    others = [item for item in found if not item.judged]
    parts: list[Child] = [el(f"h{level}", "Findings"), problems]
    if own:
        parts += cards(own, level=level + 1, prefix=prefix, several=several)
    elif not problems:
        names = run.judged[0].name if len(run.judged) == 1 else "these checkpoints"
        parts.append(el("p", icon("good"), f"Nothing to say about {names}.", class_="nothing"))
    if others:
        parts.append(el(f"h{level + 1}", "In the other checkpoints of this run", class_="others"))
        parts += cards(others, level=level + 2, prefix=prefix, several=True)
    return el("section", parts, id=f"{prefix}-findings")


def _problem(snapshot: Snapshot) -> Markup:
    report = snapshot.report
    return el(
        "div",
        el("p", icon("unknown"), f"{snapshot.name}: {report.problem}", class_="what"),
        el("p", "Next: ", command(report.problem_help)) if report.problem_help else None,
        class_="card unexamined",
    )


def _pairs(snapshot: Snapshot, prefix: str, level: int) -> Markup:
    assert snapshot.state is not None
    state = snapshot.state
    columns = ("Pair", "Stored", "Norm", "Bias norm", "Rank", "Zeros", "Singular values", "Remark")
    numeric = {"Norm", "Bias norm", "Rank", "Zeros"}
    head = [
        el("th", name, scope="col", class_="number" if name in numeric else None)
        for name in columns
    ]
    rows = [_pair_row(pair) for pair in state.pairs]
    missing = [name for name in state.expected if name not in {p.name for p in state.pairs}]
    rows += [
        el(
            "tr",
            el("th", name, scope="row"),
            el("td", icon("missing"), "missing: this model needs it", colspan=len(columns) - 1),
            class_="absent",
        )
        for name in missing
    ]
    table = el(
        "table",
        el("caption", f"proj_l of {snapshot.name}"),
        el("thead", el("tr", head)),
        el("tbody", rows),
    )
    label = f"Pairs of {snapshot.name}"
    return el(
        "section",
        el(f"h{level}", "Pairs"),
        el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label),
        id=f"{prefix}-pairs",
    )


def _pair_row(pair: PairSummary) -> Markup:
    shape = "×".join(map(str, pair.weight_shape)) if pair.weight_shape else "no weight"
    rank = None
    if pair.rank is not None and pair.weight_shape:
        rank = f"{pair.rank} of {min(pair.weight_shape)}"
    spark = spectrum(pair.singular_values)
    cells: list[Child] = [
        el("th", pair.name, scope="row"),
        el("td", f"{shape} {'/'.join(pair.dtypes)}"),
        _number(pair.norm),
        _number(pair.bias_norm),
        el("td", rank or "–", class_="number"),
        el("td", f"{pair.zeros:.1%}" if pair.zeros is not None else "–", class_="number"),
        el("td", spark or "–"),
        el("td", _remark(pair)),
    ]
    return el("tr", cells)


def _number(value: float | None) -> Markup:
    return el("td", f"{value:.4g}" if value is not None else "–", class_="number")


def _remark(pair: PairSummary) -> Markup:
    if not pair.finite:
        return el("span", icon("error"), "NaN or Inf", class_="mark errors")
    if not pair.trained:
        return el("span", icon("warning"), "all zero, never trained", class_="mark warnings")
    if pair.stray:
        return el("span", icon("info"), "not a pair of this model", class_="mark info")
    return el("span", icon("good"), "trained", class_="mark good")


def _settings(state: StateSummary, name: str, prefix: str, level: int) -> Markup:
    values = state.settings.to_dict() if state.settings else {}
    settings: list[tuple[str, Child]] = [(key, str(value)) for key, value in values.items()]
    origin: list[tuple[str, Child]] = [(key, value) for key, value in sorted(state.origin.items())]
    file: list[tuple[str, Child]] = [
        ("Checkpoint", name),
        ("File", el("code", state.path)),
        ("Size", f"{state.size:,} bytes"),
        ("SHA-256", el("code", state.sha256, class_="hash")),
    ]
    inner = level + 1
    return el(
        "section",
        el(f"h{level}", "Settings"),
        _fact_list(settings, [])
        if settings
        else el("p", "The file holds no settings that can be read.", class_="note"),
        el(f"h{inner}", "File"),
        _fact_list(file, []),
        el(f"h{inner}", "Origin"),
        _fact_list(origin, [])
        if origin
        else el("p", "Not recorded: a trainer wrote it.", class_="note"),
        id=f"{prefix}-settings",
    )
