"""What a file really is, from its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile

import numpy as np
import pytest
import torch

from sla_ckpt.errors import FormatError
from sla_ckpt.formats.sniff import lfs_pointer, sniff
from sla_ckpt.formats.torch_zip import read_torch_zip
from tests.formats.zip_builders import GOOD_STATE

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 68117\n" % (b"ab" * 32)


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


def numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


KINDS = [
    (b"", "empty"),
    (LFS, "lfs-pointer"),
    (b"  <!DOCTYPE HTML>\n<html>", "html"),
    (b'<?xml version="1.0"?><html xmlns="x">', "html"),
    (b'<?xml version="1.0"?><Error>', "xml"),
    (b'{"error":"Repository not found"}', "json"),
    (b"[1]", "json"),
    (b"not found\n", "text"),
    (legacy(), "legacy-torch"),
    (pickle.dumps({"a": 1}), "pickle"),
    (gzip.compress(b"x"), "gzip"),
    (tarred(), "tar"),
    (numpy_file(), "numpy"),
    (b"GGUF\x03", "gguf"),
    (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
    (b"Rar!\x1a\x07\x01\0", "rar"),
    (lzma.compress(b"x"), "xz"),
    (bz2.compress(b"x"), "bzip2"),
    (b"\x28\xb5\x2f\xfd\x04", "zstd"),
    (b"\0" * 500, "zeros"),
    (b"PK\x05\x06" + b"\0" * 18, "empty-zip"),
    (bytes(range(200)), "unknown"),
]


@pytest.mark.parametrize(("data", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_each_kind_is_told_and_its_error_has_a_way_out(data: bytes, kind: str) -> None:
    assert sniff(data[:1024], len(data)) == kind
    with pytest.raises(FormatError) as caught:
        read_torch_zip(data, name="sla_attention.pt")
    assert caught.value.kind == kind
    assert caught.value.message.startswith("sla_attention.pt is ")
    assert caught.value.hint


def test_a_real_state_is_a_zip() -> None:
    assert sniff(GOOD_STATE.read_bytes()[:1024], 68117) == "zip"


def test_a_pointer_gives_hash_and_size() -> None:
    assert lfs_pointer(LFS) == ("ab" * 32, 68117)
    assert lfs_pointer(LFS.replace(b"size", b"sice")) is None


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x580, 0x8B1F, 0x04034B50])
def test_a_safetensors_header_whose_length_looks_like_another_magic(length: int) -> None:
    """Lengths such as 0x480 begin with the bytes of a pickle, 0x8b1f with those of gzip."""
    head = length.to_bytes(8, "little") + b'{"a": 1}'
    assert sniff(head.ljust(1024, b" "), 5000) == "safetensors"
