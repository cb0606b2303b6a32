"""The fixed work of one regeneration: samples with their noise and noise levels, and the loss.

Everything random is drawn here, on the CPU, from the seed. What is drawn depends on the samples
and the budget only, not on the device, the batch size or the number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.budget import Budget
from sla_ckpt.regen.families.base import (
    Batch,
    FamilyAdapter,
    Sample,
    collate,
    first_tensor,
    group_samples,
)
from sla_ckpt.regen.samples.request import FixedCall
from sla_ckpt.regen.variation import can_vary, varied

_HELD_OUT_EVERY = 4
#: Seeds of updates start here; those below are for L-BFGS steps and the judge.
_UPDATES = 1 << 10
T = TypeVar("T")


class Draw(Protocol):
    """One batch that the model is run on."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Number of each of its samples among all of the workload."""

    def losses(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Loss of each sample, float32 [B]; differentiable."""


@dataclass(frozen=True, eq=False)
class NoisyDraw:
    """Samples of one shape with fixed noise and noise levels, kept on the CPU."""

    adapter: FamilyAdapter
    batch: Batch
    noise: Tensor
    t: Tensor
    positions: tuple[int, ...]

    def losses(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        batch = self.batch.to(device, dtype)
        t = self.t.to(device)
        noisy, target = self.adapter.add_noise(batch.latents, self.noise.to(device), t)
        inputs = self.adapter.make_inputs(model, batch, noisy.to(dtype), t)
        with self.adapter.running(model):
            output = model(**inputs)
        prediction = self.adapter.read_prediction(output, batch)
        return (prediction.float() - target).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class StoredDraw:
    """One stored forward() call with its target; nothing random is added."""

    call: FixedCall
    read: Callable[[Any], Tensor]
    positions: tuple[int, ...]

    def losses(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        inputs = {name: _moved(value, device, dtype) for name, value in self.call.inputs.items()}
        prediction = self.read(model(**inputs))
        target = self.call.target.to(device)
        if prediction.shape != target.shape:
            raise ValueError(
                f"{self.call.source}: the prediction is {list(prediction.shape)}, "
                f"the target {list(target.shape)}"
            )
        # One number per call, whatever its batch size: it is one sample to the judge.
        return (prediction.float() - target.float()).square().mean().reshape(1)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors to the device; floating-point ones to the compute dtype, but not scalars per sample
    (timesteps, guidance), which pipelines pass in float32."""
    if isinstance(value, Tensor):
        wide = value.is_floating_point() and value.ndim > 1
        return value.to(device, dtype if wide else None)
    if isinstance(value, Mapping):
        return {key: _moved(inner, device, dtype) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, device, dtype) for inner in value]
    return value


@dataclass(frozen=True, eq=False)
class Workload:
    """Draws, and how many samples they hold together."""

    draws: tuple[Draw, ...]

    @property
    def size(self) -> int:
        return sum(len(draw.positions) for draw in self.draws)


def make_workload(
    adapter: FamilyAdapter,
    config: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    repeats: int,
    batch_size: int,
    seed: int,
    variation: float = 0.0,
) -> Workload:
    """Draw noise and noise levels for each sample ``repeats`` times.

    Noise levels are stratified over all samples of one shape, whatever the batch size. A share of
    ``variation`` of the draws sees a varied copy (:mod:`sla_ckpt.regen.variation`).
    """
    generator = torch.Generator().manual_seed(seed)
    draws: list[NoisyDraw] = []
    position = 0
    for members in group_samples(samples, max(1, len(samples))):
        repeated = [sample for _ in range(repeats) for sample in members]
        if variation:
            chosen = (torch.rand(len(repeated), generator=generator) < variation).tolist()
            repeated = [
                varied(sample, members, generator) if vary and can_vary(sample) else sample
                for sample, vary in zip(repeated, chosen, strict=True)
            ]
        shape = (len(repeated), *members[0].latents.shape)
        of_this_shape = Batch(members[0].latents.expand(shape), {})
        levels = adapter.sample_timesteps(config, of_this_shape, generator)
        noise = torch.randn(shape, generator=generator)
        for start in range(0, len(repeated), batch_size):
            part = slice(start, start + batch_size)
            batch = collate(repeated[part])
            places = tuple(range(position + start, position + start + len(batch)))
            draws.append(NoisyDraw(adapter, batch, noise[part], levels[part], places))
        position += len(repeated)
    return Workload(tuple(draws))


