"""``sla_attention.pt`` version 1: the file SimpleTuner writes and reads.

``{"settings": {…} | None, "state": {"<head_dim>:<dtype>": {"proj_l.weight", "proj_l.bias"}},
"version": 1}`` in a ``torch.save`` archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from sla_ckpt.errors import StructureError
from sla_ckpt.formats.payload import StatePayload, StoredTensor
from sla_ckpt.formats.simpletuner_writer import encode_state
from sla_ckpt.formats.torch_zip import read_torch_zip
from sla_ckpt.state import (
    BIAS,
    STATE_VERSION,
    WEIGHT,
    PairKey,
    ProjectionTensors,
    SLASettings,
    SLAState,
)

__all__ = ["encode_state", "payload_to_state", "read_payload", "read_state"]


def read_payload(source: Path | bytes | BinaryIO, *, name: str | None = None) -> StatePayload:
    """Read the file as it stands, whatever it holds.

    Raises:
        TargetNotFoundError: It is absent or cannot be read.
        UnsafePickleError: Its pickle asks for a global that no state needs.
        FormatError: It is something else or damaged.
    """
    return read_torch_zip(source, name=name)


def read_state(source: str | Path | bytes | BinaryIO, *, name: str | None = None) -> SLAState:
    """Read a well-formed state.

    Args:
        source: Path, bytes or seekable stream.
        name: How messages name it.

    Raises:
        StructureError: It can be read but is no state; names the first fault.
        FormatError: As :func:`read_payload`, as are the others.
    """
    if isinstance(source, str):
        source = Path(source)
    label = name or (str(source) if isinstance(source, Path) else "the state")
    return payload_to_state(read_payload(source, name=name), name=label)


def payload_to_state(payload: StatePayload, *, name: str) -> SLAState:
    """Turn a payload into a state, strictly.

    Settings that are absent take SimpleTuner's defaults; values are not judged (rules SLA102 to
    SLA104, SLA205 do that), nor is the dtype of ``proj_l`` (SLA204).

    Args:
        payload: What :func:`read_payload` returned.
        name: How messages name the file.

    Raises:
        StructureError: Naming the first fault.
    """
    value = payload.value
    if not isinstance(value, Mapping):
        raise _fault(name, f"it holds a {type(value).__name__}, not a dict of settings and state")
    version = value.get("version")
    if type(version) is not int or version != STATE_VERSION:
        shown = "no version" if version is None else f"version {version!r:.40}"
        raise _fault(name, f"it has {shown}; only version {STATE_VERSION} is known")
    state = value.get("state")
    if not isinstance(state, Mapping):
        what = "no state" if state is None else f"a state that is a {type(state).__name__}"
        raise _fault(name, f"it has {what}, not a dict of pairs")
    pairs = {}
    for key, entry in state.items():
        try:
            pair = PairKey.parse(key)
        except StructureError as error:
            raise _fault(name, error.message) from error
        pairs[pair] = _projection(pair, entry, name)
    return SLAState(pairs, _settings(value.get("settings"), name), STATE_VERSION)


def _fault(name: str, message: str) -> StructureError:
    return StructureError(
        f"{name}: {message}",
        hint="try sla-ckpt migrate; if it cannot repair the file, sla-ckpt regen",
        path=name,
    )


def _settings(value: object, name: str) -> SLASettings | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _fault(name, f"its settings are a {type(value).__name__}, not a dict")
    try:
        return SLASettings.from_mapping(value)
    except StructureError as error:
        raise _fault(name, error.message) from error


def _projection(pair: PairKey, entry: object, name: str) -> ProjectionTensors:
    if not isinstance(entry, Mapping):
        raise _fault(name, f"pair {pair} is a {type(entry).__name__}, not a dict of tensors")
    for wanted in (WEIGHT, BIAS):
        if wanted not in entry:
            raise _fault(name, f"pair {pair} has no {wanted}")
    extra = [key for key in entry if key not in (WEIGHT, BIAS)]
    if extra:
        raise _fault(name, f"pair {pair} has an unknown entry {extra[0]!r:.80}")
    weight = _tensor(entry[WEIGHT], (pair.head_dim, pair.head_dim), f"{pair} {WEIGHT}", name)
    bias = _tensor(entry[BIAS], (pair.head_dim,), f"{pair} {BIAS}", name)
    return ProjectionTensors(weight.array, bias.array, weight.dtype, bias.dtype)


def _tensor(value: object, shape: tuple[int, ...], label: str, name: str) -> StoredTensor:
    if not isinstance(value, StoredTensor):
        raise _fault(name, f"{label} is a {type(value).__name__}, not a tensor")
    if value.shape != shape:
        raise _fault(name, f"{label} has shape {list(value.shape)}, not {list(shape)}")
    return value
