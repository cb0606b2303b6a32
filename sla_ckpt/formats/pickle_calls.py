"""The calls a pickle may make: each gives a plain value or a tensor's description."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from sla_ckpt.formats.dtypes import STORED_AS, item_size
from sla_ckpt.formats.payload import TensorSpec
from sla_ckpt.formats.pickle_values import GlobalName, StorageRef, TorchName

if TYPE_CHECKING:
    from sla_ckpt.formats.pickle_machine import Machine

_MAX_DIMENSIONS = 64  # torch's own limit
_INT64 = 1 << 63
_DEVICES = ("cpu", "cuda", "hip", "hpu", "meta", "mps", "mtia", "xla", "xpu")
_NUMBERED = re.compile(r"([a-z]+):(0|[1-9]\d?)")


_PARAMETERS = (
    ("torch._utils._rebuild_parameter", 3),
    ("torch._utils._rebuild_parameter_with_state", 4),
)


def kind_of(value: object) -> str:
    """A value's kind, for messages."""
    if isinstance(value, GlobalName):
        return value.name
    if isinstance(value, TorchName):
        return value
    return f"a {type(value).__name__.removesuffix('Ref').removesuffix('Spec').lower()}"


def reduce(machine: Machine, function: str, arguments: tuple[Any, ...]) -> object:
    """The result of calling an allowed global.

    Raises:
        FormatError: With arguments it does not take.
    """
    if function == "torch._utils._rebuild_tensor_v2" and len(arguments) in (6, 7):
        return _tensor(machine, arguments[:6], None, arguments[6:])
    if function == "torch._utils._rebuild_tensor_v3" and len(arguments) in (7, 8):
        return _tensor(machine, arguments[:6], arguments[6], arguments[7:])
    if (function, len(arguments)) in _PARAMETERS:
        return _parameter(machine, *arguments)
    if function == "collections.OrderedDict" and not arguments:
        return OrderedDict()
    if function == "torch.Size" and len(arguments) == 1:
        return _sizes(machine, arguments[0])
    if function == "torch.device" and 1 <= len(arguments) <= 2:
        return _device(machine, arguments)
    if function == "_codecs.encode" and len(arguments) == 2:
        return _encoded(machine, *arguments)
    raise machine.error(f"{function} is called with arguments it does not take")


def _parameter(
    machine: Machine, tensor: object, requires_grad: object, hooks: object, state: object = None
) -> TensorSpec:
    if not isinstance(tensor, TensorSpec) or type(requires_grad) is not bool or hooks:
        machine.fault("a Parameter is not made of a plain tensor")
    if state is not None and state != {}:
        machine.fault("a Parameter carries attributes")
    if requires_grad and not _is_differentiable(tensor.dtype):
        machine.fault(f"a Parameter of {tensor.dtype} requires a gradient")
    machine.note("tensors saved as nn.Parameter")
    return tensor


def _is_differentiable(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


def _device(machine: Machine, arguments: tuple[Any, ...]) -> TorchName:
    kind, *index = arguments
    # A kind with its number in one string is legal too.
    if isinstance(kind, str) and not index and (split := _NUMBERED.fullmatch(kind)):
        kind, index = split[1], [int(split[2])]
    if kind not in _DEVICES or any(type(part) is not int or not 0 <= part < 128 for part in index):
        machine.fault("a device is malformed")
    return TorchName(":".join([kind, *map(str, index)]))


def _encoded(machine: Machine, text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes: a latin-1 string to be encoded."""
    if type(text) is not str or encoding != "latin1":
        machine.fault("bytes are malformed")
    # The same memoised text could be encoded any number of times.
    machine.encoded += len(text)
    if machine.encoded > len(machine.data):
        machine.fault("it makes more bytes than it holds")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        machine.fault("bytes are malformed")


def _tensor(
    machine: Machine, arguments: tuple[Any, ...], dtype: object, metadata: tuple[Any, ...]
) -> TensorSpec:
    """``_rebuild_tensor_v2`` (typed storage) and ``_v3`` (untyped storage and a dtype)."""
    storage, offset, size, stride, requires_grad, hooks = arguments
    if not isinstance(storage, StorageRef) or type(offset) is not int or not 0 <= offset < _INT64:
        machine.fault("a tensor has no storage or a bad offset")
    shape, strides = _sizes(machine, size), _sizes(machine, stride)
    if len(shape) != len(strides) or type(requires_grad) is not bool or hooks:
        machine.fault("a tensor's description is malformed")
    if any(metadata):
        # e.g. {"neg": True}: the values mean something else than the bytes say.
        machine.fault("a tensor carries metadata that changes its meaning")
    element = _element(machine, storage, dtype)
    # torch sets the storage of a _v3 in place, which it refuses where a gradient is wanted.
    if requires_grad and (dtype is not None or not _is_differentiable(element)):
        machine.fault(f"a tensor of {element} requires a gradient")
    tensor = TensorSpec(element, shape, strides, offset, storage.key)
    _check_window(machine, tensor, storage)
    return tensor


def _element(machine: Machine, storage: StorageRef, dtype: object) -> str:
    if dtype is None and storage.dtype is not None:
        return storage.dtype
    name = dtype.removeprefix("torch.") if isinstance(dtype, TorchName) else ""
    if name not in STORED_AS or storage.dtype is not None:
        machine.fault("a tensor's dtype is malformed")
    return name


def _check_window(machine: Machine, tensor: TensorSpec, storage: StorageRef) -> None:
    """Every element the strides can reach lies inside the storage."""
    count = storage.count if storage.dtype else storage.count // item_size(tensor.dtype)
    elements = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.offset + sum((length - 1) * step for length, step in steps)
    # numpy's limit, which also counts what has no elements as if it had.
    if math.prod(max(length, 1) for length in tensor.shape) * item_size(tensor.dtype) >= _INT64:
        machine.fault(f"a tensor of shape {list(tensor.shape)} is too large")
    if elements and last >= count:
        machine.fault(
            f"a tensor of shape {list(tensor.shape)} reaches element {last:,} of storage "
            f"{storage.key!r}, which has {count:,}"
        )


def _sizes(machine: Machine, value: object) -> tuple[int, ...]:
    if (
        type(value) is not tuple
        or len(value) > _MAX_DIMENSIONS
        or any(type(part) is not int or not 0 <= part < _INT64 for part in value)
    ):
        machine.fault("a size or stride is not a tuple of non-negative integers")
    return value
