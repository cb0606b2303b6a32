"""Walk a pickle's tree without trusting its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.payload import StoredTensor, TensorSpec

MAX_DEPTH = 64
#: As it would be written out in full: shared parts count each time they are used.
MAX_NODES = 2_000_000

_SCALARS = (str, bytes, int, float, type(None), TensorSpec, StoredTensor)


def map_tree(value: object, leaf: Callable[[object], object], *, name: str) -> object:
    """Copy a tree of dict, list and tuple, with every leaf replaced.

    A part that is used in several places is copied once and stays shared.

    Args:
        value: The root.
        leaf: Called for each leaf.
        name: How messages name the file.

    Returns:
        The copy. Dict subclasses become plain dicts.

    Raises:
        FormatError: A cycle, more than 64 levels, over two million nodes when written out, or a
            leaf that is no value (a class, a bare storage).
    """
    return _Mapper(leaf, name).visit(value, 0)[0]


class _Mapper:
    def __init__(self, leaf: Callable[[object], object], name: str) -> None:
        self.leaf = leaf
        self.name = name
        self.done: dict[int, tuple[object, int, int]] = {}
        self.open: set[int] = set()

    def visit(self, value: object, depth: int) -> tuple[object, int, int]:
        """(copy, nodes, height) of a subtree; recursion is bounded by MAX_DEPTH."""
        if isinstance(value, _SCALARS):
            return self.leaf(value), 1, 0
        if not isinstance(value, dict | list | tuple):
            raise self.fault(f"its payload contains {type(value).__name__.strip('_').lower()}")
        identity = id(value)
        if identity in self.open:
            raise self.fault("its payload contains itself")
        if identity not in self.done:
            if depth > MAX_DEPTH:
                raise self.fault(f"its payload is nested over {MAX_DEPTH} levels deep")
            self.open.add(identity)
            self.done[identity] = self.copy(value, depth)
            self.open.remove(identity)
        copy, nodes, height = self.done[identity]
        if depth + height > MAX_DEPTH:
            raise self.fault(f"its payload is nested over {MAX_DEPTH} levels deep")
        return copy, nodes, height

    def copy(self, value: Any, depth: int) -> tuple[object, int, int]:
        parts: Iterable[object] = value.values() if isinstance(value, dict) else value
        copies: list[object] = []
        nodes, height = 1, 0
        for part in parts:
            part_copy, part_nodes, part_height = self.visit(part, depth + 1)
            copies.append(part_copy)
            nodes += part_nodes
            height = max(height, part_height + 1)
        if nodes > MAX_NODES:
            raise self.fault("its payload repeats itself endlessly")
        if isinstance(value, dict):
            return dict(zip(value, copies, strict=True)), nodes, height
        return (tuple(copies) if isinstance(value, tuple) else copies), nodes, height

    def fault(self, message: str) -> FormatError:
        return FormatError(
            f"{self.name}: {message}",
            kind="pickle",
            hint="this is not a state; take it from an earlier checkpoint, or run: sla-ckpt regen",
            path=self.name,
        )
