"""Varied copies of samples: other contrast and brightness in every channel, half of them negatives.

The linear branch's output is close to a weighted mean of the whole picture, nearly the same at
every position. So a projection can learn a few pictures by heart through nothing but their means:
with one picture the loss on other parts of it falls while the loss on other pictures rises.
Changing each channel's mean and contrast from draw to draw takes that away and leaves what
attention looks at, the structure, as it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sla_ckpt.regen.families.data import Sample

#: Contrast is multiplied by something between these; latents have about unit variance.
_CONTRAST = (0.4, 1.2)
#: Spread of the channel means that replace the sample's own.
_MEANS = 0.5


def can_vary(sample: Sample) -> bool:
    """Not where pictures are among the conditions too, which would then contradict the latents.

    Pictures have the latents' height and width, or their channels; stacked text embeddings have
    neither.
    """
    latents = sample.latents
    return latents.ndim >= 3 and not any(
        x.ndim >= 3 and (x.shape[-2:] == latents.shape[-2:] or x.shape[0] == latents.shape[0])
        for x in sample.conditioning.values()
    )


def varied(sample: Sample, generator: torch.Generator) -> Sample:
    """A copy with latents [C, …] of other channel means and contrasts, maybe a negative."""
    latents = sample.latents
    view = (latents.shape[0], *([1] * (latents.ndim - 1)))
    low, high = _CONTRAST
    contrast = low + (high - low) * torch.rand(view, generator=generator)
    if float(torch.rand((), generator=generator)) < 0.5:
        contrast = -contrast
    means = _MEANS * torch.randn(view, generator=generator)
    structure = latents - latents.mean(tuple(range(1, latents.ndim)), keepdim=True)
    return replace(sample, latents=structure * contrast + means)
