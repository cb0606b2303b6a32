"""What the checkpoint's own model says about layers and head_dim."""

from __future__ import annotations

from dataclasses import dataclass

from sla_ckpt.checks.context import Context
from sla_ckpt.checks.expectation import Expectation
from sla_ckpt.errors import MigrationError
from sla_ckpt.formats.layouts.read import LayerProjections


@dataclass(frozen=True)
class ModelFacts:
    """The model a checkpoint holds, as far as its config tells.

    Attributes:
        class_name: diffusers class; None when unknown.
        layers: Transformer blocks; None when unknown.
        head_dims: head_dims that meet SLA.
        expectation: Which pairs it makes.
        compute_dtype: Token of the dtype it runs in; None when unknown.
    """

    class_name: str | None
    layers: int | None
    head_dims: tuple[int, ...]
    expectation: Expectation
    compute_dtype: str | None

    @classmethod
    def of(cls, context: Context) -> ModelFacts:
        config = context.model_config or {}
        layers = config.get("num_layers")
        expectation = context.expectation
        head_dims = tuple(sorted({pair.head_dim for pair in expectation.pairs}))
        name = config.get("_class_name")
        return cls(
            name if isinstance(name, str) else None,
            layers if type(layers) is int and 0 < layers < 10_000 else None,
            head_dims if expectation.known else (),
            expectation,
            context.compute_dtype,
        )

    def dtype_for(self, head_dim: int) -> str | None:
        """As :meth:`~sla_ckpt.checks.expectation.Expectation.dtype_for`, for this model."""
        return self.expectation.dtype_for(head_dim, self.compute_dtype)

    def check_layers(self, found: LayerProjections, label: str) -> None:
        """Refuse a file whose number of layers is not this model's.

        Raises:
            MigrationError: It is another geometry.
        """
        if found.is_shared or self.layers is None or self.layers == len(found.layers):
            return
        raise MigrationError(
            f"{label} has {len(found.layers)} layers of head_dim {found.head_dim}; this "
            f"{self.class_name or 'model'} has {self.layers}",
            hint="it belongs to a model of another size",
            path=label,
        )
