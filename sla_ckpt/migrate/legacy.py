"""Files that only torch can read: the old, non-zip format, through its weights-only loader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from sla_ckpt.errors import FormatError, MissingExtraError, UnsafePickleError
from sla_ckpt.formats.layouts.tensors import TensorBag, TensorHandle
from sla_ckpt.formats.payload import StoredTensor


def read_legacy(path: Path, *, name: str | None = None) -> object:
    """A legacy file as a plain tree of numpy tensors; its pickle is never executed.

    Raises:
        MissingExtraError: torch is not installed.
        UnsafePickleError: It asks for a global outside torch's allow-list.
        FormatError: It is damaged.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("reading an old, non-zip torch file", "torch", "torch") from error
    label = name or str(path)
    try:
        value = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise _refused(label, str(error)) from error
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError, IndexError,
            AttributeError, AssertionError, MemoryError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(
            f"{label}: torch cannot read it: {reason:.200}",
            kind="damaged",
            hint="take an older file, or run: sla-ckpt regen",
            path=label,
        ) from error
    return _plain(value)


def _refused(label: str, text: str) -> FormatError:
    """torch names the global in the middle of a long text of advice."""
    import re

    match = re.search(r"GLOBAL (\S+)", text)
    if match:
        return UnsafePickleError(
            f"{label}: its pickle asks for {match[1]:.200}; it was not executed",
            global_name=match[1],
            hint="do not load this file with torch; take it from a source you trust",
            path=label,
        )
    return FormatError(f"{label}: torch's weights-only loader refuses it", path=label)


def _plain(value: Any, depth: int = 0) -> object:
    import torch

    if depth > 64:
        raise FormatError("nested over 64 levels deep", kind="pickle")
    if isinstance(value, torch.Tensor):
        return _stored(value)
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, depth + 1) for item in value) if type(value) in (
            list, tuple) else [_plain(item, depth + 1) for item in value]  # fmt: skip
    return value


def _stored(tensor: Any) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.detach()
    if dtype == "bfloat16" or dtype.startswith("float8"):
        plain = plain.float()
    array = plain.contiguous().numpy().copy()
    array.flags.writeable = False
    return StoredTensor(array, dtype, tuple(tensor.shape))


def legacy_tensors(path: Path) -> TensorBag:
    """The tensors of a legacy file under dotted names; unlike other files, read at once.

    Raises:
        FormatError: As :func:`read_legacy`, as are the others.
    """
    tensors: dict[str, TensorHandle] = {}
    values: dict[str, object] = {}
    _flatten(read_legacy(path), "", tensors, values)
    return TensorBag(str(path), "legacy torch file", tensors, {}, values)


def _flatten(
    value: object, prefix: str, tensors: dict[str, TensorHandle], values: dict[str, object]
) -> None:
    if isinstance(value, StoredTensor):
        stored = value
        tensors[prefix] = TensorHandle(prefix, value.dtype, value.shape, lambda: stored)
    elif isinstance(value, dict):
        for key, item in value.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            _flatten(item, name, tensors, values)
    elif not isinstance(value, list):
        values[prefix] = value