@contextlib.contextmanager
def failures_in_one_line(model: nn.Module) -> Iterator[None]:
    """Turn whatever a model or a kernel raises into one line; out of memory passes.

    Raises:
        RegenError: The model or a kernel failed.
    """
    usual = (RuntimeError, ValueError, TypeError, LookupError)
    caught: tuple[type[Exception], ...] = (*usual, *_kernel_errors())
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except caught as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise RegenError(
            f"{type(model).__name__} failed to run: {type(error).__name__}: {lines[0]}",
            hint="set SLA_CKPT_TRACEBACK=1 to see where; --kernel reference leaves kernels out",
        ) from error


def _kernel_errors() -> tuple[type[Exception], ...]:
    """What Triton raises when a kernel does not compile or does not fit the card."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)


@dataclass(frozen=True, eq=False)
class Work:
    """What to train on and what to judge on.

    Attributes:
        calibration: What the branches' statistics come from.
        train: Workload of an L-BFGS step, by its number.
        update: Workload of one update of an annealed step, by its number.
        judge: Held-out workload, the same for every candidate.
        train_samples: Different samples that train.
        judge_samples: Different samples that only judge; 0 if the same ones judge, under other
            noise.
        varied: The same samples judge, as varied copies.
        redraws: Every update has other noise.
        numbers: How many different numbers the training targets hold, noise not counted.
    """

    calibration: Workload
    train: Callable[[int], Workload]
    update: Callable[[int], Workload]
    judge: Workload
    train_samples: int
    judge_samples: int
    varied: bool
    redraws: bool
    numbers: int


def split_samples(samples: Sequence[T]) -> tuple[list[T], list[T]]:
    """(training, held out): from four samples on, every fourth is held out."""
    if len(samples) < _HELD_OUT_EVERY:
        return list(samples), []
    train = [s for i, s in enumerate(samples) if (i + 1) % _HELD_OUT_EVERY]
    held_out = [s for i, s in enumerate(samples) if not (i + 1) % _HELD_OUT_EVERY]
    return train, held_out


def sampled_work(
    adapter: FamilyAdapter,
    config: Mapping[str, Any],
    samples: Sequence[Sample],
    budget: Budget,
    seed: int,
) -> Work:
    """The work over prepared samples."""
    train, held_out = split_samples(samples)
    alone = not held_out and all(can_vary(sample) for sample in train)

    def workload(
        source: Sequence[Sample], repeats: int, stream: int, *, size: int = 0, variation: float = 0
    ) -> Workload:
        return make_workload(
            adapter,
            config,
            source,
            repeats=repeats,
            batch_size=size or budget.batch_size,
            seed=(seed << 20) + stream,
            variation=1.0 if alone else variation,
        )

    wanted = budget.update_draws
    # Where an update cannot hold every sample, one pass over all of them gives several updates,
    # so that noise levels stay stratified.
    per_pass = -(-len(train) // wanted)

    @lru_cache(maxsize=1)
    def one_pass(number: int) -> tuple[Draw, ...]:
        repeats = max(1, wanted // len(train))
        size = min(budget.batch_size, wanted)
        stream = _UPDATES + number
        return workload(train, repeats, stream, size=size, variation=budget.variation).draws

    def update(number: int) -> Workload:
        draws = one_pass(number // per_pass)
        per_update = -(-len(draws) // per_pass)
        first = number % per_pass * per_update
        return Workload(draws[first : first + per_update] or draws[-per_update:])

    calibrating = train[: budget.calibration_draws]
    calibration_repeats = min(budget.repeats, max(1, budget.calibration_draws // len(train)))
    return Work(
        calibration=workload(calibrating, calibration_repeats, 1),
        train=lambda step: workload(train, budget.repeats, step + 1),
        update=update,
        judge=workload(held_out or train, budget.judge_repeats, 0),
        train_samples=len(train),
        judge_samples=len(held_out),
        varied=alone,
        redraws=True,
        numbers=sum(sample.latents.numel() for sample in train),
    )


def stored_work(calls: Sequence[FixedCall], budget: Budget) -> Work:
    """The work over stored forward() calls, which are used as they are, once each."""
    train, held_out = split_samples(calls)

    def workload(source: Sequence[FixedCall]) -> Workload:
        return Workload(
            tuple(StoredDraw(call, first_tensor, (index,)) for index, call in enumerate(source))
        )

    trained = workload(train)
    per_update = min(len(train), budget.update_draws)

    def update(number: int) -> Workload:
        first = number * per_update
        return Workload(tuple(trained.draws[(first + k) % len(train)] for k in range(per_update)))

    return Work(
        calibration=Workload(trained.draws[: budget.calibration_draws]),
        train=lambda step: trained,
        update=update,
        judge=workload(held_out or train),
        train_samples=len(train),
        judge_samples=len(held_out),
        varied=False,
        redraws=False,
        numbers=sum(call.target.numel() for call in train),
    )
