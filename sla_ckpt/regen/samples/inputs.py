"""``--inputs FILE.safetensors``: forward() calls as they are, with their targets.

Keys are ``[<call>/]<argument>``: ``target`` is what the prediction is compared with, everything
else is passed to forward() by name. Dots nest: ``added_cond_kwargs.text_embeds`` is an entry of
that dict, ``x.0``, ``x.1`` are entries of a list. Without ``<call>/`` the file is one call.
Arguments that are no tensors stand as a JSON object in the metadata entry ``arguments``; they go
to every call. docs/samples.md shows how to write such a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.samples.request import FixedCall, SampleSet
from sla_ckpt.regen.streaming import load_tensors
from sla_ckpt.regen.tensor_files import Placement, read_table_and_metadata

TARGET = "target"
METADATA_KEY = "arguments"


def load_inputs(path: Path, count: int) -> SampleSet:
    """Read at most ``count`` stored calls.

    Raises:
        RegenError: No target, names that collide, values that are not finite.
        FormatError: Not a safetensors file.
    """
    table, metadata = read_table_and_metadata(path)
    tensors: dict[str, Tensor] = {}
    load_tensors(
        table.values(), lambda _: Placement(torch.device("cpu"), None), tensors.__setitem__
    )
    calls: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        call, _, argument = key.rpartition("/")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise RegenError(f"{path}: {key} holds NaN or Inf", path=str(path))
        calls.setdefault(call, {})[argument] = tensor
    if not calls:
        raise RegenError(f"{path} holds no tensors", path=str(path))
    common = _arguments(path, metadata)
    ordered = sorted(calls, key=lambda name: (int(name) if name.isdigit() else 0, name))
    loaded = [_call(path, name, calls[name], common) for name in ordered[:count]]
    return SampleSet(
        samples=(),
        kind="real",
        description=f"{len(loaded)} of {len(calls)} stored forward() calls from {path.name}",
        calls=tuple(loaded),
    )


def _arguments(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(METADATA_KEY, "{}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RegenError(f"{path}: metadata {METADATA_KEY} is not JSON", path=str(path)) from error
    if not isinstance(value, dict):
        raise RegenError(f"{path}: metadata {METADATA_KEY} is not an object", path=str(path))
    return value


def _call(path: Path, name: str, named: dict[str, Tensor], common: Mapping[str, Any]) -> FixedCall:
    source = f"{path.name}:{name}" if name else path.name
    target = named.pop(TARGET, None)
    if target is None or not target.is_floating_point():
        raise RegenError(
            f"{source} has no target",
            hint="store what the prediction is compared with under the key target",
            path=str(path),
        )
    if not named:
        raise RegenError(f"{source} has no forward() arguments", path=str(path))
    inputs: dict[str, Any] = dict(common)
    for key, tensor in named.items():
        _put(inputs, key.split("."), tensor, f"{source}: {key}")
    return FixedCall({key: _lists(value) for key, value in inputs.items()}, target, source)


def _put(into: dict[str, Any], parts: list[str], tensor: Tensor, what: str) -> None:
    *outer, leaf = parts
    for part in outer:
        into = into.setdefault(part, {})
        if not isinstance(into, dict):
            raise RegenError(f"{what} is named twice, once as a tensor and once as a group")
    if leaf in into:
        raise RegenError(f"{what} is named twice")
    into[leaf] = tensor


def _lists(value: Any) -> Any:
    """Groups whose keys count from 0 are lists."""
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(entry) for key, entry in value.items()}
    if inner and all(str(number) in inner for number in range(len(inner))):
        return [inner[str(number)] for number in range(len(inner))]
    return inner
