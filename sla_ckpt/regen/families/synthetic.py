"""Made-up samples, for when there is no real data.

White noise in place of latents is worse than useless for regeneration: attention over it looks
nothing like attention over an image. Latents with the 1/f amplitude spectrum of natural images
are closer. They still are not the data, which is why their use is recorded and warned about.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def natural_latents(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random latents [C, ..., H, W] with a 1/f spectrum over every dimension but the first.

    Each channel has mean near 0 and the whole has variance 1, float32 on the CPU. The same
    generator state gives the same latents.
    """
    white = torch.randn(shape, generator=generator)
    dims = tuple(range(1, len(shape)))
    radius = torch.zeros(shape[1:])
    for axis, length in enumerate(shape[1:]):
        view = [1] * len(dims)
        view[axis] = length
        # In cycles per picture, so that a longer side does not change the look of the other.
        radius = radius + (torch.fft.fftfreq(length) * length).view(view) ** 2
    amplitude = 1.0 / (1.0 + radius.sqrt())
    smooth = torch.fft.ifftn(torch.fft.fftn(white, dim=dims) * amplitude, dim=dims).real
    spread = smooth.std(unbiased=False)
    if not math.isfinite(float(spread)) or float(spread) == 0.0:
        return white
    # VAE latents carry some unstructured detail as well.
    mixed = smooth / spread + 0.2 * torch.randn(shape, generator=generator)
    scaled: Tensor = mixed / mixed.std(unbiased=False)
    return scaled


def text_embeddings(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    """Random embeddings [..., D] of standard deviation ``scale``, float32 on the CPU.

    Tokens share a common direction and channels differ in size, as text encoders' outputs do.
    """
    channels = shape[-1]
    size = torch.exp(0.5 * torch.randn(channels, generator=generator))
    shared = torch.randn(channels, generator=generator)
    values = size * (0.5 * shared + torch.randn(shape, generator=generator))
    scaled: Tensor = values * (scale / values.std(unbiased=False).clamp_min(1e-6))
    return scaled
