"""Named tensors of a large file, listed without being read.

Only what is asked for leaves the disk: of a 30 GB ``.pth`` that is its ``data.pkl`` and the
``proj_l`` storages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sla_ckpt.errors import FormatError, TargetNotFoundError
from sla_ckpt.formats.dtypes import SAFETENSORS
from sla_ckpt.formats.payload import StoredTensor, TensorSpec
from sla_ckpt.formats.pickle_machine import PickleLimits
from sla_ckpt.formats.reading import Bytes, opened
from sla_ckpt.formats.safetensors_header import TensorInfo, read_header
from sla_ckpt.formats.sniff import HEAD_BYTES, sniff, wrong_kind
from sla_ckpt.formats.torch_zip import TorchArchive, open_archive
from sla_ckpt.formats.tree import map_tree
from sla_ckpt.formats.twin import read_safetensor

_LIMITS = PickleLimits(objects=4_000_000, storages=1_000_000)
_PICKLE_BYTES = 64 << 20
_INDEX_SUFFIX = ".safetensors.index.json"
_INDEX_BYTES = 64 << 20
_BIN_INDEX_SUFFIX = ".bin.index.json"


@dataclass(frozen=True)
class TensorHandle:
    """A tensor that can be read.

    Attributes:
        name: Its full name; nested dicts are joined by dots.
        dtype: torch name, or the safetensors token where torch has no such type.
        shape: Sizes.
        read: Reads it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], StoredTensor]


@dataclass(frozen=True)
class TensorBag:
    """All tensors of one file or of a sharded set.

    Attributes:
        label: How messages name it.
        container: ``"torch zip"``, ``"safetensors"``, ``"sharded safetensors"``, …
        tensors: By name.
        metadata: safetensors metadata, empty otherwise.
        values: Other top-level values of a pickle (``"version"``, settings, …).
    """

    label: str
    container: str
    tensors: Mapping[str, TensorHandle]
    metadata: Mapping[str, str]
    values: Mapping[str, object]


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorBag]:
    """List the tensors of a ``.pth``, a safetensors file, an index, or a folder of these.

    The tensors can be read only inside the ``with`` block.

    Raises:
        TargetNotFoundError: It is absent or cannot be read.
        FormatError: It is none of these, damaged, or a legacy torch file (kind
            ``"legacy-torch"``), which needs torch to be read.
        UnsafePickleError: A pickle asks for a global outside the allow-list.
    """
    with ExitStack() as stack:
        if path.is_dir():
            yield _open_folder(path, stack)
        elif path.name.endswith((_INDEX_SUFFIX, _BIN_INDEX_SUFFIX)):
            yield _open_index(path, stack)
        else:
            yield _open_file(path, stack)


def _open_file(path: Path, stack: ExitStack) -> TensorBag:
    source = stack.enter_context(opened(path))
    head = source.read(0, HEAD_BYTES)
    kind = sniff(head, source.size)
    if kind == "safetensors":
        header = read_header(source.read, source.size, name=source.name, coerce_metadata=True)
        handles = {name: _safetensors_handle(source, info) for name, info in header.tensors.items()}
        return TensorBag(source.name, "safetensors", handles, header.metadata, {})
    if kind == "zip":
        archive = open_archive(source, limits=_LIMITS, pickle_bytes=_PICKLE_BYTES)
        value = map_tree(archive.value, lambda leaf: leaf, name=source.name)
        tensors: dict[str, TensorHandle] = {}
        values: dict[str, object] = {}
        _flatten(value, "", archive, tensors, values)
        return TensorBag(source.name, "torch zip", tensors, {}, values)
    raise wrong_kind(
        kind, head, source.size, name=source.name, wanted="a torch.save archive or safetensors"
    )


def _safetensors_handle(source: Bytes, info: TensorInfo) -> TensorHandle:
    dtype = SAFETENSORS.get(info.dtype, info.dtype)
    return TensorHandle(info.name, dtype, info.shape, lambda: read_safetensor(source, info))


