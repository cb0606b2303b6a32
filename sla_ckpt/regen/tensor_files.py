"""Where the tensors of safetensors files lie, where they go, and reading their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.safetensors_header import read_header

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class FileTensor:
    """Where one tensor lies: ``size`` bytes at absolute offset ``start`` of ``path``."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Placement:
    """Where a tensor goes, and as what.

    Attributes:
        device: Its device.
        dtype: Of floating-point tensors; None keeps the file's.
        pinned: In page-locked host memory (``device`` is the CPU).
    """

    device: torch.device
    dtype: torch.dtype | None
    pinned: bool = False

    def result_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype that a tensor stored as ``stored`` gets."""
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored


def read_table(path: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file by name, from its header alone.

    Raises:
        FormatError: Not a safetensors file, truncated, or it holds a dtype torch does not have.
    """
    return read_table_and_metadata(path)[0]


def read_table_and_metadata(path: Path) -> tuple[dict[str, FileTensor], Mapping[str, str]]:
    """As :func:`read_table`, and the ``__metadata__`` strings."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:

            def read(start: int, length: int) -> bytes:
                handle.seek(start)
                return handle.read(length)

            header = read_header(read, size, name=str(path))
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    table: dict[str, FileTensor] = {}
    for name, info in header.tensors.items():
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise FormatError(
                f"{path}: tensor {name!r} has dtype {info.dtype}, which cannot be loaded",
                path=str(path),
            )
        table[name] = FileTensor(name, path, dtype, info.shape, info.start, info.end - info.start)
    return table, header.metadata


def fill(path: Path, view: memoryview, offset: int) -> None:
    """Read exactly ``len(view)`` bytes at ``offset``."""
    done = 0
    try:
        with path.open("rb", buffering=0) as handle:
            handle.seek(offset)
            while done < len(view):
                count = handle.readinto(view[done:])
                if not count:
                    raise FormatError(
                        f"{path} ended at byte {offset + done:,} while it was read",
                        kind="truncated",
                        hint="is another process writing to it?",
                        path=str(path),
                    )
                done += count
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error


def bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's memory as a flat uint8 tensor."""
    return tensor.reshape(-1).view(torch.uint8)
