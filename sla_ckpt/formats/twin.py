"""``sla_attention.safetensors``: the twin, the same tensors in a format that cannot hold code.

Tensors under ``<head_dim>:<dtype>/proj_l.weight`` and ``…/proj_l.bias``; metadata strings
``format`` = ``"pt"``, ``sla_ckpt.version``, ``sla_ckpt.settings`` (JSON, or ``null``),
``sla_ckpt.pt_sha256`` (of the ``.pt`` beside it) and ``sla_ckpt.origin.<name>``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sla_ckpt.errors import SlaCkptError, StructureError, WriteError
from sla_ckpt.formats.dtypes import SAFETENSORS, STORED_AS, decode, encode
from sla_ckpt.formats.payload import StoredTensor
from sla_ckpt.formats.reading import Bytes, opened
from sla_ckpt.formats.safetensors_header import (
    METADATA_KEY,
    SafetensorsHeader,
    TensorInfo,
    read_header,
)
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.simpletuner_writer import encode_state
from sla_ckpt.fsio import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, StagedFile, staged_file
from sla_ckpt.state import (
    BIAS,
    STATE_FILE,
    STATE_VERSION,
    TWIN_FILE,
    WEIGHT,
    PairKey,
    ProjectionTensors,
    SLASettings,
    SLAState,
)
from sla_ckpt.text import has_lone_surrogate

_PREFIX = "sla_ckpt."
_ORIGIN = "sla_ckpt.origin."
PT_SHA256 = "sla_ckpt.pt_sha256"
TOKEN_OF = {dtype: token for token, dtype in SAFETENSORS.items()}
#: A twin is as small as the state; a weights file under its name is not read.
_MAX_TENSOR = 1 << 32


def read_twin(
    source: str | Path | bytes | BinaryIO,
    *,
    name: str | None = None,
    coerce_metadata: bool = False,
) -> SLAState:
    """Read a twin, its origin included.

    Args:
        source: Path, bytes or seekable stream.
        name: How messages name it.
        coerce_metadata: As for :func:`~.safetensors_header.read_header`.

    Raises:
        TargetNotFoundError: It is absent or cannot be read.
        StructureError: A safetensors file, but not a twin; names the first fault.
        FormatError: Not a valid safetensors file.
    """
    if isinstance(source, str):
        source = Path(source)
    with opened(source, name) as data:
        header = read_header(data.read, data.size, name=data.name, coerce_metadata=coerce_metadata)
        return _to_state(data, header)


def foreign_metadata(source: Path | bytes | BinaryIO, *, name: str | None = None) -> dict[str, str]:
    """What others wrote into a twin's metadata; kept when the twin is written anew.

    Raises:
        FormatError: Not a valid safetensors file.
    """
    with opened(source, name) as data:
        header = read_header(data.read, data.size, name=data.name, coerce_metadata=True)
    return {
        key: text
        for key, text in header.metadata.items()
        if key != "format" and not key.startswith(_PREFIX)
    }


def twin_pt_sha256(source: Path | bytes | BinaryIO, *, name: str | None = None) -> str | None:
    """The sha256 of the ``.pt`` that the twin was written with; None when not recorded.

    Raises:
        FormatError: Not a valid safetensors file.
    """
    with opened(source, name) as data:
        return read_header(data.read, data.size, name=data.name).metadata.get(PT_SHA256)


def read_safetensor(source: Bytes, info: TensorInfo) -> StoredTensor:
    """Read one tensor's bytes and decode them.

    Raises:
        StructureError: A dtype that numpy cannot hold (packed F4 or F6), or over 4 GiB.
    """
    dtype = SAFETENSORS.get(info.dtype)
    if dtype is None or info.end - info.start > _MAX_TENSOR:
        raise StructureError(
            f"{source.name}: tensor {info.name!r} ({info.dtype} {list(info.shape)}) is not read",
            path=source.name,
        )
    raw = source.exactly(info.start, info.end - info.start)
    array = decode(np.frombuffer(raw, STORED_AS[dtype]).reshape(info.shape), dtype)
    array.flags.writeable = False
    return StoredTensor(array, dtype, info.shape)


def _fault(name: str, message: str) -> StructureError:
    return StructureError(
        f"{name}: {message}",
        hint=f"delete it; sla-ckpt writes it again from {STATE_FILE} when it changes that",
        path=name,
    )


def _to_state(data: Bytes, header: SafetensorsHeader) -> SLAState:
    version = header.metadata.get(_PREFIX + "version")
    if version != str(STATE_VERSION):
        shown = "no version" if version is None else f"version {version!r:.40}"
        raise _fault(data.name, f"it has {shown}; only version {STATE_VERSION} is known")
    grouped: dict[PairKey, dict[str, TensorInfo]] = {}
    for info in header.tensors.values():
        pair, _, tensor = info.name.partition("/")
        try:
            key = PairKey.parse(pair)
        except StructureError as error:
            raise _fault(data.name, error.message) from error
        grouped.setdefault(key, {})[tensor] = info
    pairs = {key: _projection(data, key, tensors) for key, tensors in sorted(grouped.items())}
    origin = {
        key.removeprefix(_ORIGIN): text
        for key, text in header.metadata.items()
        if key.startswith(_ORIGIN)
    }
    return SLAState(pairs, _settings(data.name, header.metadata), STATE_VERSION, origin)


def _projection(data: Bytes, key: PairKey, tensors: Mapping[str, TensorInfo]) -> ProjectionTensors:
    if tensors.keys() != {WEIGHT, BIAS}:
        raise _fault(data.name, f"pair {key} has {', '.join(sorted(tensors))}")
    shapes = {WEIGHT: (key.head_dim, key.head_dim), BIAS: (key.head_dim,)}
    for tensor, shape in shapes.items():
        if tensors[tensor].shape != shape:
            raise _fault(
                data.name,
                f"{key} {tensor} has shape {list(tensors[tensor].shape)}, not {list(shape)}",
            )
    weight = read_safetensor(data, tensors[WEIGHT])
    bias = read_safetensor(data, tensors[BIAS])
    return ProjectionTensors(weight.array, bias.array, weight.dtype, bias.dtype)


def _settings(name: str, metadata: Mapping[str, str]) -> SLASettings | None:
    text = metadata.get(_PREFIX + "settings", "null")
    try:
        value = json.loads(text)
        halved = has_lone_surrogate(text.encode(), value)
    except (ValueError, RecursionError) as error:
        raise _fault(name, "its settings are not JSON") from error
    if value is None:
        return None
    if not isinstance(value, dict) or halved:
        raise _fault(name, "its settings are not a JSON object")
    try:
        return SLASettings.from_mapping(value)
    except StructureError as error:
        raise _fault(name, error.message) from error


def encode_twin(
    state: SLAState, *, pt_sha256: str, extra: Mapping[str, str] | None = None
) -> bytes:
    """The twin's bytes; the same state always gives the same bytes.

    Args:
        state: The state, its origin included.
        pt_sha256: Hex digest of the ``.pt`` it stands beside.
        extra: Further metadata, as :func:`foreign_metadata` returns.

    Raises:
        ValueError: A dtype that safetensors lacks.
    """
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for key, projection in sorted(state.pairs.items()):
        for name, array, dtype in (
            (WEIGHT, projection.weight, projection.weight_dtype),
            (BIAS, projection.bias, projection.bias_dtype),
        ):
            if dtype not in TOKEN_OF:
                raise ValueError(f"{key} {name}: {dtype} cannot be written")
            tensors[f"{key}/{name}"] = (TOKEN_OF[dtype], array.shape, encode(array, dtype))
    settings = None if state.settings is None else state.settings.to_dict()
    metadata = {
        **(extra or {}),
        "format": "pt",
        _PREFIX + "version": str(state.version),
        _PREFIX + "settings": json.dumps(settings),
        PT_SHA256: pt_sha256,
        **{_ORIGIN + key: str(text) for key, text in sorted(state.origin.items())},
    }
    return encode_safetensors(tensors, metadata)


def encode_safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str]
) -> bytes:
    """Assemble a safetensors file.

    Written here rather than by the safetensors library because that one orders metadata at
    random, so that equal content would give different bytes.

    Args:
        tensors: Name -> (dtype token, shape, little-endian bytes). Sorted by dtype width,
            widest first, then name, as the reference implementation does, to keep them aligned.
        metadata: Strings.
    """
    width = {name: len(raw) // max(1, _count(shape)) for name, (_, shape, raw) in tensors.items()}
    header: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    body: list[bytes] = []
    position = 0
    for name in sorted(tensors, key=lambda name: (-width[name], name)):
        token, shape, raw = tensors[name]
        offsets = [position, position + len(raw)]
        header[name] = {"dtype": token, "shape": list(shape), "data_offsets": offsets}
        body.append(raw)
        position += len(raw)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(body)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def write_state(directory: str | Path, state: SLAState, *, twin: bool = True) -> None:
    """Write ``sla_attention.pt`` and its twin into a checkpoint.

    Both are written beside their places and read back first; see :func:`staged_state`.

    Args:
        directory: The checkpoint; must exist.
        state: What to write.
        twin: Whether to write the twin too. If not, an existing twin is removed, since it would
            describe another state.

    Raises:
        WriteError: Something could not be written, or what was read back differs; both files are
            then as they were.
    """
    with staged_state(Path(directory), state, twin=twin) as place:
        place()


@contextlib.contextmanager
def staged_state(
    directory: Path, state: SLAState, *, twin: bool = True
) -> Iterator[Callable[[], None]]:
    """Write both files beside their places and compare what reads back; yields what places them.

    Placing removes the old twin, replaces the state, then brings the new twin: at every moment the
    state is the old or the new one, and a twin that is there belongs to it.

    Raises:
        WriteError: As :func:`write_state`.
    """
    import hashlib

    data = encode_state(state)
    twin_path = directory / TWIN_FILE
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(staged_file(directory / STATE_FILE, data))]
        _compare(files[0], read_state, state)
        if twin:
            twin_data = encode_twin(state, pt_sha256=hashlib.sha256(data).hexdigest())
            files.append(stack.enter_context(staged_file(twin_path, twin_data)))
            _compare(files[1], read_twin, state)

        def place() -> None:
            with _without(twin_path, files[0]):
                files[0].place()
            for file in files[1:]:
                file.place()

        yield place


@contextlib.contextmanager
def _without(twin: Path, new_state: StagedFile) -> Iterator[None]:
    """Take the old twin away while the state is replaced; it returns if the state stays."""
    if not os.path.lexists(twin):
        yield
        return
    aside = twin.with_name(f"{TEMPORARY_PREFIX}{twin.name}{TEMPORARY_SUFFIX}")
    twin.replace(aside)
    try:
        yield
    finally:
        if new_state.placed:
            aside.unlink(missing_ok=True)
        else:
            aside.replace(twin)


def _compare(file: StagedFile, read: Callable[[Path], SLAState], state: SLAState) -> None:
    try:
        same = read(file.temporary).equals(state)
    except SlaCkptError:
        same = False
    if not same:
        raise WriteError(
            f"{file.target} reads back differently from what was written",
            hint="check the disk; the old file is untouched",
            path=str(file.target),
        )
