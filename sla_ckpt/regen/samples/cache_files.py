"""One file of SimpleTuner's caches, read safely.

A VAE cache file is a tensor without batch dimension, or a dict with ``latents``; a text cache
file is a dict of tensors. Either may be gzip under the same ``.pt`` name (magic 1f 8b).
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.errors import FormatError

#: A 1080p video's latents or a long prompt's embeddings stay far below.
MAX_BYTES = 1 << 30
GZIP_MAGIC = b"\x1f\x8b"
#: ``<md5 of the caption>-<model family>.pt``
TEXT_NAME = re.compile(r"([0-9a-f]{32})-([A-Za-z0-9_.-]+)\.pt")

#: What zipfile and torch.load raise on damaged bytes (found by mutating real files).
_LOAD_ERRORS = (
    AssertionError,
    MemoryError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ImportError,
    zipfile.BadZipFile,
)


def read_cache_file(path: Path) -> Any:
    """What a cache file holds; nothing in it is executed.

    Raises:
        FormatError: Unreadable, too large when unpacked, or not a plain tensor file.
    """
    data = _read_bounded(path)
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MAX_BYTES:
                raise _unreadable(path, f"{unpacked:,} bytes when unpacked")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        reason = str(error).splitlines()
        raise _unreadable(path, reason[0] if reason else type(error).__name__) from error


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
        if data[:2] == GZIP_MAGIC:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, "damaged gzip") from error
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    if len(data) > MAX_BYTES:
        raise _unreadable(path, f"more than {MAX_BYTES:,} bytes when unpacked")
    return data


def _unreadable(path: Path, what: str) -> FormatError:
    return FormatError(f"{path} is not a readable cache file ({what[:120]})", path=str(path))


def read_latents(path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents of a VAE cache file, and the other tensors stored with them.

    Raises:
        FormatError: No latents in it, or they hold NaN or Inf.
    """
    value = read_cache_file(path)
    beside: dict[str, Tensor] = {}
    if isinstance(value, Mapping):
        beside = {k: v for k, v in tensors_in(value).items() if k != "latents"}
        value = value.get("latents")
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        raise _unreadable(path, "it holds no latents")
    _check_finite(path, "latents", value)
    return value.detach(), beside


def read_text_embedding(path: Path) -> dict[str, Tensor]:
    """Tensors of a text cache file by name.

    Raises:
        FormatError: No tensors in it, or they hold NaN or Inf.
    """
    value = read_cache_file(path)
    if isinstance(value, Tensor):
        value = {"prompt_embeds": value}
    found = tensors_in(value) if isinstance(value, Mapping) else {}
    if not found:
        raise _unreadable(path, "it holds no text embedding")
    for name, tensor in found.items():
        _check_finite(path, name, tensor)
    return found


def tensors_in(value: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The entries that are tensors."""
    return {str(k): v.detach() for k, v in value.items() if isinstance(v, Tensor)}


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise FormatError(
            f"{path}: {name} hold NaN or Inf",
            hint="delete the file and let the trainer cache it again",
            path=str(path),
        )
