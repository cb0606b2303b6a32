"""Weight files of one folder: single files, shards and their indexes, by headers only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sla_ckpt.checkpoint.jsonio import read_json_object
from sla_ckpt.checkpoint.source import Source
from sla_ckpt.errors import FormatError, SlaCkptError

if TYPE_CHECKING:
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
#: How the weight files that diffusers' save_pretrained writes begin.
STEM = "diffusion_pytorch_model"
_INDEX = re.compile(
    r"^(?P<stem>.+)\.(?P<suffix>safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json$"
)
#: diffusers puts a variant before the shard's number, older versions behind it.
_SHARD = re.compile(
    r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<variant>\.[^.]+)?"
    r"\.(?P<suffix>safetensors|bin)$"
)
#: safetensors dtype -> the file's dtype token for what can meet SLA.
_COMPUTE_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "float64"}


@dataclass(frozen=True)
class WeightIndex:
    """A shard index: which file holds which tensor.

    Attributes:
        path: The index file.
        weight_map: Tensor name -> shard path (relative to the source, not to the index).
    """

    path: str
    weight_map: Mapping[str, str]

    @property
    def series(self) -> str:
        """As :func:`series_of` of the shards that it is for."""
        match = _INDEX.match(self.path)
        return match["stem"] + (match["variant"] or "") if match else self.path

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.weight_map.values())))


@dataclass(frozen=True)
class WeightSet:
    """The weights of one folder.

    Attributes:
        files: Weight files that exist, as source paths.
        indexes: Readable indexes.
        faults: Path -> what is wrong with an index that is not readable.
    """

    files: tuple[str, ...]
    indexes: tuple[WeightIndex, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def safetensors(self) -> tuple[str, ...]:
        return tuple(path for path in self.files if path.endswith(".safetensors"))

    @property
    def plain_files(self) -> tuple[str, ...]:
        """The files without a variant such as ``fp16`` in their name; all if none is without."""
        plain = tuple(path for path in self.files if "." not in _name(series_of(path)))
        return plain or self.files

    def missing_numbered_shards(self) -> Mapping[str, list[str]]:
        """Gaps in ``name-00001-of-00003`` series that no index describes, by series."""
        described = {index.series for index in self.indexes}
        numbers: dict[tuple[str, str, int, str, str], set[int]] = {}
        for path in self.files:
            match = _SHARD.match(path)
            if match and series_of(path) not in described:
                key = (series_of(path), match["stem"], int(match["count"]),
                       match["variant"] or "", match["suffix"])  # fmt: skip
                numbers.setdefault(key, set()).add(int(match["number"]))
        gaps: dict[str, list[str]] = {}
        for (series, stem, count, variant, suffix), there in numbers.items():
            absent = sorted(set(range(1, min(count, 99_999) + 1)) - there)
            if absent:
                gaps[series] = [f"{stem}-{n:05d}-of-{count:05d}{variant}.{suffix}" for n in absent]
        return gaps


def series_of(path: str) -> str:
    """What a weight file shares with its other shards and its index, the variant included.

    ``unet/model.fp16-00001-of-00002.safetensors`` -> ``unet/model.fp16``.
    """
    shard = _SHARD.match(path)
    if shard:
        return shard["stem"] + (shard["variant"] or "")
    for suffix in WEIGHT_SUFFIXES:
        path = path.removesuffix(suffix)
    return path


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def collect_weights(source: Source, folder: str) -> WeightSet:
    """List the weight files and indexes directly inside ``folder`` (``""`` is the root)."""
    files: list[str] = []
    indexes: list[WeightIndex] = []
    faults: dict[str, str] = {}
    for path in _children(source, folder):
        if _INDEX.match(path):
            try:
                indexes.append(_read_index(source, folder, path))
            except SlaCkptError as error:
                faults[path] = error.message
        elif path.endswith(WEIGHT_SUFFIXES) and not is_sidecar(path):
            files.append(path)
    return WeightSet(tuple(files), tuple(indexes), faults)


def is_sidecar(path: str) -> bool:
    """Files with a weight suffix that are not weights of the model."""
    return _name(path).startswith(
        ("sla_attention.", "optimizer", "scheduler", "scaler", "training_args")
    )


def _children(source: Source, folder: str) -> Iterator[str]:
    prefix = f"{folder}/" if folder else ""
    for path in source.files():
        if path.startswith(prefix) and "/" not in path[len(prefix) :]:
            yield path


def _read_index(source: Source, folder: str, path: str) -> WeightIndex:
    mapping: Any = read_json_object(source, path).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
        raise FormatError(f"{path} has no weight_map of tensor to file", path=path)
    unsafe = sorted({v for v in mapping.values() if "/" in v or "\\" in v or v in ("", "..")})
    if unsafe:
        raise FormatError(f"{path} names a shard outside its folder: {unsafe[0]!r}", path=path)
    prefix = f"{folder}/" if folder else ""
    return WeightIndex(path, {name: prefix + file for name, file in mapping.items()})


def read_header_of(source: Source, path: str) -> SafetensorsHeader:
    """The safetensors header of one file of a source, by ranged reads.

    Raises:
        FormatError: Truncated, or not a safetensors file.
    """
    from sla_ckpt.formats.safetensors_header import read_header

    return read_header(
        lambda start, length: source.read(path, start, length),
        source.files()[path],
        name=path,
    )


def dominant_dtype(headers: Mapping[str, SafetensorsHeader]) -> str | None:
    """The dtype token that most matrix weights have, by element count.

    float8 and integer weights (quantised files) say nothing about the compute dtype and are left
    out, so are vectors, which many recipes keep in float32.
    """
    elements: Counter[str] = Counter()
    for header in headers.values():
        for info in header.tensors.values():
            token = _COMPUTE_DTYPES.get(info.dtype)
            if token and len(info.shape) >= 2:
                elements[token] += math.prod(info.shape)
    return elements.most_common(1)[0][0] if elements else None
