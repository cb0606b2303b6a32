"""verify --fix as a user runs it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from sla_ckpt import encode_state, read_state
from sla_ckpt.formats.twin import encode_twin
from tests import factories
from tests.cli.test_verify_cli import run


def codes(target: Path, *args: str) -> list[str]:
    value = json.loads(run("verify", "--format", "json", target, *args).stdout)
    return [finding["code"] for finding in value["findings"]]


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("bf16_tensors", "SLA204"),
        ("settings_none", "SLA101"),
        ("renamed_keys_module_prefix", "SLA208"),
        ("tie_missing", "SLA101"),
    ],
)
def test_fix_repairs_keeps_a_backup_and_a_second_run_finds_nothing(
    tmp_path: Path, name: str, code: str
) -> None:
    source = factories.DATA / f"states/wrong/{name}/sla_attention.pt"
    shutil.copy(source, tmp_path / "sla_attention.pt")
    assert code in codes(tmp_path)
    result = run("verify", "--fix", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert code in result.stderr
    assert code not in codes(tmp_path)
    backups = list(tmp_path.glob("*.bak-*"))
    assert [backup.read_bytes() for backup in backups] == [source.read_bytes()]
    before = tree(tmp_path)
    assert run("verify", "--fix", tmp_path).returncode == 0
    assert tree(tmp_path) == before


def test_dry_run_writes_nothing_and_keeps_the_exit_code(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1", factories.state("128:fp16"))
    before = tree(folder)
    result = run("verify", "--fix", "--dry-run", folder)
    assert result.returncode == 1
    assert "dry run: nothing was written" in result.stderr
    assert tree(folder) == before
    assert run("verify", "--dry-run", folder).returncode == 2


def test_a_pair_is_copied_to_the_dtype_that_is_needed(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1", factories.state("128:fp16"))
    assert run("verify", "--fix", folder).returncode == 0
    pairs = {str(k): v for k, v in read_state(folder / "sla_attention.pt").pairs.items()}
    assert pairs["128:bf16"].equals(pairs["128:fp16"])


def test_the_state_comes_back_from_its_twin(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1")
    saved = factories.state()
    twin = encode_twin(saved, pt_sha256=hashlib.sha256(encode_state(saved)).hexdigest())
    (folder / "sla_attention.safetensors").write_bytes(twin)
    (folder / "sla_attention.pt").unlink()
    assert run("verify", "--fix", folder).returncode == 0
    assert read_state(folder / "sla_attention.pt").equals(saved)


def test_strays_stay_unless_they_are_selected(tmp_path: Path) -> None:
    from sla_ckpt import SLAState
    from sla_ckpt.state import PairKey, ProjectionTensors

    stray = PairKey(512, "bf16")
    pairs = {**factories.state().pairs, stray: ProjectionTensors.zeros(512)}
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1", SLAState(pairs))
    run("verify", "--fix", folder)
    assert stray in read_state(folder / "sla_attention.pt").pairs
    run("verify", "--fix", "--select", "SLA207", folder)
    assert stray not in read_state(folder / "sla_attention.pt").pairs


def test_the_optimizer_trap_is_repaired_and_the_weights_are_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(factories.DATA / "checkpoints/out_full/checkpoint-3", folder)
    weights = tree(folder / "transformer")
    assert "SLA304" in codes(folder)
    run("verify", "--fix", folder)
    assert "SLA304" not in codes(folder)
    assert tree(folder / "transformer") == weights


def test_what_cannot_be_repaired_keeps_exit_1_and_names_the_way_out(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1", factories.state("64:bf16"))
    result = run("verify", "--fix", folder)
    assert result.returncode == 1
    assert "sla-ckpt regen" in result.stdout


def test_a_legacy_file_and_what_it_hides_are_repaired_in_one_go(tmp_path: Path) -> None:
    source = factories.DATA / "states/wrong/legacy_nonzip_torch_save/sla_attention.pt"
    shutil.copy(source, tmp_path)
    result = run("verify", "--fix", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "old, non-zip torch file -> zip" in result.stderr
    assert "128:bf16" in str(next(iter(read_state(tmp_path / "sla_attention.pt").pairs)))


def test_a_key_without_dtype_is_completed_when_the_dtype_is_known(tmp_path: Path) -> None:
    source = factories.DATA / "states/wrong/state_flat/sla_attention.pt"
    shutil.copy(source, tmp_path)
    unknown = run("verify", "--fix", tmp_path)
    assert unknown.returncode == 1
    assert "--expect 128:bf16" in unknown.stdout
    known = run("verify", "--fix", "--expect", "128:bf16", tmp_path)
    assert known.returncode == 0, known.stdout + known.stderr
    assert codes(tmp_path, "--expect", "128:bf16") == ["SLA107"]


def test_other_names_are_verified_and_said_to_be_left_alone(tmp_path: Path) -> None:
    source = factories.DATA / "states/settings_none/sla_attention.pt"
    before = shutil.copy(source, tmp_path / "other.pt").read_bytes()
    result = run("verify", "--fix", tmp_path / "other.pt")
    assert result.returncode == 1
    assert "are repaired, not this" in result.stderr
    assert (tmp_path / "other.pt").read_bytes() == before
