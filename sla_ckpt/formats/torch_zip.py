"""Read what ``torch.save`` writes, without torch and without executing its pickle.

Layout of the archive, all under one folder (``sla_attention/``, or ``archive/`` when it was saved
to a stream): ``data.pkl``, ``data/<key>`` per storage, ``byteorder``, ``version``, and since torch
2.7 ``.format_version``, ``.storage_alignment``, ``.data/serialization_id``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.dtypes import STORED_AS, decode, decoded_size, item_size
from sla_ckpt.formats.payload import StatePayload, StoredTensor, TensorSpec
from sla_ckpt.formats.pickle_machine import PickleLimits, Unpickled, interpret
from sla_ckpt.formats.pickle_values import StorageRef
from sla_ckpt.formats.reading import Bytes, opened
from sla_ckpt.formats.sniff import HEAD_BYTES, sniff, wrong_kind
from sla_ckpt.formats.tree import map_tree
from sla_ckpt.formats.zip_index import ZipIndex, index_zip

#: A whole state may unfold to this, or to ten times the file, whichever is more.
_FLOOR = 16 << 20
_UNFOLD = 10
#: Of one ``data.pkl``: a state's has under 1 KB per pair.
_STATE_PICKLE = 4 << 20
_SMALL_ENTRY = 256
_TORCH_VERSIONS = range(1, 11)
_VERSIONS = (".data/version", "version")
_NUMBERS = (".format_version", ".storage_alignment")
_CONSTANTS = ("byteorder", ".data/serialization_id", *_NUMBERS)


@dataclass(frozen=True)
class TorchArchive:
    """An opened archive whose pickle was interpreted and whose tensors were not read.

    Attributes:
        index: Its entries.
        prefix: The folder in the archive that holds them.
        value: The tree, with :class:`~.payload.TensorSpec` leaves.
        storages: Every storage, by key.
        notes: What is unusual but harmless.
    """

    index: ZipIndex
    prefix: str
    value: object
    storages: Mapping[str, StorageRef]
    notes: tuple[str, ...]

    def read_storage(self, key: str) -> bytes:
        """The bytes of one storage, CRC checked.

        Raises:
            FormatError: They are damaged.
        """
        entry = f"{self.prefix}/data/{key}"
        return self.index.read(entry, limit=self.index.entries[entry].size)

    def read_tensor(self, spec: TensorSpec) -> StoredTensor:
        """Read one tensor (and no other storage than its own)."""
        return _window(self.read_storage(spec.storage), spec)


def read_torch_zip(data: bytes | BinaryIO | Path, *, name: str | None = None) -> StatePayload:
    """Read a small ``torch.save`` file whole.

    Args:
        data: Its bytes, a seekable stream, or a path.
        name: How messages name it.

    Returns:
        The payload; every storage it uses was CRC checked.

    Raises:
        UnsafePickleError: Its pickle asks for a global that no state needs.
        FormatError: It is something else, damaged, ambiguous, or unfolds to more than ten times
            its size (and 16 MiB).
    """
    with opened(data, name) as source:
        limits = PickleLimits()
        archive = open_archive(source, limits=limits, pickle_bytes=_STATE_PICKLE)
        budget = max(_FLOOR, _UNFOLD * source.size)
        value = map_tree(archive.value, _loader(archive, budget), name=source.name)
        notes = archive.notes
        if any(archive.index.entries[_entry(archive, key)].deflated for key in archive.storages):
            notes = ("re-zipped with deflate", *notes)
        return StatePayload(value, notes, source.sha256(), source.size)


def open_archive(source: Bytes, *, limits: PickleLimits, pickle_bytes: int) -> TorchArchive:
    """Index the archive, interpret its pickle and check every storage's size; reads no tensor.

    Args:
        source: The file.
        limits: Bounds on the pickle's objects.
        pickle_bytes: Largest ``data.pkl`` to read.

    Raises:
        UnsafePickleError: As :func:`read_torch_zip`.
        FormatError: As :func:`read_torch_zip`.
    """
    head = source.read(0, HEAD_BYTES)
    kind = sniff(head, source.size)
    if kind != "zip":
        raise wrong_kind(kind, head, source.size, name=source.name, wanted="a torch.save archive")
    index = index_zip(source)
    prefix = _prefix(index)
    _check_constants(index, prefix)
    pickle_name = f"{prefix}/data.pkl"
    _check_pickle_ratio(index, pickle_name, pickle_bytes)
    unpickled = interpret(
        index.read(pickle_name, limit=pickle_bytes), name=source.name, limits=limits
    )
    archive = TorchArchive(
        index, prefix, unpickled.value, unpickled.storages, _notes(index, prefix, unpickled)
    )
    for key, storage in unpickled.storages.items():
        _check_storage(archive, key, storage)
    return archive


def _entry(archive: TorchArchive, key: str) -> str:
    return f"{archive.prefix}/data/{key}"


def _fault(source: Bytes, message: str, kind: str, hint: str | None = None) -> FormatError:
    return FormatError(
        f"{source.name}: {message}",
        kind=kind,
        hint=hint or "take the state of an earlier checkpoint, or run: sla-ckpt regen",
        path=source.name,
    )


def _prefix(index: ZipIndex) -> str:
    """The folder torch would look in: the first entry's."""
    source = index.source
    if not index.entries:
        raise _fault(source, "the zip archive is empty", "zip")
    pickles = [name for name in index.entries if name.casefold().split("/")[-1] == "data.pkl"]
    prefix, slash, _ = next(iter(index.entries)).partition("/")
    if not pickles:
        raise _fault(source, "a zip archive without data.pkl, not written by torch.save", "zip")
    if len(pickles) > 1:
        raise _fault(
            source,
            f"{len(pickles)} entries are named data.pkl: {', '.join(pickles[:3])}",
            "ambiguous-zip",
        )
    if not slash or pickles[0] != f"{prefix}/data.pkl":
        raise _fault(
            source,
            f"{pickles[0]!r} is not where torch looks for it, in {prefix!r}",
            "ambiguous-zip",
        )
    # torch refuses the whole archive when one entry lies elsewhere.
    stray = next((name for name in index.entries if not name.startswith(f"{prefix}/")), None)
    if stray is not None:
        raise _fault(source, f"entry {stray!r} lies outside the folder {prefix!r}", "ambiguous-zip")
    if f"{prefix}/constants.pkl" in index.entries:
        raise _fault(
            source,
            "a TorchScript archive, not a state",
            "torchscript",
            "find the file that the trainer wrote, or run: sla-ckpt regen",
        )
    return prefix


