"""Pickles that would run code, exhaust memory or confuse a scanner are refused by name."""

from __future__ import annotations

import pickle
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import FormatError, UnsafePickleError
from sla_ckpt.formats.pickle_globals import find_globals
from sla_ckpt.formats.torch_zip import read_torch_zip
from tests.formats.zip_builders import GOOD_STATE, pickle_of, with_pickle


def refused(stream: bytes, *storages: bytes) -> FormatError:
    """The error for a pickle, which must come fast and cheap."""
    data = with_pickle(stream, *storages)
    tracemalloc.start()
    try:
        started = time.perf_counter()
        with pytest.raises(FormatError) as caught:
            read_torch_zip(data, name="sla_attention.pt")
        assert time.perf_counter() - started < 5
        assert tracemalloc.get_traced_memory()[1] < 8 * len(data) + (32 << 20)
    finally:
        tracemalloc.stop()
    return caught.value


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_call_of_os_system_is_named_and_not_made(tmp_path: Path) -> None:
    import os

    witness = tmp_path / "ran"
    for protocol in range(6):
        error = refused(pickle.dumps({"x": _Call(os.system, f"touch {witness}")}, protocol))
        assert isinstance(error, UnsafePickleError)
        assert error.global_name.endswith(".system")
        assert error.global_name in error.message
    assert not witness.exists()


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x02(ios\nsystem\n.", "os.system"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        (b"\x80\x02cos\nsystem\n}b.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch._utils\n__builtins__\n.", "torch._utils.__builtins__"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray"),
        (b"\x80\x02cargparse\nNamespace\n)R.", "argparse.Namespace"),
        (b"\x80\x02c__main__\nConfig\n)\x81}b.", "__main__.Config"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02\x82\x01.", "extension registry"),
        # the bad global comes after an opcode that already stops the interpreter
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f\x8c\x02os\x8c\x06system\x93.", ""),
        (b"\x80\x02V1\n0cos\nsystem\n.", "os.system"),
    ],
)
def test_a_foreign_global_is_named(stream: bytes, name: str) -> None:
    error = refused(stream)
    assert name in error.message
    assert error.hint
    if name:
        assert isinstance(error, UnsafePickleError)


def test_a_global_after_a_real_state_is_still_found() -> None:
    stream, storages = pickle_of(GOOD_STATE)
    stored = stream[:-1] + b"0cos\nsystem\nX\x02\x00\x00\x00ls\x85R."
    error = refused(stored, *storages)
    assert isinstance(error, UnsafePickleError)
    assert error.global_name == "os.system"


def test_a_pickle_inside_a_string_is_only_a_string() -> None:
    inner = b"cos\nsystem\n."
    stream = b"\x80\x02X" + struct.pack("<I", len(inner)) + inner + b"."
    assert read_torch_zip(with_pickle(stream)).value == inner.decode()


def test_bytes_after_stop_are_noted_and_never_read() -> None:
    payload = read_torch_zip(with_pickle(b"\x80\x02N.cos\nsystem\n."))
    assert payload.value is None
    assert payload.notes == ("12 bytes after the pickle's end",)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x02",
        b"\x80\x02(.",
        b"\x80\x02t.",
        b"\x80\x02e.",
        b"\x80\x02]a.",
        b"\x80\x02}K\x01s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02K\x01(K\x01K\x02u.",
        b"\x80\x02h\x05.",
        b"\x80\x02q\x00.",
        b"\x80\x02NR.",
        b"\x80\x02)R.",
        b"\x80\x02NQ.",
        b"\x80\x02N}b.",
        b"\x80\x02X\xff\xff\xff\xffab.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        b"\x80\x02\x8a\xff1.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02\x8a\x20" + b"\x7f" * 32 + b".",
        b"\x80\x02L99999999999999999999999999999999\n.",
        b"\x80\x02X\x02\x00\x00\x00\xed\xa0.",
        b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.",
        b"\x80\x02cabc",
        b"\x80\x02c\xff\xff\nx\n.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02}}K\x01s.",
        b"\x80\x02ccollections\nOrderedDict\n.",
        b"\x80\x02ccollections\nOrderedDict\nN\x85R.",
        b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00a\x85\x85R.",
        b"\x80\x02ctorch\ndevice\n)R.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}q\x00K\x01h\x00s.",
    ],
)
def test_a_malformed_pickle_is_one_error(stream: bytes) -> None:
    assert refused(stream).kind == "pickle"


