"""Write the pickle of a state as CPython's C pickler, protocol 2, and ``torch.save`` do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from sla_ckpt.formats.dtypes import STORAGE_CLASSES

#: Entries that the pickler sets at a time.
_BATCH = 1000
_CLASS_OF = {dtype: name for name, dtype in STORAGE_CLASSES.items()}


class TensorRecord:
    """A contiguous tensor to be written: its dtype's torch name, its shape, its storage's key."""

    def __init__(self, dtype: str, shape: tuple[int, ...], key: str) -> None:
        self.dtype = dtype
        self.shape = shape
        self.key = key


def dump(value: object) -> bytes:
    """Pickle dicts with string keys, strings, numbers, None and tensors.

    Strings are written out at each use, as distinct Python objects are; only torch's own
    constants (``"storage"``, the storage class, ``"cpu"``, …) are memoised.

    Raises:
        TypeError: Anything else.
    """
    writer = _Writer()
    writer.save(value)
    return b"\x80\x02" + bytes(writer.out) + b"."


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.memoised = 0
        self.constants: dict[str, int] = {}

    def memoise(self) -> int:
        index = self.memoised
        self.memoised += 1
        self.out += (
            struct.pack("<cB", b"q", index) if index < 256 else struct.pack("<cI", b"r", index)
        )
        return index

    def constant(self, name: str, write: Callable[[], None]) -> None:
        """Write once, refer to it from then on."""
        if name in self.constants:
            index = self.constants[name]
            self.out += (
                struct.pack("<cB", b"h", index) if index < 256 else struct.pack("<cI", b"j", index)
            )
        else:
            write()
            self.constants[name] = self.memoise()

    def save(self, value: object) -> None:
        if value is None:
            self.out += b"N"
        elif isinstance(value, bool):
            self.out += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            self.integer(value)
        elif isinstance(value, float):
            self.out += struct.pack(">cd", b"G", value)
        elif isinstance(value, str):
            self.raw_string(value)
            self.memoise()
        elif isinstance(value, Mapping):
            self.mapping(value)
        elif isinstance(value, TensorRecord):
            self.tensor(value)
        else:
            raise TypeError(f"a state cannot hold a {type(value).__name__}")

    def integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += struct.pack("<cB", b"K", value)
        elif 0 <= value < 1 << 16:
            self.out += struct.pack("<cH", b"M", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.out += struct.pack("<ci", b"J", value)
        else:
            length = (value.bit_length() >> 3) + 1
            raw = value.to_bytes(length, "little", signed=True)
            self.out += struct.pack("<BB", 0x8A, length) + raw

    def raw_string(self, text: str) -> None:
        raw = text.encode("utf-8")
        self.out += struct.pack("<cI", b"X", len(raw)) + raw

    def mapping(self, value: Mapping[str, object]) -> None:
        self.out += b"}"
        self.memoise()
        items = list(value.items())
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            self.out += b"(" if len(batch) > 1 else b""
            for key, item in batch:
                self.save(key)
                self.save(item)
            self.out += b"u" if len(batch) > 1 else b"s"

    def tensor(self, tensor: TensorRecord) -> None:
        count = 1
        strides: list[int] = []
        for length in reversed(tensor.shape):
            strides.insert(0, count)
            count *= length
        self.constant("rebuild", lambda: self.out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n"))
        self.out += b"(("
        self.constant("storage", lambda: self.raw_string("storage"))
        storage_class = _CLASS_OF[tensor.dtype]
        self.constant(storage_class, lambda: self.out.extend(f"ctorch\n{storage_class}\n".encode()))
        self.save(tensor.key)
        self.constant("cpu", lambda: self.raw_string("cpu"))
        self.integer(count)
        self.out += b"t"
        self.memoise()
        self.out += b"Q"
        self.integer(0)
        self.sizes(tensor.shape)
        self.sizes(tuple(strides))
        self.out += b"\x89"
        self.constant("hooks", lambda: self.out.extend(b"ccollections\nOrderedDict\n"))
        self.out += b")R"
        self.memoise()
        self.out += b"t"
        self.memoise()
        self.out += b"R"
        self.memoise()

    def sizes(self, value: tuple[int, ...]) -> None:
        if not value:
            self.out += b")"
            return
        if len(value) > 3:
            self.out += b"("
        for part in value:
            self.integer(part)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        self.memoise()
