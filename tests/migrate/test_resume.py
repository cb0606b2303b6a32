"""The optimizer trap, with real torch and accelerate in the trainer's order, and its repair."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from sla_ckpt.formats.optimizer import read_optimizer
from sla_ckpt.migrate import MigrateOptions, fix, migrate

DATA = Path(__file__).parents[1] / "data" / "checkpoints"


class Run:
    """A training process as SimpleTuner's: SLA joins the optimizer at the first forward pass."""

    def __init__(self, pairs: int = 1) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(
            model, optimizer, scheduler
        )
        self.projections = [torch.nn.Linear(8 // (n + 1), 8 // (n + 1)) for n in range(pairs)]
        self.joined = False

    def step(self) -> None:
        if not self.joined:
            for projection in self.projections:
                self.optimizer.optimizer.add_param_group({"params": list(projection.parameters())})
            self.joined = True
        loss = self.model(torch.ones(2, 4)).square().sum()
        for projection in self.projections:
            loss = loss + projection(torch.ones(1, projection.in_features)).square().sum()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def moments(self) -> list[torch.Tensor]:
        inner = self.optimizer.optimizer
        params = inner.param_groups[0]["params"]
        return [inner.state[param]["exp_avg"].clone() for param in params]


def train_and_save(folder: Path, pairs: int, steps: int = 3) -> list[torch.Tensor]:
    run = Run(pairs)
    for _ in range(steps):
        run.step()
    run.accelerator.save_state(str(folder))
    return run.moments()


@pytest.mark.parametrize("pairs", [1, 2])
def test_resume_fails_in_the_trap_and_works_after_the_repair(pairs: int, tmp_path: Path) -> None:
    """Public reports 13 and 14: a different number of parameter groups on resume."""
    folder = tmp_path / "checkpoint-3"
    saved = train_and_save(folder, pairs)
    assert len(read_optimizer(folder / "optimizer.bin").sla_groups()) == pairs

    with pytest.raises(ValueError, match="different number of parameter groups"):
        Run(pairs).accelerator.load_state(str(folder))

    result = fix(folder)
    assert [step.code for step in result.plan.steps] == ["SLA304"]

    run = Run(pairs)
    run.accelerator.load_state(str(folder))
    for ours, theirs in zip(run.moments(), saved, strict=True):
        assert torch.equal(ours, theirs)
    before = [projection.weight.clone() for projection in run.projections]
    run.step()
    assert len(run.optimizer.optimizer.param_groups) == 1 + pairs
    for projection, weight in zip(run.projections, before, strict=True):
        assert not torch.equal(projection.weight, weight)
    # The next save is in the trap again, and can be repaired again.
    again = tmp_path / "checkpoint-4"
    run.accelerator.save_state(str(again))
    assert len(fix(again).plan.steps) == 1
    Run(pairs).accelerator.load_state(str(again))
    assert fix(again).plan.is_empty


def test_resuming_equals_never_having_stopped_for_the_models_own_weights(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    train_and_save(folder, 1)
    fix(folder)
    resumed = Run()
    resumed.accelerator.load_state(str(folder))
    resumed.step()
    straight = Run()
    for _ in range(4):
        straight.step()
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_group_that_never_took_a_step_is_dropped_too(tmp_path: Path) -> None:
    run = Run()
    run.step()
    inner = run.optimizer.optimizer
    late = torch.nn.Linear(2, 2)
    inner.add_param_group({"params": list(late.parameters())})
    run.accelerator.save_state(str(tmp_path))
    assert read_optimizer(tmp_path / "optimizer.bin").sla_groups() == (1, 2)
    fix(tmp_path)
    Run().accelerator.load_state(str(tmp_path))


@pytest.mark.parametrize("name", ["optimizer_trap", "out_full", "out_peft", "out_lycoris_ema"])
def test_the_trainers_own_optimizer_files_are_repaired(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(DATA / name / "checkpoint-3", folder)
    path = folder / "optimizer.bin"
    before: Any = torch.load(path, weights_only=True)
    migrate(folder, MigrateOptions())
    after: Any = torch.load(path, weights_only=True)
    assert after["param_groups"] == before["param_groups"][:1]
    kept = set(before["param_groups"][0]["params"])
    assert after["state"].keys() == before["state"].keys() & kept
    for param, entry in after["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, before["state"][param][key])
    # The folder in the archive is the one torch takes from the file's name.
    assert b"optimizer/data.pkl" in path.read_bytes()[:200]


def test_the_optimizer_can_be_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(DATA / "optimizer_trap" / "checkpoint-3", folder)
    assert migrate(folder, MigrateOptions(optimizer=False)).plan.is_empty


def test_an_optimizer_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "optimizer.bin").write_bytes(b"garbage")
    (tmp_path / "training_state.json").write_text("{}")
    assert migrate(tmp_path).plan.is_empty
