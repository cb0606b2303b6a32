"""What a state holds, in numbers: the data behind ``sla-ckpt inspect``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sla_ckpt.checks.context import Context
from sla_ckpt.checks.entries import Entry
from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.state import SLASettings

SCHEMA_VERSION = 1
#: A singular value decomposition beyond this takes minutes.
MAX_SVD_DIM = 1024


@dataclass(frozen=True, eq=False)
class PairSummary:
    """One pair of a state.

    Attributes:
        name: Its key, ``"128:bf16"``.
        weight_shape: Shape of ``proj_l.weight``; None when it is missing.
        bias_shape: Likewise.
        dtypes: torch names of the stored dtypes.
        norm: Frobenius norm of the weight.
        bias_norm: Euclidean norm of the bias.
        spectral_norm: Largest singular value of the weight.
        rank: Numerical rank of the weight.
        zeros: Share of exact zeros in weight and bias, 0 to 1.
        finite: No NaN and no Inf.
        trained: Not all zero.
        stray: The model at hand does not materialise it.
        singular_values: Descending; empty when they were not computed.
        weight: The matrix itself, for plots.
        bias: Likewise.
    """

    name: str
    weight_shape: tuple[int, ...] | None
    bias_shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    norm: float | None
    bias_norm: float | None
    spectral_norm: float | None
    rank: int | None
    zeros: float | None
    finite: bool
    trained: bool
    stray: bool
    singular_values: NDArray[np.float64]
    weight: NDArray[Any] | None
    bias: NDArray[Any] | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "pair": self.name,
            "weight_shape": list(self.weight_shape) if self.weight_shape is not None else None,
            "bias_shape": list(self.bias_shape) if self.bias_shape is not None else None,
            "dtypes": list(self.dtypes),
            "norm": _number(self.norm),
            "bias_norm": _number(self.bias_norm),
            "spectral_norm": _number(self.spectral_norm),
            "rank": self.rank,
            "zeros": self.zeros,
            "finite": self.finite,
            "trained": self.trained,
            "stray": self.stray,
        }


@dataclass(frozen=True)
class StateSummary:
    """A whole state.

    Attributes:
        target: As the user named it.
        kind: What the target is.
        path: The state file.
        size: Its bytes.
        sha256: Its hash.
        version: File version as stored.
        settings: Settings with defaults filled in, None when absent or malformed.
        pairs: In the file's order.
        expected: Pairs the model materialises, empty when unknown.
        origin: Where it came from, as far as the twin says.
        notes: What is unusual about the container.
    """

    target: str
    kind: str
    path: str
    size: int
    sha256: str
    version: object
    settings: SLASettings | None
    pairs: tuple[PairSummary, ...]
    expected: tuple[str, ...]
    origin: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "target": self.target,
            "kind": self.kind,
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "version": self.version if isinstance(self.version, int) else None,
            "settings": _numbers(self.settings.to_dict()) if self.settings else None,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "expected": list(self.expected),
            "origin": dict(self.origin),
            "notes": list(self.notes),
        }


def summarise(context: Context, *, spectrum: bool = True) -> StateSummary:
    """Describe the state of a target.

    Args:
        context: The target.
        spectrum: Compute singular values too, which takes longer than everything else.

    Raises:
        FormatError: The state file is unreadable.
        TargetNotFoundError: There is none.
    """
    for fault in (context.payload_fault, context.twin_fault):
        if fault is not None:
            raise fault
    body = context.body
    if body is None:
        raise TargetNotFoundError(
            f"{context.source.label} has no readable {context.state_path}",
            hint=f"run: sla-ckpt verify {context.source.label}",
            path=context.state_path,
        )
    path = context.state_path
    if context.payload is not None:
        sha256, size, notes = context.payload.sha256, context.payload.size, context.payload.notes
    else:
        import hashlib

        data = context.source.read(path)
        sha256, size, notes = hashlib.sha256(data).hexdigest(), len(data), ()
    return StateSummary(
        target=context.source.label,
        kind=context.checkpoint.kind.value,
        path=path,
        size=size,
        sha256=sha256,
        version=body.get("version"),
        settings=context.settings,
        pairs=tuple(_pair(entry, context, spectrum) for entry in context.entries),
        expected=tuple(str(pair) for pair in context.expectation.pairs),
        origin=context.origin,
        notes=notes,
    )


def _pair(entry: Entry, context: Context, spectrum: bool) -> PairSummary:
    weight = entry.weight.array if entry.weight is not None else None
    bias = entry.bias.array if entry.bias is not None else None
    arrays = [_doubles(array) for array in (weight, bias) if array is not None]
    finite = all(bool(np.isfinite(array).all()) for array in arrays)
    elements = sum(array.size for array in arrays)
    nonzero = sum(int(np.count_nonzero(array)) for array in arrays)
    singular = _singular_values(weight) if finite and spectrum else np.empty(0)
    tolerance = singular[0] * max(weight.shape) * np.finfo(np.float32).eps if len(singular) else 0.0  # type: ignore[union-attr]
    return PairSummary(
        name=entry.name,
        weight_shape=entry.weight.shape if entry.weight is not None else None,
        bias_shape=entry.bias.shape if entry.bias is not None else None,
        dtypes=tuple(sorted({tensor.dtype for tensor in entry.tensors.values()})),
        norm=_norm(weight) if finite else None,
        bias_norm=_norm(bias) if finite else None,
        spectral_norm=float(singular[0]) if len(singular) else None,
        rank=int(np.count_nonzero(singular > tolerance)) if len(singular) else None,
        zeros=1 - nonzero / elements if elements else None,
        finite=finite,
        trained=nonzero > 0,
        stray=entry.key is not None and context.expectation.is_stray(entry.key),
        singular_values=singular,
        weight=weight,
        bias=bias,
    )


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _norm(array: NDArray[Any] | None) -> float | None:
    if array is None:
        return None
    with np.errstate(over="ignore"):  # of float64, whose squares may not fit
        return float(np.linalg.norm(_doubles(array)))


def _doubles(array: NDArray[Any]) -> NDArray[Any]:
    """In double precision, complex values too, without numpy's warning of signalling NaN."""
    with np.errstate(invalid="ignore"):
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _singular_values(weight: NDArray[Any] | None) -> NDArray[np.float64]:
    if weight is None or weight.ndim != 2 or not weight.size or max(weight.shape) > MAX_SVD_DIM:
        return np.empty(0)
    values: NDArray[np.float64] = np.linalg.svd(_doubles(weight), compute_uv=False)
    return values
