"""Projections as one float64 vector, and in the session that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sla_ckpt.attention.session import SLASession
from sla_ckpt.regen.statistics import LayerMoments
from sla_ckpt.state import PairKey, ProjectionTensors

#: [W b] of each pair, float64 [D, D+1] on the CPU.
Projections = Mapping[PairKey, Tensor]


def zeros(pairs: tuple[PairKey, ...]) -> Projections:
    """Untrained projections."""
    return {key: torch.zeros(key.head_dim, key.head_dim + 1, dtype=torch.float64) for key in pairs}


def from_tensors(tensors: Mapping[PairKey, ProjectionTensors]) -> Projections:
    """Projections of a state; exact."""
    return {
        key: torch.from_numpy(
            np.concatenate([t.as_float32().weight, t.as_float32().bias[:, None]], 1).astype(
                np.float64
            )
        )
        for key, t in tensors.items()
    }


def to_tensors(projections: Projections) -> dict[PairKey, ProjectionTensors]:
    """float32 projections for a state."""
    result: dict[PairKey, ProjectionTensors] = {}
    for key in sorted(projections):
        p = projections[key].float()
        weight, bias = p[:, :-1].contiguous().numpy(), p[:, -1].contiguous().numpy()
        result[key] = ProjectionTensors(weight, bias)
    return result


def load_into(session: SLASession, projections: Projections) -> None:
    """Set the session's parameters."""
    with torch.no_grad():
        for key, p in projections.items():
            layer = session.modules[key].proj_l
            layer.weight.copy_(p[:, :-1])
            layer.bias.copy_(p[:, -1])


def is_finite(projections: Projections) -> bool:
    """Whether every value is finite, also in float32."""
    return all(bool(torch.isfinite(p.float()).all()) for p in projections.values())


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A linear change of variables in which training is well conditioned.

    A projection [W b] = U L⁻¹ with E[x xᵀ] = L Lᵀ over x = [o_l; 1]: then ‖ΔU‖²/D is the mean
    square by which the projection's output changes, whatever the scale of o_l, and the curvature
    of the loss no longer carries the (very uneven) spectrum of o_l.

    Attributes:
        factors: L of each pair, float64 [D+1, D+1].
        scale: Root mean square of an element of dense attention, over all pairs.
    """

    factors: Mapping[PairKey, Tensor]
    scale: float

    @classmethod
    def of(cls, moments: LayerMoments, ridge: float) -> Coordinates:
        sums = {pair: moments.of(pair) for pair in moments.pairs}
        total = sum(m.count * m.head_dim for m in sums.values())
        dense = sum(m.dense for m in sums.values())
        scale = (dense / total) ** 0.5 if total else 0.0
        return cls({pair: m.whitener(ridge) for pair, m in sums.items()}, scale)

    def to_vector(self, projections: Projections) -> Tensor:
        """U of all pairs, flat."""
        return torch.cat([(projections[key] @ self.factors[key]).flatten() for key in self._keys])

    def to_projections(self, vector: Tensor) -> Projections:
        """The inverse of :meth:`to_vector`."""
        result: dict[PairKey, Tensor] = {}
        for key, part in zip(self._keys, self._split(vector), strict=True):
            result[key] = torch.linalg.solve_triangular(
                self.factors[key], part, upper=False, left=False
            )
        return result

    def gradient(self, gradients: Projections) -> Tensor:
        """The gradient with respect to the vector, from those with respect to [W b]."""
        parts = [
            torch.linalg.solve_triangular(
                self.factors[key].T, gradients[key], upper=True, left=False
            ).flatten()
            for key in self._keys
        ]
        return torch.cat(parts)

    @property
    def _keys(self) -> list[PairKey]:
        return sorted(self.factors)

    def _split(self, vector: Tensor) -> list[Tensor]:
        sizes = [key.head_dim * (key.head_dim + 1) for key in self._keys]
        parts = torch.split(vector, sizes)
        return [
            part.view(key.head_dim, key.head_dim + 1)
            for key, part in zip(self._keys, parts, strict=True)
        ]
