"""A picture of a regeneration: training loss, candidates, attention error per layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sla_ckpt.pictures import BLUE, GREY, ORANGE, new_figure, plain_axes, save_figure
from sla_ckpt.regen.report import CandidateResult, PassResult, RegenResult

#: Candidates that are shown: the best ones, and what was there.
MOST_CANDIDATES = 10
_MARKERS = "osD^v"
#: Values that differ by more than this factor are drawn on a logarithmic axis.
_WIDE = 20


def draw(result: RegenResult, path: Path) -> None:
    """Write the picture; its format follows the file name.

    Raises:
        WriteError: The file cannot be written.
    """
    data = "real samples" if result.data == "real" else "made-up samples: quality not confirmed"
    title = f"{result.checkpoint.resolve().name} · {data} · {result.device}, {result.kernel} kernel"
    figure = new_figure(13, 4.1 * len(result.passes) + 0.3, title)
    rows = figure.subplots(
        len(result.passes), 3, squeeze=False, width_ratios=(1, 1.15, 1)
    )  # one row per dtype
    for (losses, candidates, errors), item in zip(rows, result.passes, strict=True):
        _draw_losses(losses, item)
        _draw_candidates(candidates, item)
        _draw_errors(errors, item)
    save_figure(figure, path)


def _draw_losses(axes: Any, item: PassResult) -> None:
    plain_axes(axes, f"training loss, {item.dtype}", x="evaluation", y="loss")
    shown = [values for values in item.train_losses.values() if values]
    if not shown:
        _say(axes, "nothing was trained")
        return
    for place, (name, values) in enumerate(item.train_losses.items()):
        axes.plot(
            range(1, len(values) + 1),
            values,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.6,
            color=(BLUE, ORANGE)[place] if place < 2 else None,
            label=name,
        )
    _scale(axes, "y", [value for values in shown for value in values])
    _whole_numbers(axes)
    axes.legend(fontsize=8, frameon=False)


def _draw_candidates(axes: Any, item: PassResult) -> None:
    plain_axes(axes, "candidates by held-out loss", x="held-out loss, less is better")
    shown = _shown(item.candidates)[::-1]
    for place, candidate in enumerate(shown):
        colour = ORANGE if candidate.chosen else BLUE
        axes.plot(
            candidate.loss,
            place,
            marker="D" if candidate.chosen else "o",
            markersize=8 if candidate.chosen else 6.5,
            color=colour,
            markerfacecolor="white" if candidate.present else colour,
            markeredgewidth=1.6,
        )
    axes.set_yticks(range(len(shown)), [_name(candidate) for candidate in shown], fontsize=8)
    for label, candidate in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if candidate.chosen else "normal")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    _scale(axes, "x", [candidate.loss for candidate in shown])
    axes.margins(x=0.08)


def _shown(candidates: Sequence[CandidateResult]) -> list[CandidateResult]:
    """The best ones; what was there is among them in any case."""
    best = list(candidates[:MOST_CANDIDATES])
    rest = [candidate for candidate in candidates[MOST_CANDIDATES:] if candidate.present]
    return [*best[: MOST_CANDIDATES - len(rest)], *rest]


def _name(candidate: CandidateResult) -> str:
    words = [word for word, is_so in (("before", candidate.present), ("chosen", candidate.chosen))
             if is_so]  # fmt: skip
    return candidate.name + (f" ({', '.join(words)})" if words else "")


def _draw_errors(axes: Any, item: PassResult) -> None:
    plain_axes(axes, "attention error against dense", x="layer", y="relative error")
    if not item.pairs:
        _say(axes, "no layer was measured")
        return
    for place, pair in enumerate(item.pairs):
        layers = range(pair.layers)
        marker = _MARKERS[place % len(_MARKERS)]
        shared = {"marker": marker, "markersize": 4, "linewidth": 1.6}
        axes.plot(
            layers,
            pair.layer_errors_before,
            "--",
            color=GREY,
            label=f"{pair.pair} before",
            **shared,
        )
        colour = BLUE if place == 0 else None
        axes.plot(
            layers, pair.layer_errors_after, color=colour, label=f"{pair.pair} after", **shared
        )
    axes.set_ylim(bottom=0)
    _whole_numbers(axes)
    axes.legend(fontsize=8, frameon=False)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _scale(axes: Any, axis: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values need one."""
    if min(values) > 0 and max(values) > _WIDE * min(values):
        getattr(axes, f"set_{axis}scale")("log")


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9)
