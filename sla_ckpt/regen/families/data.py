"""What a sample, a batch of samples and their sizes are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample as the denoiser sees it, without batch dimension.

    Attributes:
        latents: [C, h, w] or [C, T, h, w], float32 after :meth:`FamilyAdapter.prepare`.
        conditioning: Named tensors without batch dimension.
        source: Where it came from, for messages: a file name, or ``"synthetic"``.
    """

    latents: Tensor
    conditioning: Mapping[str, Tensor]
    source: str = "synthetic"


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of equal shapes, stacked.

    Attributes:
        latents: ``[B, *latent shape]``.
        conditioning: Each [B, ...].
        sources: Of each sample.
    """

    latents: Tensor
    conditioning: Mapping[str, Tensor]
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.latents.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; ``dtype`` is for floating-point conditioning only."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.conditioning.items()
        }
        return Batch(self.latents.to(device), moved, self.sources)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Raises:
        RegenError: There are none, or their shapes or names differ (see :func:`group_samples`).
    """
    if not samples:
        raise RegenError("no samples to make a batch of")
    if len({_signature(sample) for sample in samples}) > 1:
        names = ", ".join(sorted({sample.source for sample in samples})[:3])
        raise RegenError(
            f"samples of different shapes cannot share a batch ({names})",
            hint="group them with group_samples first",
        )
    conditioning = {
        name: torch.stack([sample.conditioning[name] for sample in samples])
        for name in samples[0].conditioning
    }
    latents = torch.stack([sample.latents for sample in samples])
    return Batch(latents, conditioning, tuple(sample.source for sample in samples))


def group_samples(samples: Iterable[Sample], batch_size: int) -> list[list[Sample]]:
    """Split samples into groups of at most ``batch_size`` that can be stacked.

    Nothing is padded: padding would change which attention calls are masked. Samples keep their
    order within a shape, shapes come in order of first appearance.
    """
    by_shape: dict[object, list[Sample]] = {}
    for sample in samples:
        by_shape.setdefault(_signature(sample), []).append(sample)
    size = max(1, batch_size)
    return [
        members[start : start + size]
        for members in by_shape.values()
        for start in range(0, len(members), size)
    ]


def _signature(sample: Sample) -> object:
    return (
        tuple(sample.latents.shape),
        tuple((name, tuple(value.shape)) for name, value in sorted(sample.conditioning.items())),
    )


@dataclass(frozen=True)
class Size:
    """A sample's size in pixels and frames (1 for images)."""

    height: int
    width: int
    frames: int = 1


@dataclass(frozen=True)
class Conditioning:
    """One conditioning tensor that an adapter takes.

    Attributes:
        shape: Of one sample; None stands for a length that may vary (text tokens).
        required: Whether forward() needs it. An absent optional one gets a neutral value.
        scale: Standard deviation of made-up values; 0 for masks and ids, which are not random.
        aliases: Other names under which caches and pipelines keep it.
    """

    shape: tuple[int | None, ...]
    required: bool = True
    scale: float = 0.0
    aliases: tuple[str, ...] = ()
