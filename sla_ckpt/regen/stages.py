"""The stages of a regeneration: announced, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from sla_ckpt.regen.progress import Progress


@dataclass
class Stages:
    """Who hears about stages, and how long each took.

    Attributes:
        progress: Told when a stage begins.
        device: Waited for at the end of a stage, so that its time is the device's, too.
        seconds: Of each stage, all its turns together.
    """

    progress: Progress
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int = 0, *, announced: bool = False) -> Iterator[None]:
        """Time what is inside.

        Args:
            total: Steps, 0 if unknown.
            announced: The progress knows already.
        """
        if not announced:
            self.progress.stage(name, total)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.add({name: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was timed elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
