"""Varied copies of samples: other contrast and brightness, and pieces of other samples.

The linear branch's output is close to a weighted mean of the whole picture, nearly the same at
every position. So a projection can learn a few pictures by heart through nothing but their means:
with one picture the loss on other parts of it falls while the loss on other pictures rises.
Changing each channel's mean and contrast from draw to draw, and pasting a piece of another copy,
takes that away and leaves what attention looks at, the structure, as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sla_ckpt.regen.families.data import Sample

#: Contrast is multiplied by something between these; latents have about unit variance.
_CONTRAST = (0.4, 1.2)
#: Spread of the channel means that replace the sample's own.
_MEANS = 0.5
#: Share of the copies that get a piece of another, and its least and greatest height and width.
_PASTED = 0.5
_PIECE = (0.25, 0.75)


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


def varied(sample: Sample, others: Sequence[Sample], generator: torch.Generator) -> Sample:
    """A copy with latents [C, …, H, W] of other channel means and contrasts, maybe a negative,
    maybe with a rectangle out of a copy of one of ``others``.

    Args:
        others: Samples with latents of the same shape; ``sample`` may be among them.
    """
    latents = _recoloured(sample.latents, generator)
    if _chance(generator) < _PASTED:
        other = others[int(torch.randint(len(others), (), generator=generator))]
        latents = _pasted(latents, _recoloured(other.latents, generator), generator)
    return replace(sample, latents=latents)


def _recoloured(latents: Tensor, generator: torch.Generator) -> Tensor:
    view = (latents.shape[0], *([1] * (latents.ndim - 1)))
    low, high = _CONTRAST
    contrast = low + (high - low) * torch.rand(view, generator=generator)
    if _chance(generator) < 0.5:
        contrast = -contrast
    means = _MEANS * torch.randn(view, generator=generator)
    structure = latents - latents.mean(tuple(range(1, latents.ndim)), keepdim=True)
    return structure * contrast + means


def _pasted(onto: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """``onto`` with a rectangle from anywhere in ``source``, the same in all frames."""
    low, high = _PIECE
    sizes = [max(1, int(n * (low + (high - low) * _chance(generator)))) for n in onto.shape[-2:]]

    def anywhere() -> tuple[slice, slice]:
        places = (
            int(torch.randint(n - size + 1, (), generator=generator))
            for n, size in zip(onto.shape[-2:], sizes, strict=True)
        )
        rows, columns = (slice(p, p + size) for p, size in zip(places, sizes, strict=True))
        return rows, columns

    result = onto.clone()
    result[..., *anywhere()] = source[..., *anywhere()]
    return result


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
