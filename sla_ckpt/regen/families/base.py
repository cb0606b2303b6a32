"""What most families have in common: the defaults that an adapter starts from."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError
from sla_ckpt.pairs.tokens import tokens_at
from sla_ckpt.regen.families.contract import Config, FamilyAdapter, Kind
from sla_ckpt.regen.families.data import (
    Batch,
    Conditioning,
    Sample,
    Size,
    collate,
    group_samples,
)
from sla_ckpt.regen.families.objectives import Noising, Objective
from sla_ckpt.regen.families.synthetic import natural_latents, text_embeddings

__all__ = [
    "BaseAdapter",
    "Batch",
    "Conditioning",
    "Config",
    "FamilyAdapter",
    "Kind",
    "Sample",
    "Size",
    "collate",
    "first_tensor",
    "group_samples",
    "model_config",
]


@dataclass(frozen=True)
class BaseAdapter(ABC):
    """Everything about a family that has a sensible default.

    A family overrides ``tiny_config``, ``conditioning``, ``make_inputs`` and, where its
    prediction is packed, negated or wider than the latents, ``read_prediction``.

    Attributes:
        name: Short name for messages.
        class_names: diffusers classes it serves.
        kind: Whether a sample is an image or a video.
        noising: Objective and noise schedule.
        vae_spatial: Pixels per latent, each way.
        vae_temporal: Frames per latent frame, beyond the first.
        channels_key: Config entry with the latent channels.
        multiple: Latent height and width must be multiples of this.
    """

    name: str = ""
    class_names: tuple[str, ...] = ()
    kind: Kind = "image"
    noising: Noising = field(default_factory=Noising)
    vae_spatial: int = 8
    vae_temporal: int = 1
    channels_key: str = "in_channels"
    multiple: int = 2

    @property
    def objective(self) -> Objective:
        return self.noising.objective

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        return self

    @abstractmethod
    def tiny_config(self) -> dict[str, Any]: ...

    @abstractmethod
    def conditioning(self, config: Config) -> Mapping[str, Conditioning]: ...

    def latent_channels(self, config: Config) -> int:
        """Channels of ``Sample.latents``."""
        return int(config[self.channels_key])

    def latent_shape(self, config: Config, size: Size) -> tuple[int, ...]:
        rows = size.height // self.vae_spatial // self.multiple * self.multiple
        columns = size.width // self.vae_spatial // self.multiple * self.multiple
        if not rows or not columns or size.frames < 1:
            smallest = self.vae_spatial * self.multiple
            raise RegenError(
                f"{size.width}x{size.height} pixels are too few for {self.name}",
                hint=f"use at least {smallest}x{smallest}",
            )
        channels = self.latent_channels(config)
        if self.kind == "image":
            return channels, rows, columns
        return channels, (size.frames - 1) // self.vae_temporal + 1, rows, columns

    def tokens_for(self, config: Config, height: int, width: int, frames: int = 1) -> int | None:
        return tokens_at(config, width, height, frames)

    def size_for_tokens(self, config: Config, tokens: int) -> Size:
        step = self.vae_spatial * self.multiple
        for count in range(1, 65536 // step + 1):
            reached = self.tokens_for(config, count * step, count * step)
            if reached is None:
                break
            if reached >= tokens:
                return Size(count * step, count * step)
        raise RegenError(
            f"no size of {self.name} gives {tokens} tokens", hint="name it: --resolution 1024x1024"
        )

    def prepare(self, config: Config, sample: Sample) -> Sample:
        latents = self._check_latents(config, sample)
        wanted = self.conditioning(config)
        found: dict[str, Tensor] = {}
        for name, spec in wanted.items():
            value = next(
                (
                    sample.conditioning[key]
                    for key in (name, *spec.aliases)
                    if key in sample.conditioning
                ),
                None,
            )
            if value is not None:
                found[name] = _fit(value, spec.shape, name, sample.source)
            elif spec.required:
                have = ", ".join(sorted(sample.conditioning)) or "nothing"
                raise RegenError(
                    f"{sample.source}: {self.name} needs {name}, the sample has {have}",
                    hint="encode the captions again with this model family",
                )
        return Sample(latents, found, sample.source)

    def _check_latents(self, config: Config, sample: Sample) -> Tensor:
        latents = sample.latents
        rank = 3 if self.kind == "image" else 4
        if latents.ndim == rank + 1 and latents.shape[0] == 1:
            latents = latents[0]
        if self.kind == "video" and latents.ndim == 3:
            latents = latents.unsqueeze(1)
        if self.kind == "image" and latents.ndim == 4 and latents.shape[1] == 1:
            latents = latents[:, 0]
        channels = self.latent_channels(config)
        if latents.ndim != rank or latents.shape[0] != channels:
            raise RegenError(
                f"{sample.source}: latents of shape {list(sample.latents.shape)}, but this model "
                f"takes {channels} channels",
                hint="use the cache that was made for this model family",
            )
        if latents.shape[-1] < self.multiple or latents.shape[-2] < self.multiple:
            raise RegenError(
                f"{sample.source}: latents of shape {list(sample.latents.shape)} are too small"
            )
        rows = latents.shape[-2] // self.multiple * self.multiple
        columns = latents.shape[-1] // self.multiple * self.multiple
        return latents[..., :rows, :columns].float().contiguous()

    def synthetic_sample(
        self,
        config: Config,
        *,
        height: int,
        width: int,
        frames: int = 1,
        text_tokens: int = 77,
        generator: torch.Generator,
    ) -> Sample:
        shape = self.latent_shape(config, Size(height, width, frames))
        conditioning = {
            name: self.synthetic_conditioning(config, name, spec, text_tokens, generator)
            for name, spec in self.conditioning(config).items()
            if spec.required or spec.scale
        }
        return Sample(natural_latents(shape, generator), conditioning)

    def synthetic_conditioning(
        self,
        config: Config,
        name: str,
        spec: Conditioning,
        text_tokens: int,
        generator: torch.Generator,
    ) -> Tensor:
        """One made-up conditioning tensor; masks and other unscaled ones are all ones."""
        shape = tuple(text_tokens if length is None else length for length in spec.shape)
        if spec.scale:
            return text_embeddings(shape, spec.scale, generator)
        return torch.ones(shape)

    def sample_timesteps(self, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.noising.sample(
            len(batch), batch.latents.shape[-2] * batch.latents.shape[-1], generator
        )

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.noising.add(latents, noise, t)

    @abstractmethod
    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]: ...

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        return first_tensor(model_output)

    @contextlib.contextmanager
    def running(self, model: Any) -> Iterator[None]:
        yield


def _fit(value: Tensor, shape: tuple[int | None, ...], name: str, source: str) -> Tensor:
    """Drop leading dimensions of length 1 and check against the wanted shape."""
    original = list(value.shape)
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = value[0]
    fits = value.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ["any" if length is None else length for length in shape]
        raise RegenError(
            f"{source}: {name} has shape {original}, the model takes {wanted}",
            hint="use the cache that was made for this model family",
        )
    return value.float() if value.is_floating_point() else value


def model_config(model: Any) -> Config:
    """The config of a diffusers model, wrapped or not.

    Raises:
        RegenError: It has none.
    """
    for candidate in (model, getattr(model, "module", None), getattr(model, "base_model", None)):
        config = getattr(candidate, "config", None)
        if isinstance(config, Mapping):
            return config
    raise RegenError(f"{type(model).__name__} has no diffusers config")


def first_tensor(model_output: Any) -> Tensor:
    """The prediction in whatever a diffusers forward() returned."""
    if isinstance(model_output, Tensor):
        return model_output
    sample = getattr(model_output, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    first = model_output[0]
    if not isinstance(first, Tensor):
        raise RegenError(f"the model returned {type(first).__name__}, not a tensor")
    return first
