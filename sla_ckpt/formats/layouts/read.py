"""Find and read the projections in a bag of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sla_ckpt.errors import MigrationError
from sla_ckpt.formats.layouts.names import (
    ProjectionName,
    is_projection,
    is_sla2,
    parse_name,
    strip_wrappers,
    titles,
)
from sla_ckpt.formats.layouts.tensors import TensorBag, TensorHandle
from sla_ckpt.state import ProjectionTensors

#: Raw training dumps hold both; what is published and used is the average.
_PREFERRED_CONTAINERS = ("net_ema.", "ema.", "")
_FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, eq=False)
class LayerProjections:
    """Projections as another project keeps them.

    Attributes:
        layout: A key of :func:`~.names.titles`.
        layers: By layer number, without gaps; ``{0: …}`` for a shared module.
        notes: What was found and chosen, for the user.
    """

    layout: str
    layers: Mapping[int, ProjectionTensors]
    notes: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        return len(self.layers[0].bias)

    @property
    def title(self) -> str:
        return titles()[self.layout]

    @property
    def zero_layers(self) -> int:
        return sum(projection.is_zero for projection in self.layers.values())

    @property
    def is_shared(self) -> bool:
        """One projection by itself, rather than one per layer."""
        return self.layout == "module"


def read_layers(bag: TensorBag) -> LayerProjections:
    """Read a per-layer (or bare module) layout.

    Raises:
        MigrationError: No projection, SLA2, mixed layouts, gaps, wrong shapes, values that are
            not finite, or names that collide once wrappers are stripped.
    """
    named = _named(bag)
    container = _choose_container(bag, {name.container for name, _ in named})
    chosen = [(name, handle) for name, handle in named if name.container == container]
    layouts = sorted({name.layout for name, _ in chosen})
    if len(layouts) > 1:
        mixed = " and ".join(titles()[layout] for layout in layouts)
        raise _fault(bag, f"it mixes the layouts {mixed}", "split it into one file per layout")
    notes = []
    containers = sorted({name.container for name, _ in named})
    if len(containers) > 1 or container:
        shown = container or "(top level)"
        others = [item or "(top level)" for item in containers if item != container]
        notes.append(f"read from {shown}" + (f", not {', '.join(others)}" if others else ""))
    if any(strip_wrappers(name) != name for name in bag.tensors if is_projection(name)):
        notes.append("wrapper prefixes stripped")
    layers = _read(bag, _by_layer(bag, chosen))
    deltas = [name for name in bag.tensors if not is_projection(name)]
    if layouts == ["mindie"] and deltas:
        notes.append(
            f"{len(deltas)} other tensors (qkv and output deltas of the adapter) are not part of "
            "an SLA state and stay where they are"
        )
    result = LayerProjections(layouts[0], layers, tuple(notes))
    if result.zero_layers:
        note = f"{result.zero_layers} of {len(layers)} layers are all zero: never trained"
        return LayerProjections(result.layout, layers, (*notes, note))
    return result


def has_projections(bag: TensorBag) -> bool:
    """Whether a bag holds any projection in a known layout."""
    return any(parse_name(strip_wrappers(name)) is not None for name in bag.tensors)


def _fault(bag: TensorBag, message: str, hint: str) -> MigrationError:
    return MigrationError(f"{bag.label}: {message}", hint=hint, path=bag.label)


def _named(bag: TensorBag) -> list[tuple[ProjectionName, TensorHandle]]:
    sla2 = [name for name in bag.tensors if is_sla2(name)]
    if sla2:
        raise _fault(
            bag,
            f"it is SLA2 ({sla2[0]!r:.100}): its router and mixing factor have no place in an "
            "SLA state",
            "use the project that trained it",
        )
    found: dict[str, tuple[ProjectionName, TensorHandle]] = {}
    origin: dict[str, str] = {}
    unknown = []
    for raw, handle in bag.tensors.items():
        name = strip_wrappers(raw)
        parsed = parse_name(name)
        if parsed is None or parsed.layout == "pairs":
            if is_projection(raw):
                unknown.append(raw)
            continue
        if name in found:
            raise _fault(
                bag,
                f"{raw!r:.120} and {origin[name]!r:.120} are the same name once wrappers are "
                "stripped",
                "keep one of them",
            )
        found[name] = (parsed, handle)
        origin[name] = raw
    if unknown:
        raise _fault(
            bag,
            f"projection {unknown[0]!r:.120} is in a layout that is not known",
            "known are: " + ", ".join(titles().values()),
        )
    if not found:
        raise _fault(
            bag,
            f"no SLA projection among its {len(bag.tensors):,} tensors; nothing to migrate",
            "a model whose sparsity is only configuration (LightX2V, vLLM-Omni, MiniMax-H3) has "
            "none; to train one run: sla-ckpt regen",
        )
    return list(found.values())


def _choose_container(bag: TensorBag, containers: set[str]) -> str:
    if len(containers) == 1:
        return next(iter(containers))
    for preferred in _PREFERRED_CONTAINERS:
        matching = sorted(item for item in containers if item == preferred or (
            preferred and item.endswith("." + preferred)))  # fmt: skip
        if len(matching) == 1:
            return matching[0]
    raise _fault(
        bag,
        f"projections under several names: {', '.join(sorted(containers))[:200]}",
        "save the one that is meant by itself",
    )


def _by_layer(
    bag: TensorBag, chosen: list[tuple[ProjectionName, TensorHandle]]
) -> dict[int, dict[str, TensorHandle]]:
    layers: dict[int, dict[str, TensorHandle]] = {}
    for name, handle in chosen:
        layers.setdefault(name.layer or 0, {})[name.tensor] = handle
    missing = sorted(set(range(max(layers) + 1)) - layers.keys())
    if missing:
        shown = ", ".join(map(str, missing[:8]))
        raise _fault(
            bag,
            f"layers {shown}{' …' if len(missing) > 8 else ''} have no projection; "
            f"{len(layers)} of {max(layers) + 1} have one",
            "get the whole file: a shard may be missing",
        )
    for layer, tensors in sorted(layers.items()):
        for wanted in ("weight", "bias"):
            if wanted not in tensors:
                raise _fault(
                    bag, f"layer {layer} has no proj_l.{wanted}", "get the whole file again"
                )
    return dict(sorted(layers.items()))


def _read(
    bag: TensorBag, layers: Mapping[int, Mapping[str, TensorHandle]]
) -> dict[int, ProjectionTensors]:
    dim = layers[0]["bias"].shape[0] if len(layers[0]["bias"].shape) == 1 else 0
    result = {}
    for layer, tensors in layers.items():
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.shape != (dim, dim) or bias.shape != (dim,) or not dim:
            raise _fault(
                bag,
                f"layer {layer}: proj_l.weight {list(weight.shape)} and bias {list(bias.shape)} "
                f"do not fit head_dim {dim}",
                "the file is damaged or belongs to another model",
            )
        for handle in (weight, bias):
            if handle.dtype not in _FLOATS:
                raise _fault(
                    bag,
                    f"{handle.name!r:.120} is {handle.dtype}, not a plain float",
                    "projections are never quantised; find the original file",
                )
        stored_weight, stored_bias = weight.read(), bias.read()
        for handle, stored in ((weight, stored_weight), (bias, stored_bias)):
            bad = stored.array.size - int(np.count_nonzero(np.isfinite(stored.array)))
            if bad:
                raise _fault(
                    bag,
                    f"{handle.name!r:.120} has {bad:,} of {stored.array.size:,} values NaN or Inf",
                    "take an older file, or run: sla-ckpt regen",
                )
        result[layer] = ProjectionTensors(
            stored_weight.array, stored_bias.array, stored_weight.dtype, stored_bias.dtype
        )
    return result
