"""How regeneration talks to one model family.

A family adapter knows five things that no config states: which tensors forward() wants and how
they are packed, how the pipeline passes the timestep, what the model predicts, what a sample's
latents and conditioning look like in a trainer's caches, and how to make a plausible one up.

The loop that every user of an adapter runs::

    adapter = adapter_for(config, scheduler)              # registry.py
    samples = [adapter.prepare(config, sample) for sample in loaded]      # checks and trims
    for group in group_samples(samples, batch_size):      # equal shapes only, so no padding
        batch = collate(group).to(device)
        t = adapter.sample_timesteps(config, batch, generator)            # [B] in (0, 1)
        noise = torch.randn(batch.latents.shape, generator=generator)
        noisy, target = adapter.add_noise(batch.latents, noise, t)        # float32
        with adapter.running(model):                      # around backward as well
            output = model(**adapter.make_inputs(model, batch, noisy.to(dtype), t))
            mse(adapter.read_prediction(output, batch).float(), target).backward()

Conventions:

- ``Sample.latents`` have no batch dimension and are scaled as the denoiser sees them, which is
  how SimpleTuner caches them: [C, H/8, W/8] for images, [C, T, H/8, W/8] for videos.
- ``Sample.conditioning`` uses the names of SimpleTuner's text caches and of diffusers'
  ``encode_prompt``: ``prompt_embeds`` [T, D], ``pooled_prompt_embeds`` [D], ``attention_masks``
  [T] (1 = real token), ``time_ids`` and so on; each adapter lists its own in ``conditioning``.
- ``t`` is the noise level in (0, 1): 0 is the clean sample, 1 is pure noise. An adapter turns it
  into whatever number its pipeline passes.
- The dtype of ``noisy`` is the compute dtype. make_inputs casts every other float input to it,
  except where the pipeline itself passes float32.
- Predictions and targets are shaped like the latents: ``[B, *latent shape]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sla_ckpt.regen.families.data import Batch, Conditioning, Sample, Size
from sla_ckpt.regen.families.objectives import Objective

Config = Mapping[str, Any]
Kind = Literal["image", "video"]


@runtime_checkable
class FamilyAdapter(Protocol):
    """What regeneration needs from a family.

    :class:`~sla_ckpt.regen.families.base.BaseAdapter` implements most of it.
    """

    @property
    def name(self) -> str:
        """Short name for messages."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """diffusers classes it serves."""

    @property
    def kind(self) -> Kind:
        """Whether a sample is an image or a video."""

    @property
    def objective(self) -> Objective:
        """What the model predicts: ``flow``, ``epsilon``, ``v`` or ``sample``."""

    def for_config(self, config: Config, scheduler: Config | None = None) -> FamilyAdapter:
        """The adapter bound to one model; families with several variants choose here."""

    def tiny_config(self) -> dict[str, Any]:
        """A config (with ``_class_name``) whose model has a few thousand parameters."""

    def conditioning(self, config: Config) -> Mapping[str, Conditioning]:
        """The conditioning of one sample, by name."""

    def latent_shape(self, config: Config, size: Size) -> tuple[int, ...]:
        """Shape of ``Sample.latents`` at a size.

        Raises:
            RegenError: The size is too small for the model.
        """

    def tokens_for(self, config: Config, height: int, width: int, frames: int = 1) -> int | None:
        """Image tokens of the shortest self-attention at a size; None when not known."""

    def size_for_tokens(self, config: Config, tokens: int) -> Size:
        """The smallest square size whose shortest self-attention has at least ``tokens``."""

    def prepare(self, config: Config, sample: Sample) -> Sample:
        """Check a loaded sample against the model and bring it into this module's convention.

        Raises:
            RegenError: Latents or conditioning do not fit the model, naming both shapes.
        """

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
        """A made-up sample: latents with a natural spectrum, plausible conditioning."""

    def sample_timesteps(self, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
        """Noise levels [B], float32 in (0, 1), distributed as training draws them."""

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(noisy latents, target of the prediction), both float32 ``[B, *latent shape]``."""

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        """Keyword arguments of the model's forward()."""

    def read_prediction(self, model_output: Any, batch: Batch) -> Tensor:
        """The prediction in the shape of the target, from what forward() returned."""

    def running(self, model: Any) -> AbstractContextManager[None]:
        """Context in which the model must run, forward and backward, to attend as in training.

        Backward too, because gradient checkpointing runs the forward again there.
        """
