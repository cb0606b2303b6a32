"""What is known to slip past pickle scanners is refused here, in a file and in a checkpoint.

Each case is a file that holds a call of ``os.system``, or hides one from a reader that trusts a
name, a header or the first entry; none may be called whole, none may run anything.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt import verify
from sla_ckpt.errors import FormatError, UnsafePickleError
from sla_ckpt.formats.optimizer import read_optimizer
from sla_ckpt.formats.torch_zip import read_torch_zip
from tests.formats.zip_builders import (
    GOOD_STATE,
    Edit,
    End,
    Member,
    build_zip,
    edited,
    good_members,
    pickle_of,
    with_pickle,
)

WITNESS = "witness-of-a-call"


class _Call:
    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {WITNESS}",)


EVIL = pickle.dumps(_Call(), 2)
GOOD, STORAGES = pickle_of(GOOD_STATE)
PKL = "sla_attention/data.pkl"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


RUN = text(f"touch {WITNESS}") + b"\x85R."


def members_with(pickle_bytes: bytes) -> list[Member]:
    return edited(Edit("data.pkl", {"data": pickle_bytes}))


def legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def torch_tar() -> bytes:
    """The layout of torch before 0.1.10: a tar of three pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(EVIL)
            archive.addfile(entry, io.BytesIO(EVIL))
    return buffer.getvalue()


def seven_zip() -> bytes:
    """A 7z signature over a stored pickle, as was published to fool scanners that want a zip."""
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + EVIL


def overlapping_bomb() -> bytes:
    """Many entries of the directory that share one compressed body."""
    members = good_members()
    start = 0
    shared = [Member(f"sla_attention/data/{n}", b"", central_start=start) for n in range(1, 200)]
    return build_zip([*members, *shared])


def second_directory() -> bytes:
    """Two whole archives, one after the other: readers differ in which end record they take."""
    return build_zip(good_members()) + build_zip(members_with(EVIL))


def directory_in_comment() -> bytes:
    """An end record inside the comment of the real one."""
    hidden = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    return build_zip(members_with(EVIL), End(comment=hidden))


def zip64_other_start() -> bytes:
    """The zip64 field places the pickle elsewhere than the local header that scanners follow."""
    good = members_with(EVIL)
    extra = struct.pack("<HHQ", 1, 8, 10)
    pkl = next(member for member in good if member.name == PKL)
    index = good.index(pkl)
    good[index] = Member(PKL, pkl.data, central_start=0xFFFFFFFF, extra=extra)
    return build_zip(good)


