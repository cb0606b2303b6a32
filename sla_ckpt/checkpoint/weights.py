"""Weight files of one folder: single files, shards and their indexes, by headers only."""

from __future__ import annotations

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
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)$")
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

    def missing_numbered_shards(self) -> Mapping[str, list[str]]:
        """Gaps in ``name-00001-of-00003`` series, by series; for folders without an index."""
        series: dict[tuple[str, int, str], set[int]] = {}
        for path in self.files:
            folder, _, name = path.rpartition("/")
            match = _SHARD.match(name)
            if match:
                stem = f"{folder}/{match['stem']}" if folder else match["stem"]
                key = (stem, int(match["count"]), match[4])
                series.setdefault(key, set()).add(int(match["number"]))
        gaps: dict[str, list[str]] = {}
        for (stem, count, suffix), numbers in series.items():
            absent = sorted(set(range(1, min(count, 99_999) + 1)) - numbers)
            if absent:
                gaps[stem] = [f"{stem}-{n:05d}-of-{count:05d}.{suffix}" for n in absent]
        return gaps


def collect_weights(source: Source, folder: str) -> WeightSet:
    """List the weight files and indexes directly inside ``folder`` (``""`` is the root)."""
    files: list[str] = []
    indexes: list[WeightIndex] = []
    faults: dict[str, str] = {}
    for path in _children(source, folder):
        if path.endswith(INDEX_SUFFIXES):
            try:
                indexes.append(_read_index(source, folder, path))
            except SlaCkptError as error:
                faults[path] = error.message
        elif path.endswith(WEIGHT_SUFFIXES) and not is_sidecar(path):
            files.append(path)
    return WeightSet(tuple(files), tuple(indexes), faults)


def is_sidecar(path: str) -> bool:
    """Files with a weight suffix that are not weights of the model."""
    name = path.rpartition("/")[2]
    return name.startswith(("sla_attention.", "optimizer", "scheduler", "scaler", "training_args"))


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
                elements[token] += info.end - info.start
    return elements.most_common(1)[0][0] if elements else None
