"""Closed-form calibration: the projection that brings SLA closest to dense attention.

For each pair the normal equations of min ‖[W b]·[o_l; 1] − (o_dense − o_s)‖² are summed in float64
over all calls, one set per call of the forward pass (that is, per layer). From them follow, without
another pass over the model, the ridge solution, the attention error of any projection in any
layer, and the metric in which training is well conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sla_ckpt.regen.distributed import Group
from sla_ckpt.state import PairKey

#: Share of the mean eigenvalue that is added to every eigenvalue before solving.
RIDGE = 1e-4
_ROWS = 1 << 18
#: Rows per product: one tall product would keep a few of a card's processors busy, many do.
_BLOCK = 2048

#: (pair, q, k, v) -> (o_dense, o_s, o_l), each [B, H, L, D].
Branches = Callable[[PairKey, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(eq=False)
class Moments:
    """Sums over tokens and heads; x = [o_l; 1], y = o_dense − o_s. float64.

    Attributes:
        xx: Σ x xᵀ, [D+1, D+1].
        xy: Σ x yᵀ, [D+1, D].
        yy: Σ ‖y‖².
        dense: Σ ‖o_dense‖².
        count: Number of tokens × heads.
    """

    xx: Tensor
    xy: Tensor
    yy: float = 0.0
    dense: float = 0.0
    count: float = 0.0

    @classmethod
    def zeros(cls, head_dim: int) -> Moments:
        size = head_dim + 1
        return cls(
            torch.zeros(size, size, dtype=torch.float64),
            torch.zeros(size, head_dim, dtype=torch.float64),
        )

    @property
    def head_dim(self) -> int:
        return self.xy.shape[1]

    def add(self, o_dense: Tensor, o_s: Tensor, o_l: Tensor) -> None:
        """Add one call; each tensor [B, H, L, D] of any dtype and device."""
        total = self + Moments.from_vector(
            moment_vector(o_dense, o_s, o_l).cpu(), o_dense.shape[-1]
        )
        self.xx, self.xy = total.xx, total.xy
        self.yy, self.dense, self.count = total.yy, total.dense, total.count

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
            self.dense + other.dense,
            self.count + other.count,
        )

    def to_vector(self) -> Tensor:
        tail = torch.tensor([self.yy, self.dense, self.count], dtype=torch.float64)
        return torch.cat([self.xx.flatten(), self.xy.flatten(), tail])

    @classmethod
    def from_vector(cls, vector: Tensor, head_dim: int) -> Moments:
        size = head_dim + 1
        xx, xy, tail = torch.split(vector, [size * size, size * head_dim, 3])
        yy, dense, count = tail.tolist()
        return cls(xx.view(size, size), xy.view(size, head_dim), yy, dense, count)

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """The ridge solution [W b], [D, D+1]; the bias is penalised like the weights."""
        solution: Tensor = torch.linalg.solve(self._damped(ridge), self.xy)
        return solution.T.contiguous()

    def error(self, projection: Tensor) -> float:
        """‖o − o_dense‖ / ‖o_dense‖ under the projection [W b], [D, D+1]."""
        if not self.dense > 0:
            return 0.0
        p = projection.double()
        square = ((p @ self.xx) * p).sum() - 2 * (p.T * self.xy).sum() + self.yy
        return math.sqrt(max(0.0, float(square)) / self.dense)

    def whitener(self, ridge: float = RIDGE) -> Tensor:
        """L with E[x xᵀ] = L Lᵀ, lower triangular [D+1, D+1], damped."""
        factor: Tensor = torch.linalg.cholesky(self._damped(ridge) / max(self.count, 1.0))
        return factor

    def output_scale(self) -> float:
        """Root mean square of one element of o_dense."""
        return math.sqrt(self.dense / max(1.0, self.count * self.head_dim))

    def column_scales(self) -> Tensor:
        """Natural size of each column of [W b], float64 [D+1]: the output's over the input's."""
        inputs = self.xx.diagonal() / max(1.0, self.count)
        typical = torch.full_like(inputs, math.sqrt(max(float(inputs[:-1].mean()), 1e-300)))
        typical[-1] = 1.0
        return max(self.output_scale(), 1e-30) / typical

    def _damped(self, ridge: float) -> Tensor:
        size = self.xx.shape[0]
        level = float(self.xx.diagonal().mean())
        eye = torch.eye(size, dtype=torch.float64)
        return self.xx + max(ridge * level, 1e-300) * eye


def moment_vector(o_dense: Tensor, o_s: Tensor, o_l: Tensor) -> Tensor:
    """The moments of one call in the order of :meth:`Moments.to_vector`, float64, on the device of
    the tensors, without waiting for it; each tensor [B, H, L, D]."""
    head_dim = o_dense.shape[-1]
    rows = [tensor.reshape(-1, head_dim) for tensor in (o_dense, o_s, o_l)]
    total: Tensor | None = None
    for start in range(0, rows[0].shape[0], _ROWS):
        dense, sparse, linear = (part[start : start + _ROWS].double() for part in rows)
        y = dense - sparse
        x = F.pad(linear, (0, 1), value=1.0)
        padding = (0, 0, 0, -y.shape[0] % _BLOCK)
        x_blocks = F.pad(x, padding).reshape(-1, _BLOCK, head_dim + 1)
        y_blocks = F.pad(y, padding).reshape(-1, _BLOCK, head_dim)
        turned = x_blocks.transpose(1, 2)
        parts = [
            (turned @ x_blocks).sum(0).flatten(),
            (turned @ y_blocks).sum(0).flatten(),
            torch.stack([y.square().sum(), dense.square().sum()]),
            y.new_full((1,), float(y.shape[0])),
        ]
        vector = torch.cat(parts)
        total = vector if total is None else total + vector
    assert total is not None
    return total


@dataclass(frozen=True)
class CallKey:
    """The n-th sparse call of a pair within one forward pass: a layer."""

    pair: PairKey
    index: int


class Collector:
    """Sums :class:`Moments` per layer while the model runs; an observer of an SLA session.

    Call :meth:`start_forward` before each forward pass, so that layers line up.
    """

    def __init__(self, branches: Branches) -> None:
        self._branches = branches
        self._sums: dict[CallKey, Tensor] = {}
        self._seen: dict[PairKey, int] = {}

    def start_forward(self) -> None:
        self._seen.clear()

    def __call__(self, key: PairKey, q: Tensor, k: Tensor, v: Tensor) -> None:
        index = self._seen.get(key, 0)
        self._seen[key] = index + 1
        with torch.no_grad():
            outputs = self._branches(key, q.detach(), k.detach(), v.detach())
            vector = moment_vector(*outputs)
        call = CallKey(key, index)
        self._sums[call] = self._sums[call] + vector if call in self._sums else vector

    def collected(self, group: Group) -> LayerMoments:
        """The sums over all processes, the same on each."""
        layers: dict[PairKey, int] = {}
        for seen in group.gather(self._layers()):
            for pair, count in seen.items():
                layers[pair] = max(layers.get(pair, 0), count)
        result: dict[CallKey, Moments] = {}
        for pair in sorted(layers):
            for index in range(layers[pair]):
                key = CallKey(pair, index)
                own = self._sums.get(key)
                if own is None:
                    own = Moments.zeros(pair.head_dim).to_vector()
                result[key] = Moments.from_vector(group.sum(own.cpu()), pair.head_dim)
        return LayerMoments(result)

    def _layers(self) -> dict[PairKey, int]:
        counts: dict[PairKey, int] = {}
        for key in self._sums:
            counts[key.pair] = max(counts.get(key.pair, 0), key.index + 1)
        return counts


@dataclass(frozen=True)
class AttentionError:
    """How far SLA is from dense attention under one projection.

    Attributes:
        overall: ‖o − o_dense‖ / ‖o_dense‖ over all layers.
        worst: The largest of any layer.
        worst_layer: Its number among the pair's sparse calls, from 0.
    """

    overall: float
    worst: float
    worst_layer: int


@dataclass(frozen=True)
class LayerMoments:
    """:class:`Moments` of every layer."""

    by_call: Mapping[CallKey, Moments]

    @property
    def pairs(self) -> tuple[PairKey, ...]:
        return tuple(sorted({key.pair for key in self.by_call}))

    def of(self, pair: PairKey) -> Moments:
        """The sum over the layers of one pair."""
        return _sum(self._layers(pair).values(), pair.head_dim)

    def error(self, pair: PairKey, projection: Tensor) -> AttentionError:
        """The attention error of a projection [W b], [D, D+1]."""
        layers = {index: m.error(projection) for index, m in self._layers(pair).items()}
        worst = max(layers, key=lambda index: layers[index])
        return AttentionError(self.of(pair).error(projection), layers[worst], worst)

    def layer_errors(self, pair: PairKey, projection: Tensor) -> tuple[float, ...]:
        """The error of each layer, in order."""
        layers = self._layers(pair)
        return tuple(layers[index].error(projection) for index in sorted(layers))

    def _layers(self, pair: PairKey) -> dict[int, Moments]:
        return {key.index: m for key, m in self.by_call.items() if key.pair == pair}


def _sum(moments: Iterable[Moments], head_dim: int) -> Moments:
    total = Moments.zeros(head_dim)
    for item in moments:
        total = total + item
    return total