def rezipped(mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", mode) as archive:
        for member in members_with(EVIL):
            archive.writestr(member.name, member.data)
    return buffer.getvalue()


def edit(**changes: Any) -> bytes:
    """The evil pickle, its entry changed in one way."""
    return build_zip(edited(Edit("data.pkl", {"data": EVIL, **changes})))


def flagged_pickle(**changes: Any) -> bytes:
    """A harmless pickle whose headers a scanner and torch could read in two ways."""
    return build_zip(edited(Edit("data.pkl", changes)))


#: Streams that name os.system in ways that a scan for opcodes or adjacent strings misses.
STACK_GLOBALS: dict[str, bytes] = {
    "names from the memo": short("os") + b"\x94" + short("system") + b"\x94" + b"h\x00h\x01\x93",
    "names from the memo, the other way round":
        short("system") + b"q\x01" + short("os") + b"q\x00h\x01\x93",
    "names with a string between": short("os") + short("x") + b"0" + short("system") + b"\x93",
    "names doubled": short("os") + b"2" + b"0" + short("system") + b"\x93",
    "memo of a memo": short("os") + b"\x94h\x00q\x07" + short("system") + b"\x93",
    "long memo indexes":
        text("os") + b"r\x00\x01\x00\x00"
        + text("system") + b"r\x01\x01\x00\x000" + b"j\x01\x01\x00\x00\x93",
    "module is a number": b"K\x01" + short("system") + b"\x93",
    "name is None": short("os") + b"N\x93",
    "module is bytes": b"C\x02os" + short("system") + b"\x93",
    "module from a tuple": short("os") + b"\x85" + short("system") + b"\x93",
    "no operands": b"\x93",
    "dotted name": short("builtins") + short("eval.__call__") + b"\x93",
    "framed": b"\x95\x0c\x00\x00\x00\x00\x00\x00\x00" + short("os") + short("system") + b"\x93",
}  # fmt: skip

INSIDE: dict[str, Callable[[], bytes]] = {
    "global": lambda: with_pickle(EVIL),
    "global in a state": lambda: with_pickle(GOOD[:-1] + b"0cos\nsystem\n" + RUN, *STORAGES),
    "global after a broken opcode": lambda: with_pickle(b"\x80\x02\xff0cos\nsystem\n" + RUN),
    "module alias": lambda: with_pickle(b"\x80\x02cposix\nsystem\n" + RUN),
    "through torch": lambda: with_pickle(b"\x80\x02ctorch\nos.system\n" + RUN),
    "through torch.hub": lambda: with_pickle(b"\x80\x02ctorch.hub\nload\n" + RUN),
    "builtins of an allowed module": lambda: with_pickle(b"\x80\x02ctorch._utils\n__builtins__\n."),
    "getattr chain": lambda: with_pickle(b"\x80\x02cbuiltins\ngetattr\n" + RUN),
    "old name of builtins": lambda: with_pickle(b"\x80\x02c__builtin__\neval\n" + RUN),
    "instance opcode": lambda: with_pickle(b"\x80\x02(" + text("x") + b"ios\nsystem\n."),
    "object opcode": lambda: with_pickle(b"\x80\x02(cos\nsystem\n" + text("x") + b"o."),
    "new object": lambda: with_pickle(b"\x80\x02cos\nsystem\n" + text("x") + b"\x85\x81."),
    "extension registry": lambda: with_pickle(b"\x80\x02\x82\x01."),
    "persistent id": lambda: with_pickle(b"\x80\x02" + text("os.system") + b"Q."),
    "persistent id as text": lambda: with_pickle(b"\x80\x00Pos.system\n."),
    "build with a reduce":
        lambda: with_pickle(b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__reduce__")
        + b"cos\nsystem\nsb."),
    "nested pickle loaded":
        lambda: with_pickle(b"\x80\x02c_pickle\nloads\nC" + bytes([len(EVIL)]) + EVIL + b"\x85R."),
    "nested pickle through torch":
        lambda: with_pickle(b"\x80\x02ctorch.serialization\nload\n" + RUN),
    "numpy array of objects":
        lambda: with_pickle(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + RUN),
    **{f"stack global: {name}": (lambda ops=ops: with_pickle(b"\x80\x04" + ops + RUN))
       for name, ops in STACK_GLOBALS.items()},
}  # fmt: skip

AROUND: dict[str, Callable[[], bytes]] = {
    "broken local name": lambda: edit(local_name="sla_attention/data.txt"),
    "broken local name, harmless": lambda: flagged_pickle(local_name="sla_attention/data.txt"),
    "local size": lambda: flagged_pickle(local_size=1),
    "local checksum": lambda: flagged_pickle(local_crc=1),
    "local flags": lambda: flagged_pickle(local_flags=1),
    "encrypted flag": lambda: flagged_pickle(flags=1),
    "masked headers flag": lambda: flagged_pickle(flags=1 << 13),
    "patched data flag": lambda: flagged_pickle(flags=1 << 5),
    "wrong checksum": lambda: flagged_pickle(crc=1),
    "unknown compression": lambda: flagged_pickle(method=99),
    "local header of another entry":
        lambda: build_zip(edited(Edit("byteorder", {"central_start": 0}))),
    "no local header": lambda: build_zip(edited(Edit("version", {"central_start": 7}))),
    "MS-DOS directory bit": lambda: flagged_pickle(attributes=0x10),
    "name ends in a slash": lambda: flagged_pickle(name=PKL + "/", local_name=PKL + "/"),
    "another disk": lambda: flagged_pickle(disk=1),
    "NUL in the name": lambda: edit(name=PKL + "\0.txt", local_name=PKL + "\0.txt"),
    "backslashes": lambda: edit(name=PKL.replace("/", "\\"), local_name=PKL.replace("/", "\\")),
    "upper case": lambda: edit(name=PKL.upper(), local_name=PKL.upper()),
    "leading slash": lambda: edit(name="/" + PKL, local_name="/" + PKL),
    "dot segment":
        lambda: edit(name="sla_attention/./data.pkl", local_name="sla_attention/./data.pkl"),
    "two data.pkl in two folders": lambda: build_zip([*good_members(), Member("x/data.pkl", EVIL)]),
    "two data.pkl, one below":
        lambda: build_zip([*good_members(), Member("sla_attention/x/data.pkl", EVIL)]),
    "two data.pkl of one name": lambda: build_zip([*good_members(), Member(PKL, EVIL)]),
    "two data.pkl, evil first": lambda: build_zip([Member(PKL, EVIL), *good_members()]),
    "data.pkl and DATA.PKL":
        lambda: build_zip([*good_members(), Member("sla_attention/DATA.PKL", EVIL)]),
    "pickle in another folder than the first entry's":
        lambda: build_zip([Member("a/version", b"3\n"), *good_members()]),
    "zip64 start": zip64_other_start,
    "zip64 without its field": lambda: flagged_pickle(size=0xFFFFFFFF, extra=b""),
    "zip64 size":
        lambda: flagged_pickle(size=0xFFFFFFFF, local_size=len(GOOD), extra=struct.pack("<HHQ", 1,
        8, 7)),
    "malformed extra field": lambda: flagged_pickle(extra=b"\x01\x00\xff\xff"),
    "fewer entries than listed": lambda: build_zip(good_members(), End(count=3)),
    "directory elsewhere": lambda: build_zip(good_members(), End(start=0)),
    "two archives": second_directory,
    "end record in the comment": directory_in_comment,
    "script before the zip": lambda: b"#!/bin/sh\n" + build_zip(members_with(EVIL)),
    "pickle before the zip": lambda: EVIL + build_zip(good_members()),
    "junk before the zip": lambda: b"\0" * 64 + build_zip(good_members()),
    "pickle after the zip": lambda: build_zip(members_with(EVIL), End(trailing=EVIL)),
    "overlapping entries": overlapping_bomb,
    "deflated": lambda: rezipped(zipfile.ZIP_DEFLATED),
    "bzip2 inside": lambda: rezipped(zipfile.ZIP_BZIP2),
    "lzma inside": lambda: rezipped(zipfile.ZIP_LZMA),
    "TorchScript":
        lambda: build_zip([*members_with(EVIL), Member("sla_attention/constants.pkl", EVIL)]),
    "bare pickle": lambda: EVIL,
    "bare pickle of protocol 0": lambda: pickle.dumps(_Call(), 0),
    "bare pickle of protocol 5": lambda: pickle.dumps(_Call(), 5),
    "old torch format": lambda: legacy({"x": torch.ones(1)}),
    "old torch format, evil": lambda: legacy(_Call()),
    "oldest torch format": torch_tar,
    "7z": seven_zip,
    "gzip": lambda: gzip.compress(EVIL),
    "xz": lambda: lzma.compress(EVIL),
    "bzip2": lambda: bz2.compress(EVIL),
}  # fmt: skip

EVASIONS = {**INSIDE, **AROUND}


@pytest.mark.parametrize("name", EVASIONS)
def test_an_evasion_is_an_error_of_rule_002_or_003_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = EVASIONS[name]()
    with pytest.raises(FormatError):
        read_torch_zip(data, name="sla_attention.pt")
    with pytest.raises(FormatError):
        read_optimizer(data, name="optimizer.bin")
    (tmp_path / "sla_attention.pt").write_bytes(data)
    report = verify(tmp_path)
    assert {finding.code for finding in report.errors} & {"SLA002", "SLA003"}
    assert not (tmp_path / WITNESS).exists()


@pytest.mark.parametrize("name", INSIDE)
def test_a_hidden_call_is_called_unsafe_or_not_supported(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_torch_zip(INSIDE[name](), name="sla_attention.pt")
    assert isinstance(caught.value, UnsafePickleError) or caught.value.kind == "pickle"


@pytest.mark.parametrize(
    "name", [name for name in STACK_GLOBALS if "number" not in name and "None" not in name]
)
def test_every_way_to_stack_a_global_is_unsafe(name: str) -> None:
    with pytest.raises(UnsafePickleError):
        read_torch_zip(INSIDE[f"stack global: {name}"](), name="sla_attention.pt")


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth", ".dat", ".bin", ".pkl", ".txt", ""])
def test_the_extension_disguises_nothing(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named file is judged by what it holds; where it cannot be a state, its folder has none."""
    elsewhere = {"SLA001"} if suffix in (".bin", ".pkl", ".txt") else set()
    monkeypatch.chdir(tmp_path)
    for number, data in enumerate((with_pickle(EVIL), EVIL, torch_tar(), seven_zip())):
        path = tmp_path / f"model{number}{suffix}"
        path.write_bytes(data)
        report = verify(path)
        codes = {finding.code for finding in report.errors}
        assert codes & (elsewhere or {"SLA002", "SLA003"})
    assert not (tmp_path / WITNESS).exists()


def test_a_pickle_named_safetensors_is_named_for_what_it_is(tmp_path: Path) -> None:
    for data in (with_pickle(EVIL), EVIL):
        (tmp_path / "sla_attention.safetensors").write_bytes(data)
        report = verify(tmp_path)
        assert any("pickle" in error.message or "zip" in error.message for error in report.errors)


def test_the_command_line_says_what_the_pickle_asks_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "sla_attention.pt").write_bytes(with_pickle(EVIL))
    done = subprocess.run(
        [sys.executable, "-m", "sla_ckpt", "verify"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SLA003" in done.stdout
    assert "posix.system" in done.stdout or "nt.system" in done.stdout
    assert not (tmp_path / WITNESS).exists()


def test_the_call_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness is a real one: unpickling does leave it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(EVIL)
    assert (tmp_path / WITNESS).exists()
