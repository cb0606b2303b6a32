"""What happened to a run's projections from checkpoint to checkpoint, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from sla_ckpt.checks.summary import PairSummary
from sla_ckpt.report.collect import Run, Snapshot
from sla_ckpt.text import join_some

#: A norm that loses more than this share between two checkpoints is worth a sentence.
FALL = 0.5


@dataclass(frozen=True)
class Remark:
    """One thing that stands out.

    Attributes:
        weight: How bad it is: ``lost`` quality, ``odd``, or plain ``fact``.
        text: One sentence.
        pair: The pair that it is about, None if it is about the whole state.
    """

    weight: Literal["lost", "odd", "fact"]
    text: str
    pair: str | None = None


def pair_names(run: Run) -> tuple[str, ...]:
    """Every pair that some checkpoint of the run has, in the order of first appearance."""
    names = (p.name for item in run.snapshots if item.state for p in item.state.pairs)
    return tuple(dict.fromkeys(names))


def pair_of(snapshot: Snapshot, name: str) -> PairSummary | None:
    """The pair of that name in a checkpoint's state."""
    pairs = snapshot.state.pairs if snapshot.state else ()
    return next((item for item in pairs if item.name == name), None)


def remarks(run: Run) -> tuple[Remark, ...]:
    """What stands out between the checkpoints of a run, what was lost first."""
    finished = [item for item in run.snapshots if not item.unfinished]
    found = [*_states(finished), *_settings(finished)]
    for name in pair_names(run):
        found += _pair(name, finished)
    order = ("lost", "odd", "fact")
    return tuple(sorted(found, key=lambda item: order.index(item.weight)))


def _states(snapshots: Sequence[Snapshot]) -> Iterator[Remark]:
    first = next((place for place, item in enumerate(snapshots) if item.state), None)
    if first is None:
        return
    before, after = snapshots[:first], snapshots[first:]
    lost = [item.name for item in after if item.status == "missing"]
    if lost:
        yield Remark(
            "lost",
            f"No state in {join_some(lost)}, although {snapshots[first].name} has one.",
        )
    broken = [item.name for item in snapshots if item.status == "unreadable"]
    if broken:
        yield Remark("lost", f"The state cannot be read in {join_some(broken)}.")
    if any(item.status == "missing" for item in before):
        yield Remark("fact", f"The first checkpoint with a state is {snapshots[first].name}.")


def _settings(snapshots: Sequence[Snapshot]) -> Iterator[Remark]:
    known = [item for item in snapshots if item.state and item.state.settings]
    for before, after in pairwise(known):
        assert before.state and before.state.settings and after.state and after.state.settings
        old, new = before.state.settings.to_dict(), after.state.settings.to_dict()
        changed = [f"{key} {old[key]} → {value}" for key, value in new.items() if old[key] != value]
        if changed:
            yield Remark("odd", f"Settings change at {after.name}: {', '.join(changed)}.")


def _pair(name: str, snapshots: Sequence[Snapshot]) -> Iterator[Remark]:
    having = [(item, pair) for item in snapshots if (pair := pair_of(item, name)) is not None]
    still: tuple[Snapshot, Snapshot] | None = None
    for (earlier, before), (later, after) in pairwise(having):
        same = _same(before, after)
        if still and not same:
            yield _unchanged(name, still)
            still = None
        if same:
            still = (still[0] if still else earlier, later)
        elif before.finite and not after.finite:
            yield Remark("lost", f"{name} has NaN or Inf in {later.name}.", name)
        elif before.trained and not after.trained:
            yield Remark(
                "lost",
                f"{name} falls to all zeros at {later.name}: what {earlier.name} had learned "
                "is not in it.",
                name,
            )
        elif before.norm and after.norm is not None and after.norm < (1 - FALL) * before.norm:
            yield Remark(
                "odd",
                f"{name} falls from norm {before.norm:.3g} at {earlier.name} "
                f"to {after.norm:.3g} at {later.name}.",
                name,
            )
    if still:
        yield _unchanged(name, still)
    yield from _extent(name, having)


def _same(before: PairSummary, after: PairSummary) -> bool:
    """Trained, and not one bit differs."""
    return before.trained and all(
        old is not None and new is not None and np.array_equal(old, new)
        for old, new in ((before.weight, after.weight), (before.bias, after.bias))
    )


def _unchanged(name: str, span: tuple[Snapshot, Snapshot]) -> Remark:
    return Remark(
        "odd",
        f"{name} is the same in {span[0].name} and {span[1].name}: "
        "SLA was not training between them.",
        name,
    )


def _extent(name: str, having: Sequence[tuple[Snapshot, PairSummary]]) -> Iterator[Remark]:
    known = [(item, pair.norm) for item, pair in having if pair.norm is not None and pair.finite]
    if len(known) < 2:
        return
    (first, start), (last, end) = known[0], known[-1]
    text = f"{name}: norm {start:.3g} at {first.name}, {end:.3g} at {last.name}"
    if not any(norm for _, norm in known):
        yield Remark("fact", f"{name} is all zero throughout.", name)
        return
    top, peak = max(known, key=lambda item: item[1])
    text += f", at most {peak:.3g} at {top.name}." if top != last else "."
    yield Remark("fact", text, name)
