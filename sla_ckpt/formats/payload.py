"""What a file holds, exactly as it says it: the reader's result before any judgement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor read into memory.

    Attributes:
        array: Its values, contiguous and read-only. bfloat16 and float8, which numpy lacks, are
            held in float32, which represents each of their values exactly.
        dtype: torch's name of the dtype in the file, e.g. ``"bfloat16"``.
        shape: As in the file.
    """

    array: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"StoredTensor({self.dtype}, {list(self.shape)})"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of which only the description was read.

    Attributes:
        dtype: torch's name of the dtype.
        shape: Sizes.
        stride: In elements.
        offset: Of the first element in the storage, in elements.
        storage: Key of the storage entry (``data/<key>`` in the archive).
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: str


@dataclass(frozen=True)
class StatePayload:
    """A whole ``torch.save`` file as a plain tree.

    Attributes:
        value: dict / list / tuple / str / int / float / bool / bytes / None, with
            :class:`StoredTensor` leaves. Acyclic, and small enough to walk.
        notes: What is unusual but harmless: ``"re-zipped with deflate"``, ``"64 trailing bytes"``.
        sha256: Hex digest of the whole file.
        size: Its bytes.
    """

    value: object
    notes: tuple[str, ...]
    sha256: str
    size: int
