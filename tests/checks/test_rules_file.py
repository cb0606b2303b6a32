"""SLA001 to SLA004 and SLA212: the state file itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sla_ckpt import verify
from sla_ckpt.formats.twin import encode_twin
from tests import factories
from tests.checks.reports import codes, only

DATA = factories.DATA


def test_sla001_counts_the_signs_of_sla(good: Path) -> None:
    """Public report 53: a partial copy; the missing sidecar is named."""
    (good / "sla_attention.pt").unlink()
    (good / "simpletuner_config.json").write_text('{"attention_mechanism": "sla"}')
    finding = only(verify(good), "SLA001")
    assert "checkpoint_manifest.json lists the file" in finding.message
    assert "sets attention_mechanism to sla" in finding.message
    assert "sla-ckpt regen" in (finding.help or "")


def test_sla001_says_when_nothing_speaks_for_sla(tmp_path: Path) -> None:
    factories.write_denoiser(tmp_path / "transformer")
    assert "nothing here says that SLA was used" in only(verify(tmp_path), "SLA001").message


def test_sla001_counts_the_optimizer_group_as_a_sign(tmp_path: Path) -> None:
    source = DATA / "checkpoints/optimizer_trap/checkpoint-3/optimizer.bin"
    (tmp_path / "optimizer.bin").write_bytes(source.read_bytes())
    (tmp_path / "training_state.json").write_text("{}")
    assert "1 SLA parameter group" in only(verify(tmp_path), "SLA001").message


def test_sla001_names_a_file_that_differs_only_by_case(good: Path) -> None:
    (good / "sla_attention.pt").rename(good / "SLA_attention.pt")
    assert "SLA_attention.pt differs only by case" in only(verify(good), "SLA001").message


def test_sla001_names_a_dangling_link(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    (good / "sla_attention.pt").symlink_to(good / "gone.pt")
    assert "dangling link" in only(verify(good), "SLA001").message


def test_sla001_points_to_the_twin_when_only_the_twin_is_left(good: Path) -> None:
    saved = factories.state()
    (good / "sla_attention.safetensors").write_bytes(encode_twin(saved, pt_sha256="0" * 64))
    (good / "sla_attention.pt").unlink()
    finding = only(verify(good), "SLA001")
    assert "its twin" in finding.message
    assert finding.fixable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64, "LFS pointer"),
        (b"garbage" * 100, "not a torch.save archive"),
    ],
    ids=["empty", "html", "lfs-pointer", "garbage"],
)
def test_sla002_names_what_the_file_really_is(good: Path, content: bytes, words: str) -> None:
    """Public reports 23 and 34: a pointer, an empty file, a web page."""
    (good / "sla_attention.pt").write_bytes(content)
    report = verify(good)
    assert words in only(report, "SLA002").message
    assert report.found == ()


def test_sla002_says_that_it_is_a_directory(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    (good / "sla_attention.pt").mkdir()
    report = verify(good)
    assert "is a directory" in only(report, "SLA002").message
    assert "SLA001" not in codes(report)


def test_sla002_finds_a_flipped_bit() -> None:
    target = DATA / "states/wrong/bit_flip_in_data/sla_attention.pt"
    assert "CRC" in only(verify(target), "SLA002").message


def test_sla003_names_the_global_and_does_not_run_it(good: Path, tmp_path: Path) -> None:
    """Public report 38: a class outside the allow-list is named, never loaded."""
    import io
    import zipfile

    proof = tmp_path / "executed"
    pickle_bytes = b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3\n")
    (good / "sla_attention.pt").write_bytes(buffer.getvalue())
    assert "posix.system" in only(verify(good), "SLA003").message
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("list_payload", "holds list of 2"),
        ("state_is_list", "'state' is list"),
        ("version_2", "version 2"),
    ],
)
def test_sla004_names_the_wrong_structure(name: str, words: str) -> None:
    report = verify(DATA / f"states/wrong/{name}/sla_attention.pt")
    assert words in only(report, "SLA004").message


def test_sla212_finds_a_twin_of_another_state(good: Path) -> None:
    other = factories.state(seed=9)
    (good / "sla_attention.safetensors").write_bytes(encode_twin(other, pt_sha256="0" * 64))
    assert only(verify(good), "SLA212").level == "error"


def test_a_lora_called_sla_is_not_taken_for_one(tmp_path: Path) -> None:
    """Public report 9: kernel-only sparsity has no projection that could be missing."""
    lora = factories.write_lora(tmp_path)
    file = lora / "pytorch_lora_weights.safetensors"
    file = file.rename(lora / "minimax_h3_sla_lora.safetensors")
    message = only(verify(file), "SLA001").message
    assert "nothing here says that SLA was used" in message
