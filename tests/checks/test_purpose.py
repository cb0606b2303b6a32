"""What ``--for resume`` and ``--for inference`` change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, verify
from tests import factories

RESUME = VerifyOptions(purpose="resume")
OPTIMIZER = factories.DATA / "checkpoints/out_full/checkpoint-3/optimizer.bin"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-500"
    factories.write_full_checkpoint(folder)
    (folder / "optimizer.bin").write_bytes(OPTIMIZER.read_bytes())
    (folder / "random_states_0.pkl").write_bytes(b"\x80\x04cnumpy.random\nx\n.")
    factories.write_trainer_files(folder)
    return folder


def errors(folder: Path, options: VerifyOptions) -> list[tuple[str, str]]:
    return [(f.code, f.message) for f in verify(folder, options).findings if f.level == "error"]


def test_the_optimizers_groups_are_counted_on_both_sides(trained: Path) -> None:
    """Public report 13: both numbers of parameter groups are named."""
    ((code, message),) = errors(trained, RESUME)
    assert code == "SLA304"
    assert "has 2 parameter groups, 1 of them SLA's; a fresh process has 1" in message


def test_what_a_resume_loads_is_listed(trained: Path) -> None:
    """Public reports 18 and 20: the state is one of them; a pickle of the trainer is no fault."""
    (note,) = [n for n in verify(trained, RESUME).notes if "resume loads" in n]
    for name in ("optimizer.bin", "random_states_0.pkl", "training_state.json"):
        assert name in note
    assert note.endswith("sla_attention.pt")
    assert "SLA003" not in {f.code for f in verify(trained, RESUME).findings}
    assert verify(trained).notes == ()


def test_a_checkpoint_without_optimizer_cannot_resume(trained: Path) -> None:
    (trained / "optimizer.bin").unlink()
    manifest = trained / "checkpoint_manifest.json"
    content = json.loads(manifest.read_text())
    content["files"].remove("optimizer.bin")
    manifest.write_text(json.dumps(content))
    assert verify(trained).ok
    assert errors(trained, RESUME) == [
        ("SLA301", "there is no optimizer.bin: no training can resume from here")
    ]
    (trained / "pytorch_model").mkdir()  # DeepSpeed keeps it there
    (trained / "pytorch_model/zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    assert errors(trained, RESUME) == []


@pytest.mark.parametrize("size", [0, 900])
def test_a_damaged_optimizer_matters_to_a_resume_only(trained: Path, size: int) -> None:
    (trained / "optimizer.bin").write_bytes(OPTIMIZER.read_bytes()[:size])
    report = verify(trained)
    assert [(f.code, f.level) for f in report.findings if f.level != "info"] == [
        ("SLA301", "warning")
    ]
    ((code, message),) = errors(trained, RESUME)
    assert code == "SLA301"
    assert message.startswith("optimizer.bin is ")
    assert "the weights are not concerned" in message
    inference = verify(trained, VerifyOptions(purpose="inference"))
    assert [f.code for f in inference.findings] == ["SLA107"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"attention_mechanism": "diffusers"}, "SLA305"),
        ({"attention_mechanism": "sla", "optimizer": "adamw_bf16"}, "SLA308"),
    ],
)
def test_a_configuration_that_a_resume_trips_over_is_an_error_then(
    trained: Path, tmp_path: Path, config: dict[str, str], code: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    levels = [
        {f.code: f.level for f in verify(trained, VerifyOptions(config=path, purpose=p)).findings}
        for p in (None, "resume")
    ]
    assert [found[code] for found in levels] == ["warning", "error"]
