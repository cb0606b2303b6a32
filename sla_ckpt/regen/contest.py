"""The candidates of a regeneration, each judged once, and the lines between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sla_ckpt.errors import RegenError
from sla_ckpt.regen import projections as proj
from sla_ckpt.regen.judge import Candidate
from sla_ckpt.regen.projections import Projections
from sla_ckpt.regen.train import Runner, Tick
from sla_ckpt.regen.workload import Workload


@dataclass
class Contest:
    """Everything that might be written.

    Attributes:
        runner: Computes losses.
        held_out: What every candidate is judged on.
        furthest: How far beyond a line's end (1) its minimum is looked for. Samples that train as
            well always ask to go further, so there it is 1.
        tick: Called after every forward pass.
        candidates: By name.
    """

    runner: Runner
    held_out: Workload
    furthest: float
    tick: Tick
    candidates: dict[str, Candidate] = field(default_factory=dict)

    def add(self, name: str, projections: Projections) -> Candidate:
        """Judge one more.

        Raises:
            RegenError: It, or a loss of it, is not finite.
        """
        if not proj.is_finite(projections):
            raise RegenError(f"the projection {name!r} is not finite")
        losses = self.runner.losses(self.held_out, projections, self.tick)
        self.candidates[name] = Candidate(name, projections, losses)
        return self.candidates[name]

    def along(self, start: Candidate, end: Candidate) -> Candidate:
        """Judge points on the line from ``start`` to ``end``; the best of the line.

        Few samples make every step too long, since it follows their noise too. The loss is close
        to a parabola along the line, so half the way and the parabola's minimum are tried.
        """

        def at(share: float) -> Candidate:
            mixed = {
                key: value + share * (end.projections[key] - value)
                for key, value in start.projections.items()
            }
            return self.add(f"{end.name} × {share:.2f}", mixed)

        line = [start, end, at(0.5)]
        least = parabola_minimum(start.loss, line[2].loss, end.loss)
        if (
            least is not None
            and 0.03 < least < self.furthest
            and min(abs(least - 0.5), abs(least - 1)) > 0.05
        ):
            line.append(at(least))
        return min(line, key=lambda c: c.loss)

    def entries(self) -> list[Candidate]:
        """All, with the one marked that the checkpoint has now."""
        present = "old" if "old" in self.candidates else "zero"
        return [replace(c, present=c.name == present) for c in self.candidates.values()]


def parabola_minimum(at_0: float, at_half: float, at_1: float) -> float | None:
    """Where the parabola through (0, ½, 1) is least; None if it has no minimum."""
    curvature = at_0 - 2 * at_half + at_1
    if not curvature > 0:
        return None
    return (3 * at_0 - 4 * at_half + at_1) / (4 * curvature)
