"""Payloads as a trainer saves them, as values: states, optimizers, tensors that may lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tools.fuzz import pickle_ops, values

STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64",
    "bool", "complex64", "complex128",
)  # fmt: skip


@dataclass
class TensorValue:
    """A tensor as a pickle describes it; any field may lie."""

    key: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (2,)
    stride: tuple[int, ...] = (1,)
    offset: int = 0
    count: int = 2
    storage: str = "FloatStorage"
    requires_grad: bool = False
    version: int = 2
    location: str = "cpu"
    tail: bytes = b""
    parameter: bool = False


@dataclass
class Payload:
    """A tree and the bytes of its storages, by key."""

    tree: Any
    storages: dict[str, bytes] = field(default_factory=dict)


def dump(value: Any) -> bytes:
    """Pickle a tree of plain values and :class:`TensorValue`, as ``torch.save`` lays it out."""
    out = bytearray(b"\x80\x02")
    _emit(out, value)
    return bytes(out + b".")


def _emit(out: bytearray, value: Any) -> None:
    if value is None:
        out += b"N"
    elif isinstance(value, bool):
        out += b"\x88" if value else b"\x89"
    elif isinstance(value, int):
        out += pickle_ops.number(value)
    elif isinstance(value, float):
        out += struct.pack(">cd", b"G", value)
    elif isinstance(value, str):
        out += pickle_ops.unicode(value)
    elif isinstance(value, dict):
        out += b"}("
        for key, item in value.items():
            _emit(out, key)
            _emit(out, item)
        out += b"u"
    elif isinstance(value, list):
        out += b"]("
        for item in value:
            _emit(out, item)
        out += b"e"
    elif isinstance(value, tuple):
        out += b"("
        for item in value:
            _emit(out, item)
        out += b"t"
    elif isinstance(value, TensorValue):
        out += tensor(value)
    else:
        out += bytes(value)  # opcodes, ready made


def tensor(value: TensorValue) -> bytes:
    storage = "torch.storage UntypedStorage" if value.version == 3 else f"torch {value.storage}"
    out = bytearray(
        pickle_ops.line_global("torch._utils _rebuild_parameter") + b"(" if value.parameter else b""
    )
    out += pickle_ops.line_global(f"torch._utils _rebuild_tensor_v{value.version}") + b"(("
    out += pickle_ops.unicode("storage") + pickle_ops.line_global(storage)
    out += pickle_ops.unicode(value.key) + pickle_ops.unicode(value.location)
    out += pickle_ops.number(value.count) + b"tQ" + pickle_ops.number(value.offset)
    for sizes in (value.shape, value.stride):
        _emit(out, tuple(sizes))
    out += b"\x88" if value.requires_grad else b"\x89"
    out += b"ccollections\nOrderedDict\n)R"
    if value.version == 3:
        out += pickle_ops.line_global(f"torch {value.dtype}")
    out += value.tail + b"tR"
    if value.parameter:
        out += b"\x88ccollections\nOrderedDict\n)RtR"
    return bytes(out)


def random_tensor(rng: Random, payload: Payload) -> TensorValue:
    """A tensor that is nearly always well formed, over a storage of its own or a shared one."""
    shape = tuple(rng.choice((0, 1, 2, 2, 3, 4)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
    stride: tuple[int, ...] = ()
    step = 1
    for length in reversed(shape):
        stride = (step, *stride)
        step *= max(length, 1)
    version = rng.choice((2, 2, 2, 3))
    storage = rng.choice(tuple(STORAGES))
    dtype = rng.choice(DTYPES)
    width = STORAGES[storage] if version == 2 else _WIDTH[dtype]
    elements = max(step, 1) + rng.choice((0, 0, 0, 1, 5))
    count = elements if version == 2 else elements * width
    key = str(len(payload.storages))
    payload.storages[key] = _contents(rng, elements * width, storage if version == 2 else dtype)
    made = TensorValue(key, dtype, shape, stride, 0, count, storage, version=version)
    if version == 2:
        made.dtype = ""
    return made if rng.random() < 0.6 else bend_tensor(rng, made)


_WIDTH = {
    name: 16 if "128" in name else 8 if "64" in name else 4 if "32" in name
    else 2 if "16" in name else 1
    for name in DTYPES
}  # fmt: skip


def _contents(rng: Random, size: int, kind: str) -> bytes:
    raw = rng.randbytes(size)
    return bytes(byte & 1 for byte in raw) if kind.lower().startswith("bool") else raw


#: What may follow a tensor's description: metadata, of which some change its meaning.
_TAILS = (
    b"}", b"N", b"K\x00", b"}X\x03\x00\x00\x00neg\x88s", b"}X\x04\x00\x00\x00conj\x88s",
    b"}X\x01\x00\x00\x00x\x89s",
)  # fmt: skip


def bend_tensor(rng: Random, made: TensorValue) -> TensorValue:
    """One field of the description changed, to something legal or not."""

    def other(sizes: tuple[int, ...]) -> tuple[int, ...]:
        if sizes and rng.random() < 0.8:
            at = rng.randrange(len(sizes))
            return (*sizes[:at], values.small(rng), *sizes[at + 1 :])
        return tuple(values.small(rng) for _ in range(rng.randrange(0, 5)))

    changes: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: {"shape": other(made.shape)},
        lambda: {"stride": other(made.stride)},
        lambda: {"stride": tuple(reversed(made.stride)), "shape": tuple(reversed(made.shape))},
        lambda: {"stride": (0,) * len(made.shape)},
        lambda: {"offset": values.small(rng)},
        lambda: {"count": values.small(rng)},
        lambda: {"requires_grad": True},
        lambda: {"parameter": True},
        lambda: {"version": 5 - made.version, "dtype": rng.choice(DTYPES)},
        lambda: {"dtype": rng.choice((*DTYPES, "complex32", "quint8", "bits8"))},
        lambda: {"storage": rng.choice((*STORAGES, "QInt8Storage"))},
        lambda: {"key": values.text(rng)},
        lambda: {"location": values.text(rng)},
        lambda: {"tail": rng.choice(_TAILS)},
    )  # fmt: skip
    return replace(made, **rng.choice(changes)())


def random_state(rng: Random) -> Payload:
    """A state like the trainer's, small, sometimes with one thing wrong."""
    payload = Payload(None)
    state: dict[str, Any] = {}
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        dim = rng.choice((1, 2, 3, 4))
        pair = {}
        for name, shape in (("proj_l.weight", (dim, dim)), ("proj_l.bias", (dim,))):
            key, size = str(len(payload.storages)), 1
            for length in shape:
                size *= length
            storage = rng.choice(("FloatStorage",) * 6 + ("BFloat16Storage", "HalfStorage"))
            payload.storages[key] = rng.randbytes(size * STORAGES[storage])
            stride = (dim, 1)[-len(shape) :]
            pair[name] = TensorValue(key, "", shape, stride, 0, size, storage)
        state[f"{dim}:{rng.choice(('bf16', 'bf16', 'fp16', 'fp32', 'int8'))}"] = pair
    settings = {
        "topk": 0.2,
        "feature_map": "softmax",
        "blkq": 64,
        "blkk": 64,
        "tie_feature_map_qk": True,
    }
    payload.tree = {
        "settings": rng.choice((settings, settings, None)),
        "state": state,
        "version": 1,
    }
    if rng.random() < 0.6:
        payload.tree = values.mutate_tree(rng, payload.tree, fresh=lambda r: _fresh(r, payload))
    return payload


def random_optimizer(rng: Random) -> Payload:
    """An optimizer's state_dict, small, sometimes with SLA's group, sometimes with a fault."""
    payload = Payload(None)
    state: dict[Any, Any] = {}
    for index in range(rng.randrange(0, 5)):
        state[index] = {
            name: random_tensor(rng, payload) for name in ("step", "exp_avg", "exp_avg_sq")
        }
    base = {"lr": 1e-3, "betas": (0.9, 0.999), "initial_lr": 1e-3, "params": list(range(3))}
    late = {"lr": 1e-3, "betas": (0.9, 0.999), "params": [3, 4]}
    payload.tree = {
        "state": state,
        "param_groups": rng.choice(([base], [base, late], [base, late, late])),
    }
    if rng.random() < 0.7:
        payload.tree = values.mutate_tree(rng, payload.tree, fresh=lambda r: _fresh(r, payload))
    return payload


def _fresh(rng: Random, payload: Payload) -> Any:
    choice = rng.random()
    if choice < 0.3:
        return random_tensor(rng, payload)
    if choice < 0.5:
        return rng.choice(pickle_ops.GADGETS)
    if choice < 0.6:
        return tuple(values.scalar(rng) for _ in range(rng.randrange(0, 4)))
    return values.tree(rng)
