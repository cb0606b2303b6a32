"""Findings as the page shows them: by rule, each message once, with its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from sla_ckpt.checks.registry import all_rules
from sla_ckpt.checks.report import LEVELS, Finding, Level
from sla_ckpt.report.collect import Snapshot
from sla_ckpt.report.guide import has_page
from sla_ckpt.report.icons import LEVEL_ICONS, icon
from sla_ckpt.report.markup import Child, Markup, el
from sla_ckpt.text import count

#: Messages of one rule, and checkpoints of one message, that are shown.
MOST_MESSAGES = 8
MOST_NAMES = 6


#: (row, code, level) -> id of the card.
Anchors = Mapping[tuple[str, str, str], str]


@dataclass(frozen=True)
class Occurrence:
    """One message.

    Attributes:
        finding: As the newest of the checkpoints says it.
        rows: The checkpoints, newest first: name and id of its row in the page.
        judged: One of them is a target of the command.
    """

    finding: Finding
    rows: tuple[tuple[str, str], ...]
    judged: bool

    def card(self, prefix: str) -> str:
        """The id of the card that it is in."""
        place = "" if self.judged else "o-"
        return f"{prefix}-{place}{self.finding.code}-{self.finding.level}"


def occurrences(snapshots: Iterable[Snapshot], ids: Mapping[int, str]) -> list[Occurrence]:
    """The findings of several checkpoints, the same ones put together; worst first.

    Args:
        snapshots: Oldest first.
        ids: Row of each snapshot, by ``id()``.
    """
    found: dict[tuple[str, ...], tuple[Finding, list[tuple[str, str]]]] = {}
    judged: set[tuple[str, ...]] = set()
    for snapshot in reversed(list(snapshots)):
        for finding in snapshot.report.findings:
            key = (finding.code, finding.level, finding.path or "", _general(finding, snapshot))
            row = (snapshot.name, ids[id(snapshot)])
            rows = found.setdefault(key, (finding, []))[1]
            if row not in rows:
                rows.append(row)
            if snapshot.judged:
                judged.add(key)
    merged = [
        Occurrence(finding, tuple(rows), key in judged) for key, (finding, rows) in found.items()
    ]
    return sorted(merged, key=lambda o: (LEVELS.index(o.finding.level), o.finding.code))


def _general(finding: Finding, snapshot: Snapshot) -> str:
    """The message without the name of the checkpoint it is about."""
    return finding.message.replace(snapshot.report.target, "").replace(snapshot.name, "")


def anchors(found: Iterable[Occurrence], prefix: str) -> Anchors:
    """Where the page shows each finding of each row."""
    return {
        (row, item.finding.code, item.finding.level): item.card(prefix)
        for item in found
        for _, row in item.rows
    }


def cards(found: Iterable[Occurrence], *, level: int, prefix: str, several: bool) -> list[Markup]:
    """A card for each rule.

    Args:
        found: Worst first, by code within a level.
        level: Heading level of a card.
        prefix: Of every id in the section.
        several: Whether to say which checkpoints a message is about.
    """
    titles = {item.code: item.title for item in all_rules()}
    result: list[Markup] = []
    for (kind, code), group in groupby(found, key=lambda o: (o.finding.level, o.finding.code)):
        messages = list(group)
        shown = [_message(item, several) for item in messages[:MOST_MESSAGES]]
        hidden = len(messages) - MOST_MESSAGES
        if hidden > 0:
            shown.append(
                el("p", f"and {count(hidden, 'more message')} of this rule", class_="more")
            )
        head = el(
            f"h{level}", _badge(kind), " ", el("span", code, class_="code"), " ", titles[code]
        )
        guide = el("a", f"About {code}", href=f"#rule-{code}") if has_page(code) else None
        result.append(
            el(
                "article",
                head,
                shown,
                el("p", guide, class_="guide") if guide else None,
                class_=f"card {kind}",
                id=messages[0].card(prefix),
            )
        )
    return result


def _badge(kind: Level) -> Markup:
    return el("span", icon(LEVEL_ICONS[kind]), kind, class_=f"badge {kind}")


def _message(item: Occurrence, several: bool) -> Markup:
    finding = item.finding
    tail: list[Child] = []
    if finding.path:
        tail.append(_line("Where", el("code", finding.path)))
    if several:
        tail.append(_line("In", _names(item.rows)))
    if finding.help:
        tail.append(_line("Next", command(finding.help)))
    if finding.fixable and "--fix" not in (finding.help or ""):
        tail.append(_line("Repair", el("code", "sla-ckpt verify --fix"), " can do it"))
    return el("div", el("p", finding.message, class_="what"), el("dl", tail), class_="message")


def _line(label: str, *value: Child) -> Markup:
    return el("div", el("dt", label), el("dd", *value))


def _names(rows: tuple[tuple[str, str], ...]) -> list[Child]:
    parts: list[Child] = []
    for name, row in rows[:MOST_NAMES]:
        parts += [", " if parts else None, el("a", name, href=f"#{row}")]
    if len(rows) > MOST_NAMES:
        parts.append(f" and {count(len(rows) - MOST_NAMES, 'more checkpoint')}")
    return parts


def command(hint: str) -> Markup:
    """A next step, the command in it set apart."""
    words, separator, rest = hint.partition("sla-ckpt ")
    if not separator or not words.rstrip().endswith(":"):
        return el("span", hint)
    ends = [place for mark in (", ", "; ", " (") if (place := rest.find(mark)) >= 0]
    end = min(ends, default=len(rest))
    return el("span", words, " ", el("code", separator + rest[:end]), rest[end:])
