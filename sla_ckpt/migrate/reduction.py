"""From one projection per layer to one for all, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sla_ckpt.errors import MigrationError
from sla_ckpt.formats.layouts.read import LayerProjections
from sla_ckpt.state import ProjectionTensors


@dataclass(frozen=True)
class Spread:
    """How far layers are from their mean.

    Attributes:
        layers: How many there are.
        largest: Largest absolute difference of any element between a layer and the mean.
        worst: Largest relative error ‖W_layer − mean‖ / ‖W_layer‖ over layers (Frobenius,
            weight and bias together).
        worst_layer: The layer that has it.
        average: Mean of the relative errors.
    """

    layers: int
    largest: float
    worst: float
    worst_layer: int
    average: float

    def __str__(self) -> str:
        return (
            f"relative error {self.average:.3g} on average, {self.worst:.3g} in layer "
            f"{self.worst_layer}; largest difference {self.largest:.3g}"
        )


def reduce_layers(
    source: LayerProjections, *, reduce: str | None, label: str
) -> tuple[ProjectionTensors, Spread | None]:
    """One projection for all layers.

    Args:
        source: The layers.
        reduce: None takes only layers that are all equal; ``"mean"`` averages them.
        label: How messages name the file.

    Returns:
        The projection in float32, and the error that averaging makes (None when exact).

    Raises:
        MigrationError: The layers differ and no reduction was asked for.
    """
    vectors = {layer: _vector(projection) for layer, projection in source.layers.items()}
    first = vectors[0]
    if all(np.array_equal(vector, first) for vector in vectors.values()):
        return source.layers[0].as_float32(), None
    mean = np.mean(list(vectors.values()), axis=0)
    spread = _spread(vectors, mean)
    if reduce != "mean":
        raise MigrationError(
            f"{label}: its {spread.layers} layers have different projections, and "
            f"sla_attention.pt holds one for all; their mean would make a {spread}",
            hint="keep them per layer (--to turbodiffusion or fastvideo), or accept that error "
            "with --reduce mean and regenerate: sla-ckpt regen",
            path=label,
        )
    dim = source.head_dim
    flat = mean.astype(np.float32)
    return ProjectionTensors(flat[: dim * dim].reshape(dim, dim), flat[dim * dim :]), spread


def _vector(projection: ProjectionTensors) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate(
        [projection.weight.astype(np.float64).reshape(-1), projection.bias.astype(np.float64)]
    )


def _spread(
    vectors: Mapping[int, np.ndarray[tuple[int], np.dtype[np.float64]]],
    mean: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Spread:
    errors = {}
    largest = 0.0
    for layer, vector in vectors.items():
        difference = vector - mean
        largest = max(largest, float(np.max(np.abs(difference))))
        norm = float(np.linalg.norm(vector))
        errors[layer] = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    finite = [error for error in errors.values() if np.isfinite(error)]
    worst_layer = max(errors, key=lambda layer: errors[layer])
    average = float(np.mean(finite)) if finite else float("inf")
    return Spread(len(vectors), largest, errors[worst_layer], worst_layer, average)


def spread_shared(projection: ProjectionTensors, layers: int) -> dict[int, ProjectionTensors]:
    """The same projection in every layer: exact."""
    return dict.fromkeys(range(layers), projection)