def test_exponential_nesting_is_refused() -> None:
    lists = b"".join(b"](" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1])
                     for n in range(60))  # fmt: skip
    assert refused(b"\x80\x02]q\x00" + lists + b".").kind == "pickle"


def test_exponential_tuples_as_dict_keys_are_not_hashed() -> None:
    tuples = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1])
                      for n in range(60))  # fmt: skip
    assert refused(b"\x80\x02)q\x00" + tuples + b"}h\x3cK\x01s.").kind == "pickle"


def test_deep_nesting_is_refused() -> None:
    depth = 50_000
    assert refused(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".").kind == "pickle"
    assert refused(b"\x80\x02)" + b"\x85" * depth + b".").kind == "pickle"
    assert refused(b"\x80\x02" + b"(" * depth + b"t" * depth + b".").kind == "pickle"


def test_millions_of_objects_are_refused() -> None:
    assert refused(b"\x80\x02(" + b"}" * 300_000 + b"t.").kind == "pickle"
    assert refused(b"\x80\x02" + b"(" * 300_000 + b".").kind == "pickle"


def test_one_string_cannot_be_turned_into_endless_bytes() -> None:
    text = b"a" * 1_000_000
    stream = b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01"
    stream += b"X\x06\x00\x00\x00latin1q\x02" + b"h\x00h\x01h\x02\x86R" * 10_000 + b"."
    assert refused(stream).kind == "pickle"


def _tensor(
    *,
    storage: str = "'storage'",
    offset: int = 0,
    size: tuple[int, ...] = (2, 2),
    stride: tuple[int, ...] = (2, 1),
    count: int = 4,
    key: str = "0",
    storage_class: str = "FloatStorage",
    tail: bytes = b"\x89ccollections\nOrderedDict\n)R",
) -> bytes:
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text(storage.strip("'"))
        + f"ctorch\n{storage_class}\n".encode()
        + text(key)
        + text("cpu")
        + number(count)
        + b"tQ"
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + tail
        + b"tR"
    )


def test_the_hand_made_tensor_is_well_formed() -> None:
    payload = read_torch_zip(with_pickle(b"\x80\x02" + _tensor() + b".", bytes(16)))
    assert repr(payload.value) == "StoredTensor(float32, [2, 2])"


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 62},
        {"size": (2, 3)},
        {"size": (-1, 2)},
        {"size": (1 << 62, 1 << 62), "stride": (0, 0)},
        {"size": (1 << 40, 4), "stride": (0, 1)},
        {"stride": (2, 2)},
        {"stride": (1 << 62, 1)},
        {"stride": (-2, 1)},
        {"stride": (1,)},
        {"size": (1,) * 65, "stride": (1,) * 65},
        {"count": 3},
        {"count": 5},
        {"count": 1 << 60},
        {"count": -1},
        {"key": "7"},
        {"key": "../0"},
        {"key": ""},
        {"key": "0" * 1000},
        {"storage": "module"},
        {"storage_class": "DoubleStorage"},
        {"tail": b"NN"},
        {"tail": b"\x89]K\x01a"},
        {"tail": b"\x89N}X\x03\x00\x00\x00neg\x88s"},
        {"tail": b"\x88N", "storage_class": "IntStorage"},
    ],
    ids=str,
)
def test_a_tensor_that_leaves_its_storage_is_refused(changes: dict[str, Any]) -> None:
    stream = b"\x80\x02" + _tensor(**changes) + b"."
    assert refused(stream, bytes(16)).kind in ("pickle", "storage-size", "missing-storage", "bomb")


def test_one_storage_with_two_meanings_is_refused() -> None:
    both = _tensor() + _tensor(storage_class="IntStorage")
    assert refused(b"\x80\x02" + both + b"\x86.", bytes(16)).kind == "pickle"


def test_bare_storages_and_classes_are_no_payload() -> None:
    assert refused(b"\x80\x02ctorch\nFloatStorage\n.").kind == "pickle"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    assert refused(b"\x80\x02" + storage + b".", bytes(16)).kind == "pickle"


def test_the_globals_of_a_real_state_are_torchs_own() -> None:
    stream, _ = pickle_of(GOOD_STATE)
    assert find_globals(stream) == (
        "torch._utils._rebuild_tensor_v2",
        "torch.FloatStorage",
        "collections.OrderedDict",
    )
