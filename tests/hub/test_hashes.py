"""The cache of hashes: never wrong, never in the checkpoint, never in the way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.hub.hashes import HashCache, cache_path, hash_bytes

DATA = os.urandom(200_000)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has not changed for a while."""
    monkeypatch.setenv("SLA_CKPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "checkpoint" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(DATA)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def test_a_known_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HashCache() as hashes:
        first = hashes.hash(file)
    assert first == hash_bytes(DATA)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    with HashCache() as hashes, monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert hashes.hash(file) == first


def test_an_edit_with_its_modification_time_set_back_is_seen(file: Path) -> None:
    with HashCache() as hashes:
        hashes.hash(file)
    changed = bytes([DATA[0] ^ 1]) + DATA[1:]
    with file.open("r+b") as handle:
        handle.write(changed)
    os.utime(file, (1_600_000_000, 1_600_000_000))
    with HashCache() as hashes:
        assert hashes.hash(file).sha256 == hashlib.sha256(changed).hexdigest()


def test_a_file_that_changed_just_now_is_not_remembered(file: Path) -> None:
    os.utime(file)
    with HashCache() as hashes:
        hashes.hash(file)
    assert not cache_path().exists()


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b'{"x": 3}', b"[" * 100_000])
def test_a_damaged_cache_is_as_good_as_none(file: Path, content: bytes) -> None:
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(content)
    with HashCache() as hashes:
        assert hashes.hash(file) == hash_bytes(DATA)


def test_a_cache_that_cannot_be_written_is_no_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLA_CKPT_CACHE", "/dev/null/nowhere")
    with HashCache() as hashes:
        assert hashes.hash(file) == hash_bytes(DATA)


def test_nothing_is_written_beside_the_file(file: Path) -> None:
    with HashCache() as hashes:
        hashes.hash(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with HashCache() as hashes, pytest.raises(TargetNotFoundError, match="gone"):
        hashes.hash(tmp_path / "gone")