def _check_constants(index: ZipIndex, prefix: str) -> None:
    """The small entries that torch reads beside the pickle, and what they may say."""
    source = index.source
    constants = {
        name: index.read(f"{prefix}/{name}", limit=_SMALL_ENTRY)
        for name in (*_VERSIONS, *_CONSTANTS)
        if f"{prefix}/{name}" in index.entries
    }
    if constants.get("byteorder", b"little") != b"little":
        raise _fault(
            source,
            f"its byte order is {constants['byteorder'][:16]!r}, only little is read",
            "byteorder",
            "save it again on a little-endian machine",
        )
    versions = [constants[name].strip() for name in _VERSIONS if name in constants]
    if not versions:
        raise _fault(source, "the archive has no version entry, as torch needs", "zip")
    for version in versions:
        if not version.isdigit() or len(version) > 4 or int(version) not in _TORCH_VERSIONS:
            raise _fault(source, f"archive version {version[:16]!r} is not known", "zip")
    # torch takes these for integers.
    numbers = [constants[name] for name in _NUMBERS if name in constants]
    if not all(value.isdigit() and len(value) < 10 for value in numbers) or not all(
        value.strip().isalnum() for value in constants.values()
    ):
        raise _fault(source, "the archive has a malformed entry beside its pickle", "zip")


def _check_pickle_ratio(index: ZipIndex, name: str, limit: int) -> None:
    entry = index.entries[name]
    if entry.size > max(1 << 16, 100 * entry.compressed) or entry.size > limit:
        raise _fault(
            index.source,
            f"{name} unfolds from {entry.compressed:,} to {entry.size:,} bytes",
            "bomb",
        )


def _notes(index: ZipIndex, prefix: str, unpickled: Unpickled) -> tuple[str, ...]:
    notes = []
    if prefix == "archive":
        notes.append("archive/ prefix: it was saved to a stream")
    if index.trailing:
        notes.append(f"{index.trailing} trailing bytes")
    if index.comment:
        notes.append(f"a zip comment of {index.comment} bytes")
    if index.unlisted:
        notes.append(f"{index.unlisted:,} bytes that no zip entry owns")
    return (*notes, *unpickled.notes)


def _check_storage(archive: TorchArchive, key: str, storage: StorageRef) -> None:
    entry = archive.index.entries.get(_entry(archive, key))
    source = archive.index.source
    if entry is None:
        raise _fault(source, f"storage data/{key} is not in the archive", "missing-storage")
    wanted = storage.count * (item_size(storage.dtype) if storage.dtype else 1)
    if entry.size != wanted:
        raise _fault(
            source,
            f"storage data/{key} has {entry.size:,} bytes, its tensors need {wanted:,}",
            "storage-size",
        )


def _loader(archive: TorchArchive, budget: int) -> Callable[[object], object]:
    """A function that replaces a description by its tensor, within the memory budget."""
    raw: dict[str, bytes] = {}
    loaded: dict[TensorSpec, StoredTensor] = {}
    left = budget

    def spend(amount: int) -> None:
        nonlocal left
        left -= amount
        if left < 0:
            raise _fault(
                archive.index.source, f"its tensors unfold to more than {budget:,} bytes", "bomb"
            )

    def load(leaf: object) -> object:
        if not isinstance(leaf, TensorSpec):
            return leaf
        if leaf not in loaded:
            if leaf.storage not in raw:
                spend(archive.index.entries[_entry(archive, leaf.storage)].size)
                raw[leaf.storage] = archive.read_storage(leaf.storage)
            spend(math.prod(leaf.shape) * decoded_size(leaf.dtype))
            loaded[leaf] = _window(raw[leaf.storage], leaf)
        return loaded[leaf]

    return load


def _window(raw: bytes, spec: TensorSpec) -> StoredTensor:
    stored = np.dtype(STORED_AS[spec.dtype])
    if 0 in spec.shape:
        bits: NDArray[Any] = np.empty(spec.shape, stored)
    else:
        flat = np.frombuffer(raw, stored, count=len(raw) // stored.itemsize)
        bits = np.lib.stride_tricks.as_strided(
            flat[spec.offset :],
            spec.shape,
            # The step of a dimension of length 1 means nothing and may be of any size.
            [
                step * stored.itemsize if length > 1 else 0
                for length, step in zip(spec.shape, spec.stride, strict=True)
            ],
            writeable=False,
        )
    array = decode(bits, spec.dtype)
    array.flags.writeable = False
    return StoredTensor(array, spec.dtype, spec.shape)
