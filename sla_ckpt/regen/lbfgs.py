"""L-BFGS with a strong-Wolfe line search, counted in evaluations.

Source: Nocedal and Wright, Numerical Optimization, algorithms 7.4, 7.5, 3.5 and 3.6. Written for
what regeneration needs and torch's own does not give: the length of the very first step is chosen
by the caller, the budget is kept to the evaluation, a trial that is not finite only shortens the
step, and every accepted iterate is handed out so that a judge can stop earlier than the loss.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: x -> (value, gradient); x and gradient are float64 vectors.
Function = Callable[[Tensor], tuple[float, Tensor]]

_ARMIJO = 1e-4
_CURVATURE = 0.9
_GROWTH = 4.0


@dataclass(frozen=True, eq=False)
class Point:
    """One evaluated point."""

    x: Tensor
    value: float
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Minimum:
    """The outcome of :func:`minimise`.

    Attributes:
        iterates: The start and every accepted point after it, values falling.
        evaluations: How often the function was called.
        values: The value of every call, in order.
    """

    iterates: tuple[Point, ...]
    evaluations: int
    values: tuple[float, ...]

    @property
    def best(self) -> Point:
        return self.iterates[-1]


def minimise(
    function: Function,
    start: Tensor,
    *,
    max_evaluations: int,
    first_step: float,
    max_iterations: int | None = None,
    memory: int = 20,
    tolerance: float = 1e-6,
) -> Minimum:
    """Minimise a smooth function within a budget of evaluations.

    Args:
        function: Value and gradient.
        start: float64 vector.
        max_evaluations: At least 1.
        first_step: Euclidean length of the first trial step.
        max_iterations: Stop after so many accepted points.
        memory: Pairs of differences kept.
        tolerance: Stop when an iteration lowers the value by less than this share of it.
    """
    counted = _Counted(function, max_evaluations)
    point = counted(start)
    iterates = [point]
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    while counted.left and float(point.gradient.norm()) > 0 and math.isfinite(point.value):
        direction = -_inverse_hessian_times(point.gradient, pairs)
        slope = float(direction @ point.gradient)
        if not slope < 0:
            pairs.clear()
            direction = -point.gradient
            slope = float(direction @ point.gradient)
        step = 1.0 if pairs else first_step / float(direction.norm())
        found = _line_search(counted, point, direction, slope, step)
        if found is None or not found.value < point.value:
            break
        difference, change = found.x - point.x, found.gradient - point.gradient
        curvature = float(difference @ change)
        if curvature > 1e-12 * float(difference.norm() * change.norm()):
            pairs.append((difference, change, 1.0 / curvature))
        gain = point.value - found.value
        point = found
        iterates.append(point)
        if gain <= tolerance * abs(point.value) or len(iterates) - 1 == max_iterations:
            break
    return Minimum(tuple(iterates), counted.count, tuple(counted.values))


class _Counted:
    """The function with its budget; a value that is not finite becomes +inf."""

    def __init__(self, function: Function, budget: int) -> None:
        self._function = function
        self._budget = budget
        self.values: list[float] = []

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def left(self) -> int:
        return self._budget - self.count

    def __call__(self, x: Tensor) -> Point:
        value, gradient = self._function(x)
        if not math.isfinite(value) or not bool(torch.isfinite(gradient).all()):
            value, gradient = math.inf, torch.zeros_like(gradient)
        self.values.append(value)
        return Point(x, value, gradient)


def _inverse_hessian_times(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """The two-loop recursion."""
    result = gradient.clone()
    weights: list[float] = []
    for difference, change, rho in reversed(pairs):
        weight = rho * float(difference @ result)
        weights.append(weight)
        result -= weight * change
    if pairs:
        difference, change, rho = pairs[-1]
        result *= 1.0 / (rho * float(change @ change))
    for (difference, change, rho), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - rho * float(change @ result)) * difference
    return result


@dataclass(frozen=True, eq=False)
class _Trial:
    step: float
    point: Point
    slope: float


def _line_search(
    counted: _Counted, start: Point, direction: Tensor, slope: float, step: float
) -> Point | None:
    """A point that meets the strong Wolfe conditions; else the best that the budget found."""

    def try_step(length: float) -> _Trial:
        point = counted(start.x + length * direction)
        return _Trial(length, point, float(point.gradient @ direction))

    origin = _Trial(0.0, start, slope)
    previous, best = origin, origin
    while counted.left:
        trial = try_step(step)
        if trial.point.value < best.point.value:
            best = trial
        if not math.isfinite(trial.point.value):
            if previous is not origin:
                break
            step *= 0.1
            continue
        too_high = trial.point.value > start.value + _ARMIJO * trial.step * slope
        if too_high or (previous is not origin and trial.point.value >= previous.point.value):
            return _zoom(counted, try_step, origin, previous, trial, best)
        if abs(trial.slope) <= -_CURVATURE * slope:
            return trial.point
        if trial.slope >= 0:
            return _zoom(counted, try_step, origin, trial, previous, best)
        # Where the slope would vanish if the function were quadratic, but no further than 10 x.
        flattening = slope - trial.slope if previous is origin else previous.slope - trial.slope
        reach = trial.step - previous.step
        guess = trial.step - trial.slope * reach / -flattening if flattening < 0 else math.inf
        step = min(max(guess, _GROWTH / 2 * trial.step), 10 * trial.step)
        previous = trial
    return best.point if best is not origin else None


def _zoom(
    counted: _Counted,
    try_step: Callable[[float], _Trial],
    origin: _Trial,
    low: _Trial,
    high: _Trial,
    best: _Trial,
) -> Point | None:
    """Narrow a bracket around a point that meets the strong Wolfe conditions."""
    while counted.left and abs(high.step - low.step) > 1e-9 * max(high.step, low.step):
        trial = try_step(_interpolate(low, high))
        if trial.point.value < best.point.value:
            best = trial
        limit = origin.point.value + _ARMIJO * trial.step * origin.slope
        if trial.point.value > limit or trial.point.value >= low.point.value:
            high = trial
            continue
        if abs(trial.slope) <= -_CURVATURE * origin.slope:
            return trial.point
        if trial.slope * (high.step - low.step) >= 0:
            high = low
        low = trial
    return best.point if best is not origin else None


def _interpolate(low: _Trial, high: _Trial) -> float:
    """The minimum of the cubic through both ends, kept off the ends of the bracket."""
    a, b = low.step, high.step
    width = b - a
    middle = a + 0.5 * width
    if not math.isfinite(high.point.value):
        return a + 0.1 * width
    d1 = low.slope + high.slope - 3 * (low.point.value - high.point.value) / (a - b)
    square = d1 * d1 - low.slope * high.slope
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), width)
    denominator = high.slope - low.slope + 2 * d2
    if denominator == 0:
        return middle
    guess = b - width * (high.slope + d2 - d1) / denominator
    inside = (guess - a) / width
    return guess if 0.05 <= inside <= 0.95 else a + min(max(inside, 0.1), 0.9) * width
