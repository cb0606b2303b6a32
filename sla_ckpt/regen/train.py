"""Training the projections, and nothing else, through the frozen backbone."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sla_ckpt.attention.session import SLASession
from sla_ckpt.errors import RegenError
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.lbfgs import minimise
from sla_ckpt.regen.projections import Coordinates, Projections, load_into
from sla_ckpt.regen.workload import Draw, Workload, failures_in_one_line

#: Length of the first L-BFGS trial: the change of the projection's output against attention's.
FIRST_STEP = 0.1
Tick = Callable[[], None]


@dataclass(frozen=True)
class Runner:
    """A model under SLA and where it runs: everything that computes losses.

    Attributes:
        session: SLA is on with these modules while the runner is used.
        group: The processes that share the draws.
    """

    model: nn.Module
    session: SLASession
    device: torch.device
    dtype: torch.dtype
    group: Group

    def losses(self, workload: Workload, projections: Projections, tick: Tick) -> Tensor:
        """Loss of each sample without gradients, float64 [size] on the CPU.

        Raises:
            RegenError: A loss is not finite, or the model fails.
        """
        load_into(self.session, projections)
        result = torch.zeros(workload.size, dtype=torch.float64)
        for _, draw in self.group.share(workload.draws):
            result[list(draw.positions)] = self.forward(draw).double().cpu()
            tick()
        total = self.group.sum(result)
        if not bool(torch.isfinite(total).all()):
            raise RegenError(
                "the loss is not finite",
                hint="check the samples and the backbone: sla-ckpt verify --deep",
            )
        return total

    def forward(self, draw: Draw) -> Tensor:
        """Loss of each sample of a draw without gradients, float32 [B]."""
        try:
            with torch.no_grad(), failures_in_one_line(self.model):
                return self._run(draw)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory("a single forward pass") from error

    def loss_and_gradients(
        self, workload: Workload, projections: Projections, tick: Tick
    ) -> tuple[float, Projections]:
        """Mean loss over the workload, and its gradient for each [W b]; float64."""
        load_into(self.session, projections)
        gradients = {
            key: torch.zeros(p.shape, dtype=torch.float64) for key, p in projections.items()
        }
        total = torch.zeros(1, dtype=torch.float64)
        for _, draw in self.group.share(workload.draws):
            value, parts = self._backward(draw, retry=True)
            total += value
            for key in gradients:
                gradients[key] += parts[key]
            tick()
        total = self.group.sum(total) / workload.size
        summed = {key: self.group.sum(gradients[key]) / workload.size for key in sorted(gradients)}
        return float(total), summed

    def _backward(self, draw: Draw, *, retry: bool) -> tuple[float, Projections]:
        layers = {key: module.proj_l for key, module in self.session.modules.items()}
        for layer in layers.values():
            layer.zero_grad(set_to_none=True)
        try:
            with torch.enable_grad(), failures_in_one_line(self.model):
                loss = self._run(draw).sum()
                if not loss.requires_grad:
                    raise RegenError(
                        "the loss does not depend on proj_l: no attention call went sparse",
                        hint=f"calls: {self.session.stats.summary()}",
                    )
                loss.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            if retry and enable_checkpointing(self.model):
                del error
            else:
                raise _out_of_memory("training, also with gradient checkpointing") from error
        else:
            return float(loss.detach().double()), {
                key: torch.cat([_grad(layer.weight), _grad(layer.bias)[:, None]], 1)
                for key, layer in layers.items()
            }
        torch.cuda.empty_cache()
        return self._backward(draw, retry=False)

    def _run(self, draw: Draw) -> Tensor:
        return draw.losses(self.model, self.device, self.dtype)


def _out_of_memory(what: str) -> RegenError:
    return RegenError(
        f"the device has too little memory for {what}",
        hint="use --offload, a smaller --resolution, a larger card, or --device auto for several",
    )


def _grad(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape, dtype=torch.float64)
    return parameter.grad.double().cpu()


def enable_checkpointing(model: Any) -> bool:
    """Turn gradient checkpointing on; False if it is on already or the model has none."""
    if getattr(model, "is_gradient_checkpointing", False):
        return False
    if not getattr(model, "_supports_gradient_checkpointing", False):
        return False
    model.enable_gradient_checkpointing()
    return True


@dataclass(frozen=True, eq=False)
class Trained:
    """What one training call gives.

    Attributes:
        iterates: Projections along the way, each with what to call it; the last one, without a
            name, is the result.
        losses: Training loss of every evaluation, in order.
    """

    iterates: tuple[tuple[str, Projections], ...]
    losses: tuple[float, ...]


def train_lbfgs(
    runner: Runner,
    workload: Workload,
    start: Projections,
    coordinates: Coordinates,
    *,
    max_evaluations: int,
    max_iterations: int | None = None,
    keep: int,
    tick: Tick,
) -> Trained:
    """One L-BFGS step: strong Wolfe, at most ``max_evaluations``, in whitened coordinates.

    Args:
        keep: How many iterates to hand out.

    Raises:
        RegenError: The loss is 0 or not finite at the start, or does not depend on proj_l.
    """

    def function(x: Tensor) -> tuple[float, Tensor]:
        loss, gradients = runner.loss_and_gradients(workload, coordinates.to_projections(x), tick)
        return loss, coordinates.gradient(gradients)

    head_dims = sum(key.head_dim for key in start)
    result = minimise(
        function,
        coordinates.to_vector(start),
        max_evaluations=max_evaluations,
        max_iterations=max_iterations,
        first_step=FIRST_STEP * coordinates.scale * math.sqrt(head_dims),
    )
    first = result.iterates[0]
    check_loss(first.value)
    check_gradient({"": first.gradient})
    points = result.iterates[1:]
    count = len(points)
    iterates = tuple(
        (
            "" if index == count - 1 else f"iterate {index + 1} of {count}",
            coordinates.to_projections(points[index].x),
        )
        for index in _checkpoints(count, keep)
    )
    return Trained(iterates, result.values)


def _checkpoints(count: int, wanted: int) -> list[int]:
    """Which of ``count`` iterates to judge: the last, and earlier ones at 1, 2, 4, 8, …, since
    with few samples the judge often prefers an early stop."""
    if not count:
        return []
    early = [2**power - 1 for power in range(count.bit_length()) if 2**power < count]
    return sorted({count - 1, *early[: wanted - 1]})


def train_adamw(
    runner: Runner,
    workloads: Callable[[int], Workload],
    start: Projections,
    *,
    steps: int,
    lr: float,
    tick: Tick,
) -> Trained:
    """AdamW with a cosine learning rate; one optimizer step per accumulated workload.

    Raises:
        RegenError: The loss is 0 or not finite.
    """
    parameters = {key: p.clone().requires_grad_() for key, p in start.items()}
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    losses: list[float] = []
    for step in range(steps):
        current = {key: p.detach() for key, p in parameters.items()}
        loss, gradients = runner.loss_and_gradients(workloads(step), current, tick)
        check_loss(loss)
        losses.append(loss)
        for key, p in parameters.items():
            p.grad = gradients[key]
        optimizer.step()
        schedule.step()
    trained = {key: p.detach().clone() for key, p in parameters.items()}
    return Trained((("", trained),), tuple(losses))


def check_gradient(gradients: Mapping[Any, Tensor]) -> None:
    """Refuse a loss that does not depend on proj_l.

    Raises:
        RegenError: All gradients are zero.
    """
    if not any(float(gradient.norm()) > 0 for gradient in gradients.values()):
        raise RegenError(
            "proj_l gets no gradient, so training cannot change it",
            hint="is the checkpoint's denoiser whole? run: sla-ckpt verify --deep",
        )


def check_loss(loss: float) -> None:
    """Refuse a loss that no training could come from.

    Raises:
        RegenError: It is 0 or not finite.
    """
    if loss == 0.0:
        raise RegenError(
            "the loss is exactly 0, so there is nothing to learn from",
            hint="check the samples and the backbone's weights",
        )
    if not math.isfinite(loss):
        raise RegenError(
            "the loss is not finite",
            hint="check the samples and the backbone: sla-ckpt verify --deep",
        )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """The same bits on the same device: deterministic kernels wherever torch has them."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every fresh tensor with NaN is part of that mode, and only costs time here.
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
