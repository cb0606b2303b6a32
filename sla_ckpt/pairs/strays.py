"""Where a pair that no denoiser makes comes from.

SLA patches attention process-wide, so a VAE or an image encoder that runs while it is on (as in
SimpleTuner's validation) leaves a pair of its own in the state. It is never trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: head_dim of the unmasked attention in models that run beside a denoiser.
STRAY_SOURCES: Mapping[int, str] = MappingProxyType(
    {
        512: "the VAE (AutoencoderKL: SD, SDXL, SD3, Flux)",
        384: "the VAE (Wan or Qwen-Image)",
        80: "the CLIP image encoder",
        72: "the SigLIP image encoder",
    }
)


def stray_source(head_dim: int) -> str | None:
    """What probably made a pair of this head_dim, as a phrase; None when nothing is known."""
    return STRAY_SOURCES.get(head_dim)
