"""The entries of a state's dict, taken apart without giving up at the first fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sla_ckpt.errors import StructureError
from sla_ckpt.state import BIAS, WEIGHT, PairKey, SLAState
from sla_ckpt.text import short_repr

if TYPE_CHECKING:
    from sla_ckpt.formats.payload import StoredTensor


@dataclass(frozen=True, eq=False)
class Entry:
    """One key of ``state`` and what is under it.

    Attributes:
        name: The key as text, for messages.
        key: The pair, None when the key cannot be read.
        key_fault: Why not.
        tensors: Tensor name -> tensor, of what is a tensor.
        others: Names under the key that hold no tensor.
        fault: Set when the value is no dict at all.
    """

    name: str
    key: PairKey | None
    key_fault: str | None
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...]
    fault: str | None

    @property
    def weight(self) -> StoredTensor | None:
        return self.tensors.get(WEIGHT)

    @property
    def bias(self) -> StoredTensor | None:
        return self.tensors.get(BIAS)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in (WEIGHT, BIAS) if name not in self.tensors)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(n for n in (*self.tensors, *self.others) if n not in (WEIGHT, BIAS))

    @property
    def head_dim(self) -> int | None:
        """The head_dim that the key or, without a key, the tensors speak of."""
        if self.key is not None:
            return self.key.head_dim
        if re.fullmatch(r"[1-9]\d{0,4}", self.name):
            return int(self.name)
        shape = self.bias.shape if self.bias is not None else ()
        return shape[0] if len(shape) == 1 else None

    @property
    def is_zero(self) -> bool:
        """Both tensors present and all zero."""
        # Counted, since numpy's any() warns of NaN of the signalling kind.
        return not self.missing and not any(
            np.count_nonzero(tensor.array) for tensor in (self.tensors[WEIGHT], self.tensors[BIAS])
        )


def parse_entries(state: Mapping[Any, Any]) -> tuple[Entry, ...]:
    """Take a payload's ``state`` dict apart."""
    from sla_ckpt.formats.payload import StoredTensor

    loose = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, StoredTensor)}
    entries = [_entry(key, value) for key, value in state.items() if key not in loose]
    return (*((_without_key(loose),) if loose else ()), *entries)


def _without_key(tensors: Mapping[str, StoredTensor]) -> Entry:
    """A module's tensors directly under ``state``."""
    fault = f"{', '.join(map(short_repr, tensors))} stand under no key <head_dim>:<dtype>"
    return Entry("(no key)", None, fault, tensors, (), None)


def _entry(raw: object, value: object) -> Entry:
    from sla_ckpt.formats.payload import StoredTensor

    key: PairKey | None = None
    key_fault: str | None = None
    try:
        key = PairKey.parse(raw)
    except StructureError as error:
        key_fault = error.message
    name = raw if isinstance(raw, str) and len(raw) < 80 else short_repr(raw)
    if not isinstance(value, dict):
        fault = f"holds {short_repr(value)}, not a dict of tensors"
        return Entry(name, key, key_fault, {}, (), fault)
    tensors: dict[str, StoredTensor] = {}
    others: list[str] = []
    for label, item in value.items():
        text = label if isinstance(label, str) else short_repr(label)
        if isinstance(item, StoredTensor) and isinstance(label, str):
            tensors[text] = item
        else:
            others.append(text)
    return Entry(name, key, key_fault, tensors, tuple(others), None)


def twin_as_body(twin: SLAState) -> Mapping[str, Any]:
    """A twin in the form of the state file's payload, so that the same rules judge it."""
    from sla_ckpt.formats.payload import StoredTensor

    return {
        "settings": twin.settings.to_dict() if twin.settings else None,
        "state": {
            str(key): {
                WEIGHT: StoredTensor(pair.weight, pair.weight_dtype, pair.weight.shape),
                BIAS: StoredTensor(pair.bias, pair.bias_dtype, pair.bias.shape),
            }
            for key, pair in twin.pairs.items()
        },
        "version": twin.version,
    }
