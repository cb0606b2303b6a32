"""An interpreter for the few pickle opcodes that tensors, dicts, strings and numbers need.

Nothing is imported, called or constructed but plain containers: a global is an inert name, and
the few that may be "called" are the cases of :func:`~.pickle_calls.reduce`. The opcode set is the
one of torch's weights-only loader, so whatever that refuses is refused here too.

Format: the pickle protocol 2 (PEP 307, :mod:`pickletools`) as ``torch.save`` uses it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sla_ckpt.errors import FormatError, UnsafePickleError
from sla_ckpt.formats.dtypes import STORAGE_CLASSES, STORED_AS
from sla_ckpt.formats.pickle_calls import kind_of, reduce
from sla_ckpt.formats.pickle_globals import find_globals
from sla_ckpt.formats.pickle_values import ALLOWED, GlobalName, StorageRef, TorchName

_INT64 = 1 << 63


@dataclass(frozen=True)
class PickleLimits:
    """Bounds on what one pickle may make.

    Attributes:
        objects: Values pushed, in all.
        storages: Different storages.
    """

    objects: int = 200_000
    storages: int = 20_000


@dataclass(frozen=True)
class Unpickled:
    """The result: a tree with :class:`~.payload.TensorSpec` leaves.

    Attributes:
        value: The tree, as the pickle builds it; may be cyclic.
        storages: Every storage, by key.
        notes: What is unusual.
    """

    value: object
    storages: dict[str, StorageRef]
    notes: tuple[str, ...]


def interpret(data: bytes, *, name: str, limits: PickleLimits | None = None) -> Unpickled:
    """Interpret one pickle.

    Args:
        data: The stream; what follows its STOP is noted and ignored, as torch does.
        name: How messages name the file.
        limits: Bounds.

    Raises:
        UnsafePickleError: It asks for a global that is not on the list.
        FormatError: Malformed, over a bound, or beyond what torch's weights-only loader reads.
    """
    machine = Machine(data, name, limits or PickleLimits())
    try:
        return machine.run()
    except UnsafePickleError:
        raise
    except FormatError:
        # The worst thing in the stream is what the reader must be told.
        for found in find_globals(data):
            if found not in ALLOWED:
                raise _unsafe(name, found) from None
        raise


def _unsafe(name: str, global_name: str) -> UnsafePickleError:
    shown = global_name if global_name.isprintable() else ascii(global_name)
    return UnsafePickleError(
        f"{name}: its pickle asks for {shown[:200]}, which no SLA state needs; it was not executed",
        global_name=global_name,
        hint="do not load this file with torch; take it from a source you trust, or run: "
        "sla-ckpt regen",
        path=name,
    )


class Machine:
    """The stack, the memo and the bounds; one method per group of opcodes."""

    def __init__(self, data: bytes, name: str, limits: PickleLimits) -> None:
        self.data = data
        self.name = name
        self.limits = limits
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.protocol = 0
        self.objects = 0
        self.encoded = 0
        self.storages: dict[str, StorageRef] = {}
        self.notes: dict[str, None] = {}

    def run(self) -> Unpickled:
        while True:
            opcode = self.take(1)[0]
            if opcode == _STOP:
                break
            handler = _HANDLERS.get(opcode)
            if handler is None:
                newer = f" (protocol {self.protocol}; torch reads 2)" if self.protocol > 3 else ""
                self.fault(
                    f"opcode {opcode:#04x} at byte {self.position - 1} is not supported{newer}"
                )
            handler(self)
        value = self.pop()
        rest = len(self.data) - self.position
        if rest:
            self.note(f"{rest} bytes after the pickle's end")
        return Unpickled(value, self.storages, tuple(self.notes))

    def error(self, message: str) -> FormatError:
        return FormatError(
            f"{self.name}: bad pickle: {message}",
            kind="pickle",
            hint="the file is damaged or was not written by torch.save; take the state of an "
            "earlier checkpoint, or run: sla-ckpt regen",
            path=self.name,
        )

    def fault(self, message: str) -> NoReturn:
        raise self.error(message)

    def note(self, text: str) -> None:
        self.notes[text] = None

    def take(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if len(chunk) != count:
            self.fault("it breaks off")
        self.position += count
        return chunk

    def take_line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1024)
        if end < 0:
            self.fault("a global's name does not end")
        raw = self.data[self.position : end]
        self.position = end + 1
        return self.text(raw)

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fault("a string is not UTF-8")

    def push(self, value: object) -> None:
        self.objects += 1
        if self.objects > self.limits.objects:
            self.fault(f"it makes more than {self.limits.objects:,} objects")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            self.fault("stack underflow")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            self.fault("stack underflow")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            self.fault("a mark is missing")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def set_items(self, items: Sequence[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict):
            self.fault(f"items are set on {kind_of(target)}")
        if len(items) % 2:
            self.fault("a dict entry lacks its value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.hashable(key)] = value

    def hashable(self, key: object) -> Any:
        """Only flat keys: hashing nested shared tuples takes exponential time."""
        if key is None or type(key) in (str, int, float, bool, bytes):
            return key
        if type(key) is tuple and len(key) <= 16 and not any(type(part) is tuple for part in key):
            return tuple(self.hashable(part) for part in key)
        raise self.error(f"a dict key is {kind_of(key)}")

    def append_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.fault(f"items are appended to {kind_of(target)}")
        target.extend(items)

    def integer(self, value: int) -> None:
        if not -_INT64 <= value < 2 * _INT64:
            self.fault("an integer does not fit into 64 bits")
        self.push(value)

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fault(f"memo {index} was never stored")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def find_global(self) -> None:
        full = f"{self.take_line()}.{self.take_line()}"
        if full not in ALLOWED:
            raise _unsafe(self.name, full)
        # A dtype is a value, not something to call.
        is_dtype = full.removeprefix("torch.") in STORED_AS
        self.push(TorchName(full) if is_dtype else GlobalName(full))

    def persistent_id(self) -> None:
        value = self.pop()
        if type(value) is not tuple or len(value) != 5 or value[0] != "storage":
            self.fault("a persistent id is not a storage")
        _, storage_class, key, location, count = value
        if not isinstance(storage_class, GlobalName) or "Storage" not in storage_class.name:
            self.fault(f"a storage has class {kind_of(storage_class)}")
        if type(key) is not str or not key.isascii() or not 0 < len(key) <= 64:
            self.fault("a storage's key is not a short string")
        if type(location) is not str or type(count) is not int or not 0 <= count < _INT64:
            self.fault(f"storage {key!r} has no valid location and length")
        dtype = STORAGE_CLASSES.get(storage_class.name.removeprefix("torch."))
        storage = StorageRef(key, dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            self.fault(f"storage {key!r} is described in two ways")
        if len(self.storages) > self.limits.storages:
            self.fault(f"more than {self.limits.storages:,} storages")
        self.push(storage)

    def reduce(self) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, GlobalName):
            self.fault(f"{kind_of(function)} is called")
        if type(arguments) is not tuple:
            self.fault(f"{function.name} is called with {kind_of(arguments)}")
        self.push(reduce(self, function.name, arguments))

    def build(self) -> None:
        """``OrderedDict.__setstate__``: a state dict's ``_metadata``. It is dropped, as unused."""
        state = self.pop()
        if type(self.top()) is not OrderedDict or not isinstance(state, dict):
            self.fault(f"state is set on {kind_of(self.top())}")


