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
    """Random latents [C, H, W] or [C, T, H, W] whose pictures have a 1/f amplitude spectrum.

    Frames of a video change as slowly as the picture does across space. The whole has variance
    1, float32 on the CPU. The same generator state gives the same latents.
    """
    white = torch.randn(shape, generator=generator)
    dims = tuple(range(1, len(shape)))
    # In cycles per longest side, the same unit for all: a step in time changes as much as one in
    # space.
    scale = max(shape[-2:])
    radius = torch.zeros(shape[1:])
    for axis, length in enumerate(shape[1:]):
        view = [1] * len(dims)
        view[axis] = length
        radius = radius + (torch.fft.fftfreq(length) * scale).view(view) ** 2
    # Over three dimensions 1/f^1.5, which leaves 1/f in each frame.
    amplitude = (1.0 + radius.sqrt()) ** (-len(dims) / 2)
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
