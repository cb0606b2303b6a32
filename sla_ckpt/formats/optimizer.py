"""The structure of an ``optimizer.bin`` without torch and without reading its tensors.

A 20 GB file costs the reading of its ``data.pkl``, a few hundred KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sla_ckpt.errors import StructureError
from sla_ckpt.formats.payload import TensorSpec
from sla_ckpt.formats.pickle_machine import PickleLimits
from sla_ckpt.formats.reading import opened
from sla_ckpt.formats.torch_zip import open_archive
from sla_ckpt.formats.tree import map_tree

_LIMITS = PickleLimits(objects=4_000_000, storages=1_000_000)
_PICKLE_BYTES = 64 << 20


@dataclass(frozen=True)
class ParamGroup:
    """One entry of ``param_groups``.

    Attributes:
        params: Indices of its parameters.
        options: The rest of it (``lr``, ``betas``, ``initial_lr``, …).
    """

    params: tuple[int, ...]
    options: Mapping[str, Any]

    @property
    def has_initial_lr(self) -> bool:
        """Whether a learning-rate scheduler has met this group."""
        return "initial_lr" in self.options


@dataclass(frozen=True)
class OptimizerStructure:
    """What an optimizer's state_dict looks like.

    Attributes:
        groups: In order.
        state_shapes: Parameter index -> name of the state tensor -> shape. A parameter that
            never took a step has no entry.
        notes: What is unusual about the file.
    """

    groups: tuple[ParamGroup, ...]
    state_shapes: Mapping[int, Mapping[str, tuple[int, ...]]]
    notes: tuple[str, ...] = ()

    def sla_groups(self) -> tuple[int, ...]:
        """Indices of the trailing groups that SLA added at its first forward pass.

        Such a group has two parameters, whose moments (if they ever took a step) are shaped
        (d, d) and (d,), and lacks ``initial_lr`` although group 0 has it. A fresh process does
        not have these groups when it loads the file, so resuming raises.
        """
        found: list[int] = []
        if not self.groups or not self.groups[0].has_initial_lr:
            return ()
        for index in range(len(self.groups) - 1, 0, -1):
            group = self.groups[index]
            if group.has_initial_lr or not self._is_projection(group):
                break
            found.append(index)
        return tuple(reversed(found))

    def _is_projection(self, group: ParamGroup) -> bool:
        if len(group.params) != 2:
            return False
        weight, bias = (self._moment_shape(param) for param in group.params)
        if weight is None and bias is None:
            return True
        square = weight is None or (len(weight) == 2 and weight[0] == weight[1])
        line = bias is None or len(bias) == 1
        return square and line and (weight is None or bias is None or bias[0] == weight[0])

    def _moment_shape(self, param: int) -> tuple[int, ...] | None:
        """The shape of a parameter's per-element state; None if it has none."""
        shapes = [shape for shape in self.state_shapes.get(param, {}).values() if shape]
        rank = max((len(shape) for shape in shapes), default=0)
        # Adafactor keeps a (d, 1) and a (1, d) in place of a (d, d).
        sides = zip(*(shape for shape in shapes if len(shape) == rank), strict=True)
        return tuple(max(side) for side in sides) if rank else None


def read_optimizer(
    source: Path | bytes | BinaryIO, *, name: str | None = None
) -> OptimizerStructure:
    """Read the group structure of an ``optimizer.bin``.

    Raises:
        TargetNotFoundError: It is absent or cannot be read.
        StructureError: It holds something else than an optimizer's state_dict.
        UnsafePickleError: Its pickle asks for a global outside the allow-list.
        FormatError: It is damaged or not a ``torch.save`` archive.
    """
    with opened(source, name) as data:
        archive = open_archive(data, limits=_LIMITS, pickle_bytes=_PICKLE_BYTES)
        value = map_tree(archive.value, lambda leaf: leaf, name=data.name)
        return _structure(value, archive.notes, data.name)


def _structure(value: object, notes: tuple[str, ...], name: str) -> OptimizerStructure:
    if not isinstance(value, dict) or not isinstance(value.get("param_groups"), list):
        raise _fault(name, "it has no list param_groups")
    state = value.get("state")
    if not isinstance(state, dict):
        raise _fault(name, "it has no dict state")
    groups = []
    for index, group in enumerate(value["param_groups"]):
        params = group.get("params") if isinstance(group, dict) else None
        if not isinstance(params, list) or not all(type(param) is int for param in params):
            raise _fault(name, f"param_groups[{index}] has no list of params")
        options = {str(key): item for key, item in group.items() if key != "params"}
        groups.append(ParamGroup(tuple(params), options))
    shapes = {
        param: {str(key): item.shape for key, item in entry.items() if isinstance(item, TensorSpec)}
        for param, entry in state.items()
        if type(param) is int and isinstance(entry, dict)
    }
    return OptimizerStructure(tuple(groups), shapes, notes)


def _fault(name: str, message: str) -> StructureError:
    return StructureError(f"{name} is not an optimizer's state: {message}", path=name)
