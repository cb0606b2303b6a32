"""Charts as inline SVG: a pair's norm along a run, and a pair's singular values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sla_ckpt.report.markup import Child, Markup, el

PointKind = Literal["value", "zero", "missing", "broken"]
#: More points than this get small marks.
MANY = 60


@dataclass(frozen=True)
class Point:
    """One checkpoint in a chart.

    Attributes:
        x: Training step, or its place in the row where steps are not known.
        y: The norm; None when there is none to show.
        kind: ``zero`` all zero, ``missing`` no state or pair, ``broken`` not finite or unreadable.
        title: What hovering says; nothing when empty.
    """

    x: float
    y: float | None
    kind: PointKind
    title: str


@dataclass(frozen=True)
class Frame:
    """A drawing area in SVG units, and the data that it spans."""

    width: int
    height: int
    x_range: tuple[float, float]
    top: float
    left: int = 46
    right: int = 14
    above: int = 14
    below: int = 38
    inset: int = 16

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        start, end = self.left + self.inset, self.width - self.right - self.inset
        return start + share * (end - start)

    def y(self, value: float) -> float:
        share = value / self.top if self.top else 0.0
        return self.floor - share * (self.floor - self.above)

    @property
    def floor(self) -> int:
        return self.height - self.below


def trend(points: Sequence[Point], *, name: str, description: str, x_label: str) -> Markup:
    """A pair's norm along the run, drawn once for wide and once for narrow screens.

    Args:
        points: By x.
        name: What the chart shows.
        description: The same in words, for who cannot see it.
        x_label: What the horizontal axis counts.
    """
    return el(
        "div",
        _trend(points, 900, 230, 8, name, description, x_label, "wide"),
        _trend(points, 340, 200, 4, name, description, x_label, "narrow"),
        class_="trend",
    )


def _trend(
    points: Sequence[Point],
    width: int,
    height: int,
    ticks: int,
    name: str,
    description: str,
    x_label: str,
    class_: str,
) -> Markup:
    known = [item.y for item in points if item.y is not None]
    y_ticks = nice_ticks(0.0, max(known, default=1.0) or 1.0, 4)
    xs = [item.x for item in points]
    frame = Frame(width, height, (min(xs), max(xs)), y_ticks[-1])
    return el(
        "svg",
        el("title", name),
        el("desc", description),
        _y_axis(frame, y_ticks),
        _x_axis(frame, ticks, x_label),
        [_line(frame, part) for part in _unbroken(points)],
        [_mark(frame, item, 2.6 if len(points) > MANY else 4.2) for item in points],
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_=class_,
    )


def _y_axis(frame: Frame, ticks: Sequence[float]) -> Iterator[Markup]:
    digits = _digits(ticks)
    for value in ticks:
        y = _n(frame.y(value))
        right = frame.width - frame.right
        yield el(
            "line", x1=frame.left, x2=right, y1=y, y2=y, class_="axis" if not value else "rule"
        )
        label = f"{value:.{digits}f}" if digits <= 4 and ticks[-1] < 1e5 else f"{value:.3g}"
        yield el("text", label, x=frame.left - 6, y=y, dy=".32em", class_="end")


def _x_axis(frame: Frame, ticks: int, label: str) -> Iterator[Markup]:
    low, high = frame.x_range
    for value in nice_ticks(low, high, ticks, whole=True):
        if low <= value <= high:
            x = _n(frame.x(value))
            yield el("line", x1=x, x2=x, y1=frame.floor, y2=frame.floor + 4, class_="axis")
            yield el("text", _steps(value), x=x, y=frame.floor + 17, class_="middle")
    middle = (frame.left + frame.width - frame.right) / 2
    yield el("text", label, x=_n(middle), y=frame.height - 4, class_="middle label")


def _unbroken(points: Sequence[Point]) -> Iterator[list[Point]]:
    part: list[Point] = []
    for item in points:
        if item.y is None:
            if len(part) > 1:
                yield part
            part = []
        else:
            part.append(item)
    if len(part) > 1:
        yield part


def _line(frame: Frame, part: Sequence[Point]) -> Markup:
    path = " ".join(f"{_n(frame.x(p.x))},{_n(frame.y(p.y or 0.0))}" for p in part)
    return el("polyline", points=path, class_="line")


def _mark(frame: Frame, point: Point, size: float) -> Markup:
    x, y = frame.x(point.x), frame.y(point.y or 0.0)
    title = el("title", point.title) if point.title else None
    if point.kind in ("value", "zero"):
        # The wide invisible edge makes a small mark easy to hover over.
        return el(
            "g",
            title,
            _circle(x, y, 9, "reach"),
            _circle(x, y, size, point.kind),
        )
    if point.kind == "broken":
        y, s = frame.above + size, size + 1
        shape = f"M{_n(x)} {_n(y - s)}L{_n(x + s)} {_n(y + s)}L{_n(x - s)} {_n(y + s)}Z"
        return el("g", title, el("path", d=shape, class_="broken"))
    s = size
    shape = (
        f"M{_n(x - s)} {_n(y - s)}L{_n(x + s)} {_n(y + s)}"
        f"M{_n(x - s)} {_n(y + s)}L{_n(x + s)} {_n(y - s)}"
    )
    return el("g", title, _circle(x, y, 9, "reach"), el("path", d=shape, class_="gap"))


def _circle(x: float, y: float, radius: float, class_: str) -> Markup:
    return el("circle", cx=_n(x), cy=_n(y), r=radius, class_=class_)


def legend(kinds: Sequence[PointKind]) -> Markup | None:
    """What the unusual marks mean, of those that occur."""
    words: dict[PointKind, str] = {
        "zero": "all zero",
        "missing": "no state or no such pair",
        "broken": "NaN, Inf or unreadable",
    }
    frame = Frame(16, 16, (0, 1), 1, left=8, right=8, above=4, below=8, inset=0)
    items: list[Child] = []
    for kind, word in words.items():
        if kind in kinds:
            mark = _mark(frame, Point(0.5, 0.0, kind, ""), 4.2)
            svg = el("svg", mark, viewBox="0 0 16 16", aria_hidden="true", class_="key")
            items.append(el("span", svg, word))
    return el("p", items, class_="legend") if items else None


def spectrum(values: NDArray[np.float64]) -> Markup | None:
    """Singular values on a logarithmic axis, small enough for a table cell."""
    positive = values[values > 0]
    if len(positive) < 2:
        return None
    low, high = math.log10(positive[-1]), math.log10(positive[0])
    # Beyond six decades below the largest there is only rounding.
    low = max(low, high - 6)
    places = np.unique(np.linspace(0, len(positive) - 1, min(len(positive), 48)).astype(int))
    points = " ".join(
        f"{_n(2 + 116 * i / (len(positive) - 1))},"
        f"{_n(4 + 30 * (high - max(math.log10(positive[i]), low)) / (high - low or 1.0))}"
        for i in places
    )
    label = f"singular values from {positive[0]:.3g} down to {positive[-1]:.3g}"
    return el(
        "svg",
        el("title", label),
        el("polyline", points=points, class_="line"),
        viewBox="0 0 120 38",
        role="img",
        class_="spark",
    )


def nice_ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About ``count`` round numbers that cover [low, high].

    Args:
        low: Start.
        high: End; more than ``low``, else it gets a margin.
        count: How many, roughly.
        whole: Only integers.
    """
    if high <= low:
        high = low + 1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    step = ticks[1] - ticks[0]
    exponent = math.floor(math.log10(step) + 1e-9)
    exact = abs(step / 10**exponent - round(step / 10**exponent)) < 1e-6
    return max(0, -exponent + (0 if exact else 1))


def _steps(value: float) -> str:
    if value >= 100_000 and value % 1000 == 0:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}"


def _n(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")
