"""What other readers make of the same bytes: torch's weights-only loader and safetensors."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from sla_ckpt.formats.dtypes import SAFETENSORS
from sla_ckpt.formats.optimizer import OptimizerStructure
from sla_ckpt.formats.payload import StatePayload, StoredTensor
from sla_ckpt.formats.safetensors_header import SafetensorsHeader


def torch_differs_from(data: bytes, payload: StatePayload) -> str | None:
    """How ``torch.load(weights_only=True)`` reads it otherwise; None when exactly alike."""
    theirs, refusal = _torch_load(data)
    return refusal or difference(payload.value, theirs)


def _torch_load(data: bytes) -> tuple[Any, str | None]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"), None
        except Exception as error:
            # Whatever torch raises, it is a refusal of what we call clean.
            return None, f"torch refuses it: {type(error).__name__}: {str(error)[:200]}"


def difference(ours: Any, theirs: Any, where: str = "root") -> str | None:
    """The first place where our tree and torch's are not the same value and type."""
    if isinstance(ours, StoredTensor):
        return _tensor_difference(ours, theirs, where)
    if isinstance(ours, dict):
        if not isinstance(theirs, dict) or _keys(ours) != _keys(theirs):
            return f"{where}: {list(ours)!r:.200} != {theirs!r:.200}"
        pairs = list(zip(ours.items(), theirs.values(), strict=True))
        found = (difference(mine, other, f"{where}.{key!r:.30}") for (key, mine), other in pairs)
        return next((each for each in found if each), None)
    if isinstance(ours, list | tuple):
        if not _same_sequence(ours, theirs):
            return f"{where}: {ours!r:.200} != {theirs!r:.200}"
        items = zip(ours, theirs, strict=True)
        found = (difference(mine, other, f"{where}[{n}]") for n, (mine, other) in enumerate(items))
        return next((each for each in found if each), None)
    return None if _same_scalar(ours, theirs) else f"{where}: {ours!r:.200} != {theirs!r:.200}"


def _keys(value: Mapping[Any, Any]) -> list[str]:
    plain = (tuple(key) if isinstance(key, tuple) else key for key in value)
    return [f"{type(key).__name__} {key!r}" for key in plain]


def _same_sequence(ours: Any, theirs: Any) -> bool:
    wanted = list if isinstance(ours, list) else tuple  # torch.Size is a tuple
    return isinstance(theirs, wanted) and len(ours) == len(theirs)


def _same_scalar(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return struct.pack(">d", ours) == struct.pack(">d", theirs)
    if type(ours) is type(theirs):
        return bool(ours == theirs)
    # A dtype or a device is a string to us.
    return isinstance(ours, str) and type(theirs).__module__ == "torch" and str(theirs) == ours


def _tensor_difference(ours: StoredTensor, theirs: Any, where: str) -> str | None:
    import torch

    if not isinstance(theirs, torch.Tensor) or f"torch.{ours.dtype}" != str(theirs.dtype):
        return f"{where}: {ours!r} != {theirs!r:.200}"
    if tuple(theirs.shape) != ours.shape:
        return f"{where}: shape {ours.shape} != {tuple(theirs.shape)}"
    plain = theirs.detach()
    if theirs.is_conj() or theirs.is_neg():
        return f"{where}: torch's tensor is a conjugate or negative view"
    if ours.dtype == "bfloat16" or ours.dtype.startswith("float8"):
        plain = plain.float()
    array = plain.contiguous().numpy()
    if array.dtype.kind == "f" and ours.dtype.startswith("float8"):
        same = np.array_equal(array, ours.array, equal_nan=True)
    else:
        same = array.tobytes() == np.ascontiguousarray(ours.array).tobytes()
    return None if same else f"{where}: other values"


def torch_differs_from_structure(data: bytes, structure: OptimizerStructure) -> str | None:
    """As :func:`torch_differs_from`, of an optimizer's groups and state shapes."""
    theirs, refusal = _torch_load(data)
    if refusal:
        return refusal
    groups = theirs["param_groups"]
    if [tuple(group["params"]) for group in groups] != [group.params for group in structure.groups]:
        return "torch reads other params"
    for group, ours in zip(groups, structure.groups, strict=True):
        if {_text(key) for key in group if key != "params"} != set(ours.options):
            return "torch reads other options"
    shapes = {
        param: {
            str(name): tuple(item.shape) for name, item in entry.items() if hasattr(item, "stride")
        }
        for param, entry in theirs["state"].items()
        if type(param) is int and isinstance(entry, dict)
    }
    return None if shapes == structure.state_shapes else "torch reads other shapes"


def _text(key: object) -> str:
    """A key as our structure names it: torch.Size is a tuple like any other."""
    return str(tuple(key) if isinstance(key, tuple) else key)


def safetensors_differs(data: bytes, header: SafetensorsHeader) -> str | None:
    """How the reference implementation reads the file otherwise; None when alike."""
    from safetensors import SafetensorError, deserialize

    try:
        theirs = dict(deserialize(data))
    except SafetensorError as error:
        return f"safetensors refuses it: {str(error)[:200]}"
    if theirs.keys() != header.tensors.keys():
        return f"safetensors reads other names: {sorted(theirs)!r:.200}"
    for name, info in header.tensors.items():
        other = theirs[name]
        if (
            tuple(other["shape"]) != info.shape
            or bytes(other["data"]) != data[info.start : info.end]
        ):
            return f"safetensors reads another {name!r:.60}"
        if info.dtype in SAFETENSORS and str(other["dtype"]) not in (
            info.dtype,
            SAFETENSORS[info.dtype],
        ):
            return f"safetensors reads {name!r:.60} as {other['dtype']}"
    return None
