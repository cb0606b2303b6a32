"""The SLA state as plain, frozen data: settings, pairs and projections. No torch.

Source: the file ``sla_attention.pt`` version 1, as SimpleTuner writes it (see
docs/file-format.md). Arrays are numpy; bfloat16 has no numpy type and is held as float32, which
represents every bfloat16 value exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sla_ckpt.errors import StructureError, UsageError

STATE_FILE = "sla_attention.pt"
TWIN_FILE = "sla_attention.safetensors"
STATE_VERSION = 1
WEIGHT = "proj_l.weight"
BIAS = "proj_l.bias"

FEATURE_MAPS = ("softmax", "elu", "relu")
SLA_VARIANTS = ("main", "sla-1")

#: torch dtype name -> token used in keys; every other dtype is its torch name.
DTYPE_TOKENS: Mapping[str, str] = MappingProxyType(
    {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
)
#: What people also write. Only the tokens above (and torch names without one) are valid in a file.
_DTYPE_ALIASES = {"half": "fp16", "float": "fp32", "f16": "fp16", "f32": "fp32"}
_OTHER_DTYPES = (
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
)
KNOWN_DTYPE_TOKENS = (*DTYPE_TOKENS.values(), *_OTHER_DTYPES)
MAX_HEAD_DIM = 65536


def normalise_dtype(text: str) -> str:
    """Turn any common spelling of a dtype into the file's token (``bfloat16`` -> ``bf16``).

    Raises:
        UsageError: No dtype has this name.
    """
    name = text.strip().lower().removeprefix("torch.")
    token = DTYPE_TOKENS.get(name) or _DTYPE_ALIASES.get(name) or name
    if token not in KNOWN_DTYPE_TOKENS:
        raise UsageError(
            f"unknown dtype {text!r}", hint=f"use one of {', '.join(DTYPE_TOKENS.values())}"
        )
    return token


@dataclass(frozen=True, order=True)
class PairKey:
    """One key of the state: head_dim and the dtype of the queries that met the module."""

    head_dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.head_dim}:{self.dtype}"

    @classmethod
    def parse(cls, text: object) -> PairKey:
        """Read ``"128:bf16"`` exactly as SimpleTuner does.

        Raises:
            StructureError: Not a string of that form, or a dtype token that SimpleTuner never
                writes (``"128:bfloat16"``).
        """
        if not isinstance(text, str):
            raise StructureError(
                f"key {text!r} is {type(text).__name__}, not a string <head_dim>:<dtype>"
            )
        head, separator, token = text.partition(":")
        # int() would also take "١٢٨", " 128" and "1_28", which no writer makes.
        if not separator or not head.isascii() or not head.isdigit() or len(head) > 6:
            raise StructureError(f"key {text!r} is not <head_dim>:<dtype>")
        head_dim = int(head)
        if not 1 <= head_dim <= MAX_HEAD_DIM:
            raise StructureError(f"key {text!r}: head_dim {head_dim} is out of range")
        if token not in KNOWN_DTYPE_TOKENS:
            raise StructureError(f"key {text!r}: {token!r} is not a dtype token such as bf16")
        return cls(head_dim, token)

    @classmethod
    def parse_lenient(cls, text: str) -> PairKey:
        """Read what a person types: ``128:bfloat16``, ``128:torch.float16``.

        Raises:
            UsageError: Not of that form.
        """
        head, _, dtype = text.strip().partition(":")
        if not head.isascii() or not head.isdigit() or not 1 <= int(head[:7]) <= MAX_HEAD_DIM:
            raise UsageError(f"{text!r} is not a pair", hint="write head_dim:dtype, as 128:bf16")
        return cls(int(head), normalise_dtype(dtype))


@dataclass(frozen=True)
class SLASettings:
    """The settings SLA ran with; defaults are SimpleTuner's.

    Attributes:
        topk: Share of key blocks each query block keeps, in (0, 1].
        feature_map: Feature map of the linear branch: ``softmax``, ``elu`` or ``relu``.
        blkq: Query block length in tokens, 64 or 128.
        blkk: Key block length in tokens, 64.
        tie_feature_map_qk: Same feature map for queries and keys.
    """

    topk: float = 0.2
    feature_map: str = "softmax"
    blkq: int = 64
    blkk: int = 64
    tie_feature_map_qk: bool = True

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SLASettings:
        """Build settings from a dict; missing entries take the defaults.

        Integral floats are taken for block sizes, and ints for topk.

        Raises:
            StructureError: An entry has the wrong type. Values out of range are left for the
                rules SLA102–SLA104 to report.
        """
        values: dict[str, Any] = {}
        for name in cls.names():
            if name not in mapping or (name == "tie_feature_map_qk" and mapping[name] is None):
                continue
            values[name] = _coerce_setting(name, mapping[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _coerce_setting(name: str, value: Any) -> Any:
    if name == "topk":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif name in ("blkq", "blkk"):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif name == "feature_map":
        if isinstance(value, str):
            return value
    elif isinstance(value, bool):
        return value
    raise StructureError(f"setting {name} is {value!r} ({type(value).__name__})")


@dataclass(frozen=True, eq=False)
class ProjectionTensors:
    """``proj_l`` of one pair: y = x Wᵀ + b on each head's linear-attention output.

    Attributes:
        weight: [head_dim, head_dim]. float32 unless the file held another dtype.
        bias: [head_dim].
        weight_dtype: torch name of the dtype in the file, e.g. ``"float32"``, ``"bfloat16"``.
        bias_dtype: Likewise.
    """

    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_dtype: str = "float32"
    bias_dtype: str = "float32"

    @classmethod
    def zeros(cls, head_dim: int) -> ProjectionTensors:
        """The untrained projection: what a trainer starts from."""
        return cls(np.zeros((head_dim, head_dim), np.float32), np.zeros(head_dim, np.float32))

    @property
    def is_zero(self) -> bool:
        # Counted, since numpy's any() warns of NaN of the signalling kind.
        return not np.count_nonzero(self.weight) and not np.count_nonzero(self.bias)

    def equals(self, other: ProjectionTensors) -> bool:
        """Bitwise the same values, shapes and stored dtypes (NaN equals NaN)."""
        return (
            self.weight_dtype == other.weight_dtype
            and self.bias_dtype == other.bias_dtype
            and _same_bits(self.weight, other.weight)
            and _same_bits(self.bias, other.bias)
        )

    def as_float32(self) -> ProjectionTensors:
        """The same projection in float32 (exact for bfloat16 and float16)."""
        return ProjectionTensors(
            np.ascontiguousarray(self.weight, np.float32),
            np.ascontiguousarray(self.bias, np.float32),
        )


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


@dataclass(frozen=True, eq=False)
class SLAState:
    """A whole, well-formed state: what ``sla_attention.pt`` means.

    Attributes:
        pairs: Projections by pair. One projection is shared by all layers of that pair.
        settings: What SLA ran with; None when the file says None.
        version: File format version, 1.
        origin: Where it came from (tool, method, steps, seed, kernel, SLA variant, base model,
            data, …), as strings; from the twin's metadata, empty when unknown.
    """

    pairs: Mapping[PairKey, ProjectionTensors]
    settings: SLASettings | None = field(default_factory=SLASettings)
    version: int = STATE_VERSION
    origin: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PairKey]:
        return iter(self.pairs)

    def equals(self, other: SLAState) -> bool:
        """Same settings and bitwise the same pairs; the origin does not count."""
        return (
            repr(self.settings) == repr(other.settings)  # topk may be NaN, which a rule reports
            and self.pairs.keys() == other.pairs.keys()
            and all(self.pairs[key].equals(other.pairs[key]) for key in self.pairs)
        )
