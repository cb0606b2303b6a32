"""Pickle streams as opcodes: random ones, known attacks, and real ones changed."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Sequence
from random import Random

from tools.fuzz import values

GLOBALS = (
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_tensor", "torch._tensor _rebuild_from_type_v2",
    "collections OrderedDict", "collections Counter", "collections defaultdict", "torch Size",
    "torch device", "torch Tensor", "torch.nn.parameter Parameter", "_codecs encode",
    "torch FloatStorage", "torch BFloat16Storage", "torch HalfStorage", "torch DoubleStorage",
    "torch LongStorage", "torch ByteStorage", "torch BoolStorage", "torch ComplexFloatStorage",
    "torch QInt8Storage", "torch.storage UntypedStorage", "torch.storage TypedStorage",
    "torch float32", "torch bfloat16", "torch float8_e4m3fn", "torch uint16", "torch int64",
    "torch complex32", "torch.serialization _get_layout", "torch load", "torch.hub load",
    "builtins eval", "__builtin__ eval", "builtins getattr", "builtins set", "builtins bytearray",
    "os system", "posix system", "nt system", "subprocess Popen",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray scalar", "numpy dtype", "torch._utils.os system", "torch os.system",
    "torch.nn.modules.module Module", "pip main", "_pickle loads", "", " ", "torch ",
    "torch..Size x",
)  # fmt: skip


def line_global(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def unicode(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


#: Complete values (each leaves one thing on the stack) of which most are attacks.
GADGETS = (
    b"cos\nsystem\nX\x02\x00\x00\x00id\x85R", b"(ios\nsystem\n", b"(cos\nsystem\no",
    b"cos\nsystem\n)\x81", b"\x8c\x02os\x8c\x06system\x93", b"K\x01\x8c\x06system\x93",
    b"X\x02\x00\x00\x00osq\x30X\x06\x00\x00\x00systemq\x31h\x30h\x31\x93", b"\x82\x01",
    b"NNN\x87\x93",
    b"c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xbfX\x06\x00\x00\x00latin1\x86R",
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R",
    b"ccollections\nOrderedDict\n)R", b"ccollections\nOrderedDict\n]\x85R",
    b"ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00ak\x01sb",
    b"ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb",
    b"ctorch\nSize\n(K\x02K\x03t\x85R", b"ctorch\nSize\n]K\x02a\x85R",
    b"ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R",
    b"ctorch\ndevice\nX\x04\x00\x00\x00cudaK\x00\x86R", b"ctorch\ndevice\nX\x01\x00\x00\x00x\x85R",
    b"ctorch\ndevice\nX\x03\x00\x00\x00cpuX\x01\x00\x00\x000\x86R", b"ctorch\nfloat32\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\ndevice\nX\x03\x00\x00\x00cpuJ\xff\xff\xff\xff\x86R", b"ctorch\nSize\n(\x88t\x85R",
    b"ctorch\nSize\n(J\xff\xff\xff\xfft\x85R",
    b"]q\x20h\x20a", b"}q\x21X\x01\x00\x00\x00ah\x21s", b")q\x22h\x22h\x22\x86q\x23h\x23h\x23\x86",
    b"X\x09\x00\x00\x00cos\nsys\n.", b"U\x02\xc3\xa9", b"U\x01\xff", b"\x8c\x01a", b"I01\n",
    b"I1\n", b"L1L\n",
    b"F1.5\n", b"S'a'\n", b"Va\n", b"C\x01a", b"B\x01\x00\x00\x00a",
    b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a", b"\x8f", b"(K\x01\x91",
    b"P0\n", b"Q", b"g0\n", b"p0\n", b"(d", b"(l", b"(X\x01\x00\x00\x00aK\x01d", b"(K\x01l",
    b"\x8a\x00", b"\x8a\x01\xff", b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    b"\x8b\x01\x00\x00\x00\x05", b"\x95\x02\x00\x00\x00\x00\x00\x00\x00N0N",
    b"\x80\x02N", b"\x80\x05N", b"\x88", b"\x89", b"NK\x010", b"K\x012a0", b"(K\x01K\x0210",
    b"(NX\x01\x00\x00\x00at", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"G\xff\xf0\x00\x00\x00\x00\x00\x00", b"\x97", b"]\x98",
)  # fmt: skip


_SHAPING = (
    b"(", b"t", b"\x85", b"\x86", b"\x87", b"]", b"}", b"s", b"u", b"a", b"e", b"R", b"b", b"Q",
    b"q\x00", b"h\x00",
)  # fmt: skip


def random_ops(rng: Random) -> bytes:
    """A stream put together from whole values, single opcodes and containers."""
    parts = [rng.choice((b"\x80\x02", b"\x80\x02", b"\x80\x04", b""))]
    for _ in range(rng.randrange(1, 25)):
        choice = rng.random()
        if choice < 0.3:
            parts.append(rng.choice(GADGETS))
        elif choice < 0.7:
            parts.append(random_op(rng))
        else:
            parts.append(rng.choice(_SHAPING))
    return b"".join(parts) + rng.choice((b".", b".", b".", b""))


def random_op(rng: Random) -> bytes:
    """One opcode of any protocol with a plausible argument."""
    opcode = rng.choice(pickletools.opcodes)
    code = opcode.code.encode("latin-1")
    if opcode.name == "GLOBAL":
        return line_global(rng.choice(GLOBALS))
    if opcode.name in ("BINUNICODE",):
        return unicode(values.text(rng))
    if opcode.name == "BININT":
        return number(values.integer(rng))
    if opcode.arg is None:
        return code
    reader = opcode.arg.name
    if reader in ("uint1", "uint2", "int4", "uint4", "uint8"):
        width = int(reader[-1])
        value = rng.randrange(6) if rng.random() < 0.6 else rng.getrandbits(8 * width)
        return code + value.to_bytes(width, "little")
    if reader == "float8":
        return code + struct.pack(">d", values.number(rng))
    if reader in ("stringnl_noescape_pair",):
        return code + line_global(rng.choice(GLOBALS))[1:]
    raw = values.text(rng).encode("utf-8", "surrogatepass")[:200]
    prefix = {"1": "<B", "4": "<I", "8": "<Q"}.get(reader[-1])
    if prefix:
        return code + struct.pack(prefix, len(raw)) + raw
    return (
        code
        + rng.choice((raw.replace(b"\n", b""), b"1", b"0x1", b"-5", b"1L", b"'a'", b"1.5"))
        + b"\n"
    )


def split(stream: bytes) -> list[bytes]:
    """The opcodes of a well-formed stream, each with its argument."""
    starts = [position for _, _, position in pickletools.genops(stream)]
    return [stream[a:b] for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]


def mutate_ops(rng: Random, ops: Sequence[bytes], donors: Sequence[Sequence[bytes]]) -> bytes:
    """A few opcodes deleted, doubled, moved, replaced, or their arguments changed."""
    result = list(ops)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if not result:
            break
        at = rng.randrange(len(result))
        action = rng.randrange(10)
        if action == 0:
            del result[at]
        elif action == 1:
            result.insert(at, result[at])
        elif action == 2:
            other = rng.randrange(len(result))
            result[at], result[other] = result[other], result[at]
        elif action == 3:
            result[at] = random_op(rng)
        elif action == 4:
            result.insert(at, random_op(rng))
        elif action == 5:
            result.insert(at, rng.choice(GADGETS))
        elif action == 6:
            donor = rng.choice(donors)
            start = rng.randrange(len(donor))
            result[at:at] = donor[start : start + rng.randrange(1, 8)]
        else:
            result[at] = _other_argument(rng, result[at])
    return b"".join(result)


def _other_argument(rng: Random, op: bytes) -> bytes:
    code = op[:1]
    if code in b"KMJ\x8a":
        return number(rng.choice((values.small(rng), values.integer(rng))) % (1 << 66))
    if code in b"XU\x8c":
        return unicode(values.text(rng))
    if code == b"c":
        return line_global(rng.choice(GLOBALS))
    if code == b"G":
        return struct.pack(">cd", b"G", values.number(rng))
    if code in b"qh":
        return code + bytes([rng.randrange(12) if rng.random() < 0.8 else rng.randrange(256)])
    if code in b"t)\x85\x86\x87":
        return rng.choice((b"t", b")", b"\x85", b"\x86", b"\x87"))
    if code in b"\x88\x89N":
        return rng.choice((b"\x88", b"\x89", b"N", b"K\x01", b"K\x00"))
    return random_op(rng)
