"""The optimizer's groups are read without its tensors, and SLA's are told apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.errors import FormatError, StructureError
from sla_ckpt.formats.optimizer import read_optimizer

DATA = Path(__file__).parents[1] / "data" / "checkpoints"


def saved(optimizer: torch.optim.Optimizer) -> bytes:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    return buffer.getvalue()


def trained(
    *, base: int = 3, sla: tuple[int, ...] = (8,), step: bool = True, scheduler: bool = True,
    optimizer_class: Any = torch.optim.AdamW, **options: Any,
) -> torch.optim.Optimizer:  # fmt: skip
    """An optimizer as the trainer leaves it: SLA's groups were added after the scheduler."""
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(base)]
    optimizer = optimizer_class(params, lr=1e-3, **options)
    if scheduler:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for dim in sla:
        projection = torch.nn.Linear(dim, dim)
        optimizer.add_param_group({"params": list(projection.parameters())})
    if step:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("sla", [(), (8,), (8, 4)])
def test_the_sla_groups_are_the_trailing_ones(sla: tuple[int, ...], step: bool) -> None:
    structure = read_optimizer(saved(trained(sla=sla, step=step)))
    assert [len(group.params) for group in structure.groups] == [3, *[2] * len(sla)]
    assert structure.sla_groups() == tuple(range(1, 1 + len(sla)))
    assert structure.groups[0].options["lr"] == 1e-3
    assert structure.groups[0].has_initial_lr


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
        (torch.optim.RMSprop, {}),
    ],
)
def test_other_optimizers_are_understood(optimizer_class: Any, options: dict[str, Any]) -> None:
    structure = read_optimizer(saved(trained(optimizer_class=optimizer_class, **options)))
    assert structure.sla_groups() == (1,)


def test_groups_that_are_not_slas_are_left_alone() -> None:
    assert read_optimizer(saved(trained(scheduler=False))).sla_groups() == ()
    optimizer = trained(sla=())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert read_optimizer(saved(optimizer)).sla_groups() == ()
    optimizer = trained(sla=())
    pair = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4))]
    for param in pair:
        param.grad = torch.ones_like(param)
    optimizer.add_param_group({"params": pair})
    optimizer.step()
    assert read_optimizer(saved(optimizer)).sla_groups() == ()


def test_state_shapes_are_given_by_parameter() -> None:
    structure = read_optimizer(saved(trained()))
    assert structure.state_shapes[3]["exp_avg"] == (8, 8)
    assert structure.state_shapes[4]["exp_avg"] == (8,)


def test_a_large_file_costs_only_its_pickle() -> None:
    data = saved(trained(base=2, sla=(512,)))
    reads: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            result = super().read(size)
            reads.append(len(result))
            return result

    assert read_optimizer(Counting(data)).sla_groups() == (1,)
    assert len(data) > 2_000_000
    # The end record is searched in the last 64 KiB; headers and the pickle are a few KB.
    assert sum(reads) < 80_000


@pytest.mark.parametrize(
    "value", [{}, [], {"param_groups": []}, {"param_groups": [1], "state": {}},
              {"param_groups": [{"params": ["a"]}], "state": {}}]
)  # fmt: skip
def test_another_payload_is_no_optimizer(value: object) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with pytest.raises(StructureError, match="not an optimizer's state"):
        read_optimizer(buffer.getvalue(), name="optimizer.bin")


def test_garbage_is_a_format_error() -> None:
    with pytest.raises(FormatError):
        read_optimizer(b"garbage", name="optimizer.bin")
