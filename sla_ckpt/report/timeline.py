"""The checkpoints of a run in a row, how their projections move, and a table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sla_ckpt.report.chart import Point, legend, trend
from sla_ckpt.report.collect import Run, Snapshot
from sla_ckpt.report.findings import Anchors
from sla_ckpt.report.icons import icon
from sla_ckpt.report.markup import Child, Markup, el
from sla_ckpt.report.story import Remark, pair_names, pair_of, remarks
from sla_ckpt.text import count

#: More checkpoints than this are shown as small squares, and their table scrolls.
MANY = 40
#: Pairs that get a chart and a column; a model materialises one or two.
MOST_PAIRS = 6
MOST_REMARKS = 12
_REMARK_ICONS = {"lost": "error", "odd": "warning", "fact": "info"}


@dataclass(frozen=True)
class Mark:
    """How a checkpoint is marked: colour class, picture, its word, and that of several."""

    class_: str
    icon: str
    word: str
    counted: str


def mark_of(snapshot: Snapshot) -> Mark:
    """The one thing to know about a checkpoint."""
    if snapshot.verdict == "unexamined":
        return Mark("unexamined", "unknown", "not examined", "not examined")
    if snapshot.unfinished:
        return Mark("unfinished", "unfinished", "unfinished", "unfinished")
    if snapshot.status == "missing":
        # Without anything that speaks for SLA, a checkpoint without a state is no fault.
        class_ = "errors" if snapshot.verdict == "errors" else "unfinished"
        return Mark(class_, "missing", "no state", "without state")
    if snapshot.status == "unreadable":
        return Mark("errors", "error", "state unreadable", "with unreadable state")
    if snapshot.verdict == "errors":
        return Mark("errors", "error", "errors", "with errors")
    if snapshot.verdict == "warnings":
        return Mark("warnings", "warning", "warnings", "with warnings")
    return Mark("good", "good", "good", "good")


def timeline(
    run: Run, ids: Mapping[int, str], anchors: Anchors, *, prefix: str, level: int
) -> Markup:
    """The section of a run with several checkpoints.

    Args:
        run: What to show.
        ids: The id of each checkpoint's row.
        anchors: Where the findings of a row are.
        prefix: Of every id in it.
        level: Heading level.
    """
    names = pair_names(run)[:MOST_PAIRS]
    found = remarks(run)
    charts = [_chart(run, name, found) for name in names if _moves(run, name)]
    return el(
        "section",
        el(f"h{level}", "Timeline"),
        _counts(run),
        _strip(run, ids),
        _remarks(found),
        el(f"h{level + 1}", "Norm of proj_l"),
        charts
        if charts
        else el("p", "No checkpoint has a state with a trained projection.", class_="note"),
        el(f"h{level + 1}", "Checkpoints"),
        _table(run, ids, names, anchors),
        id=f"{prefix}-timeline",
    )


def _counts(run: Run) -> Markup:
    marks = [mark_of(item) for item in run.snapshots]
    items = [
        el("li", icon(mark.icon), f"{number} {mark.counted}", class_=f"mark {mark.class_}")
        for mark, number in Counter(marks).most_common()
    ]
    return el("ul", items, class_="counts")


def _strip(run: Run, ids: Mapping[int, str]) -> Markup:
    small = len(run.snapshots) > MANY
    items = []
    for item in run.snapshots:
        mark = mark_of(item)
        label = f"{item.name}: {mark.word}"
        link = el(
            "a",
            icon(mark.icon),
            None if small else el("span", _short(item)),
            href=f"#{ids[id(item)]}",
            title=label,
            aria_label=label,
            class_=f"chip {mark.class_}" + (" judged" if item.judged else ""),
        )
        items.append(el("li", link))
    return el("ol", items, class_="strip small" if small else "strip", aria_label="Checkpoints")


def _short(snapshot: Snapshot) -> str:
    return snapshot.name.removeprefix("checkpoint-")


def _remarks(found: Sequence[Remark]) -> Markup | None:
    items = [
        el("li", icon(_REMARK_ICONS[item.weight]), el("span", item.text), class_=item.weight)
        for item in found[:MOST_REMARKS]
    ]
    hidden = len(found) - MOST_REMARKS
    if hidden > 0:
        items.append(el("li", f"and {count(hidden, 'more remark')}"))
    return el("ul", items, class_="remarks") if items else None


def _moves(run: Run, name: str) -> bool:
    """Whether there is anything to draw: a pair that is zero throughout has no chart."""
    pairs = [pair for item in run.snapshots if (pair := pair_of(item, name)) is not None]
    return any(pair.trained or not pair.finite for pair in pairs)


def _chart(run: Run, name: str, found: Sequence[Remark]) -> Markup:
    by_step = all(item.step is not None for item in run.snapshots)
    finished = [item for item in run.snapshots if not item.unfinished] or list(run.snapshots)
    points = [
        point
        for place, item in enumerate(finished, 1)
        if (point := _point(item, name, float(item.step or 0) if by_step else float(place)))
    ]
    words = [item.text for item in found if item.pair == name]
    return el(
        "figure",
        el("figcaption", el("strong", name), " Frobenius norm of the weight"),
        trend(
            points,
            name=f"{name}: norm of proj_l.weight by training step",
            description=" ".join(words) or "The table below has the numbers.",
            x_label="training step" if by_step else "checkpoint",
        ),
        legend([item.kind for item in points]),
    )


def _point(snapshot: Snapshot, name: str, x: float) -> Point | None:
    pair = pair_of(snapshot, name)
    if pair is None:
        if snapshot.status == "unreadable":
            return Point(x, None, "broken", f"{snapshot.name}: state unreadable")
        if snapshot.state and name not in snapshot.report.expected:
            return None
        what = "no such pair" if snapshot.state else "no state"
        return Point(x, None, "missing", f"{snapshot.name}: {what}")
    if not pair.finite:
        return Point(x, None, "broken", f"{snapshot.name}: NaN or Inf")
    if not pair.trained or pair.norm is None:
        return Point(x, 0.0, "zero", f"{snapshot.name}: all zero")
    bias = f", bias norm {pair.bias_norm:.4g}" if pair.bias_norm is not None else ""
    return Point(x, pair.norm, "value", f"{snapshot.name}: norm {pair.norm:.4g}{bias}")


def _table(run: Run, ids: Mapping[int, str], names: Sequence[str], anchors: Anchors) -> Markup:
    head: list[Child] = [el("th", word, scope="col") for word in ("Checkpoint", "Verdict")]
    head += [el("th", name, scope="col", class_="number") for name in names]
    head.append(el("th", "Findings", scope="col"))
    rows = [_row(item, ids[id(item)], names, anchors) for item in reversed(run.snapshots)]
    table = el(
        "table",
        el("caption", "Newest first; norms of proj_l.weight"),
        el("thead", el("tr", head)),
        el("tbody", rows),
    )
    class_ = "scroll tall" if len(run.snapshots) > MANY else "scroll"
    return el(
        "div", table, class_=class_, tabindex=0, role="region", aria_label="Table of checkpoints"
    )


def _row(snapshot: Snapshot, row: str, names: Sequence[str], anchors: Anchors) -> Markup:
    mark = mark_of(snapshot)
    cells: list[Child] = [
        el("th", snapshot.name, scope="row"),
        el("td", el("span", icon(mark.icon), mark.word, class_=f"mark {mark.class_}")),
    ]
    for name in names:
        pair = pair_of(snapshot, name)
        value = "–" if pair is None or pair.norm is None else f"{pair.norm:.4g}"
        cells.append(el("td", value, class_="number"))
    cells.append(el("td", _codes(snapshot, row, anchors), class_="codes"))
    return el("tr", cells, id=row, class_="judged" if snapshot.judged else None)


def _codes(snapshot: Snapshot, row: str, anchors: Anchors) -> list[Child]:
    seen = dict.fromkeys((f.code, f.level) for f in snapshot.report.findings if f.level != "info")
    links: list[Child] = []
    for code, level in seen:
        anchor = anchors[row, code, level]
        links += [
            " " if links else None,
            el("a", code, href=f"#{anchor}", class_=f"code {level}"),
        ]
    return links or ["–"]