def _unsigned(length: int) -> Callable[[Machine], int]:
    return lambda machine: int.from_bytes(machine.take(length), "little")


_u1, _u2, _u4 = _unsigned(1), _unsigned(2), _unsigned(4)


def _binunicode(machine: Machine) -> None:
    machine.push(machine.text(machine.take(_u4(machine))))


def _binfloat(machine: Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _proto(machine: Machine) -> None:
    machine.protocol = _u1(machine)
    if machine.protocol != 2:
        machine.note(f"pickle protocol {machine.protocol}")


def _mark(machine: Machine) -> None:
    machine.objects += 1
    if machine.objects > machine.limits.objects:
        machine.fault(f"it makes more than {machine.limits.objects:,} objects")
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def handler(machine: Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return handler


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items((key, value))


_STOP = ord(".")
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    0x80: _proto,
    ord("("): _mark,
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord(")"): lambda m: m.push(()),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord("a"): lambda m: m.append_items([m.pop()]),
    ord("e"): lambda m: m.append_items(m.pop_mark()),
    ord("s"): _set_item,
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    ord("K"): lambda m: m.push(_u1(m)),
    ord("M"): lambda m: m.push(_u2(m)),
    0x8A: lambda m: m.integer(int.from_bytes(m.take(_u1(m)), "little", signed=True)),
    ord("G"): _binfloat,
    ord("X"): _binunicode,
    ord("U"): lambda m: m.push(m.text(m.take(_u1(m)))),
    ord("q"): lambda m: m.put(_u1(m)),
    ord("r"): lambda m: m.put(_u4(m)),
    ord("h"): lambda m: m.get(_u1(m)),
    ord("j"): lambda m: m.get(_u4(m)),
    ord("c"): lambda m: m.find_global(),
    ord("Q"): lambda m: m.persistent_id(),
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
}