def _torch_handle(name: str, archive: TorchArchive, spec: TensorSpec) -> TensorHandle:
    return TensorHandle(name, spec.dtype, spec.shape, lambda: archive.read_tensor(spec))


def _flatten(
    value: object,
    prefix: str,
    archive: TorchArchive,
    tensors: dict[str, TensorHandle],
    values: dict[str, object],
) -> None:
    """Collect tensors under dotted names, and the scalars of the pickle."""
    if isinstance(value, TensorSpec):
        if prefix in tensors:
            raise FormatError(
                f"{archive.index.source.name}: two tensors are named {prefix!r:.120}",
                kind="ambiguous",
                path=archive.index.source.name,
            )
        tensors[prefix] = _torch_handle(prefix, archive, value)
    elif isinstance(value, dict):
        for key, item in value.items():
            name = key if isinstance(key, str) else repr(key)[:80]
            _flatten(item, f"{prefix}.{name}" if prefix else name, archive, tensors, values)
    elif not isinstance(value, list | tuple):
        values[prefix] = value


def _open_folder(folder: Path, stack: ExitStack) -> TensorBag:
    """The index in a folder if there is one, else its only weight file or all its shards."""
    try:
        names = sorted(item.name for item in folder.iterdir() if item.is_file())
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot list {folder}: {error.strerror or error}", path=str(folder)
        ) from error
    indexes = [name for name in names if name.endswith((_INDEX_SUFFIX, _BIN_INDEX_SUFFIX))]
    if len(indexes) > 1:
        raise FormatError(
            f"{folder} has several indexes: {', '.join(indexes[:4])}",
            kind="ambiguous",
            hint="name the one that is meant with --from",
            path=str(folder),
        )
    if indexes:
        return _open_index(folder / indexes[0], stack)
    weights = [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".bin"))]
    if not weights:
        raise FormatError(
            f"{folder} has no weight files", kind="unknown", hint="name the file with --from"
        )
    bags = [_open_file(folder / name, stack) for name in weights]
    return _merged(str(folder), bags)


def _open_index(path: Path, stack: ExitStack) -> TensorBag:
    weight_map = _weight_map(path)
    bags: dict[str, TensorBag] = {}
    for shard in sorted(set(weight_map.values())):
        bags[shard] = _open_file(path.with_name(shard), stack)
    for name, shard in weight_map.items():
        if name not in bags[shard].tensors:
            raise FormatError(
                f"{path.name} is stale: {shard} has no tensor {name!r:.120}",
                kind="index",
                hint="save the model again with save_pretrained",
                path=str(path),
            )
    return _merged(str(path), list(bags.values()))


def _weight_map(path: Path) -> dict[str, str]:
    with opened(path) as source:
        if source.size > _INDEX_BYTES:
            raise FormatError(f"{path} is too large for an index", kind="index", path=str(path))
        raw = source.exactly(0, source.size)
    try:
        mapping = json.loads(raw)["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FormatError(f"{path} has no weight_map", kind="index", path=str(path)) from error
    if not isinstance(mapping, dict) or not mapping:
        raise FormatError(f"{path} has no weight_map", kind="index", path=str(path))
    for name, shard in mapping.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise FormatError(
                f"{path}: {name!r:.80} is in {shard!r:.80}, outside its folder",
                kind="index",
                path=str(path),
            )
    return mapping


def _merged(label: str, bags: list[TensorBag]) -> TensorBag:
    if len(bags) == 1:
        return replace(bags[0], label=label)
    tensors: dict[str, TensorHandle] = {}
    metadata: dict[str, str] = {}
    for bag in bags:
        for name, handle in bag.tensors.items():
            if name in tensors:
                raise FormatError(
                    f"{label}: tensor {name!r:.120} is in two files",
                    kind="ambiguous",
                    hint="name the file that is meant with --from",
                    path=label,
                )
            tensors[name] = handle
        metadata.update(bag.metadata)
    containers = sorted({bag.container for bag in bags})
    return TensorBag(label, f"sharded {' and '.join(containers)}", tensors, metadata, {})
