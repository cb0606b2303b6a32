"""What samples are asked for, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sla_ckpt.regen.families.base import Sample
from sla_ckpt.state import SLASettings

DEFAULT_COUNT = 8


@dataclass(frozen=True)
class SampleRequest:
    """Which samples to load; at most one of data, images and inputs.

    Attributes:
        data: Folder with a trainer's VAE and text-embedding caches.
        images: Folder with pictures (or one folder of frames per video) and captions.
        inputs: Safetensors file of named forward() arguments and their target.
        count: How many samples at most.
        resolution: (width, height) in pixels: crop to it, or make samples of it.
        tokens: Least number of image tokens, instead of a resolution.
        frames: Frames of a video sample.
        settings: What SLA runs with; sizes at which topk keeps no block are refused.
        seed: Of everything random in made-up samples.
        config: The trainer's config.json, which names its dataloader configuration.
        pipeline: Base pipeline (folder or Hub id) whose VAE and text encoders encode images.
        search: Look for caches beside the checkpoint when nothing is named.
    """

    data: Path | None = None
    images: Path | None = None
    inputs: Path | None = None
    count: int = DEFAULT_COUNT
    resolution: tuple[int, int] | None = None
    tokens: int | None = None
    frames: int | None = None
    settings: SLASettings = field(default_factory=SLASettings)
    seed: int = 0
    config: Path | None = None
    pipeline: str | Path | None = None
    search: bool = True


@dataclass(frozen=True, eq=False)
class FixedCall:
    """One forward() call as stored: used as it is, without noise or timesteps of ours.

    Attributes:
        inputs: Keyword arguments of forward(), with batch dimension; nested dicts and lists of
            tensors, and plain values.
        target: What the prediction is compared with, in its shape.
        source: For messages.
    """

    inputs: Mapping[str, Any]
    target: Tensor
    source: str


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples, ready for the adapter.

    Attributes:
        samples: Prepared samples (``adapter.prepare`` was applied); empty when ``calls`` is not.
        kind: ``real`` data, or ``synthetic``.
        description: One line: how many, from where, how captions were paired.
        warnings: What the user must know: skipped files, fallbacks.
        calls: Stored forward() calls of ``--inputs``; empty otherwise.
    """

    samples: tuple[Sample, ...]
    kind: Literal["real", "synthetic"]
    description: str
    warnings: tuple[str, ...] = ()
    calls: tuple[FixedCall, ...] = ()

    def __len__(self) -> int:
        return len(self.samples) or len(self.calls)
