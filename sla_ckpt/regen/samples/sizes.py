"""Sizes of samples: cropping, defaults, and those too small for topk."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sla_ckpt.blocks import fewest_tokens, kept_blocks
from sla_ckpt.errors import RegenError, UsageError
from sla_ckpt.regen.families.base import Config, FamilyAdapter, Sample, Size
from sla_ckpt.regen.samples.request import SampleRequest
from sla_ckpt.state import SLASettings

IMAGE_SIDE = 1024
VIDEO_SIZE = Size(480, 832, 17)
#: On a CPU the reference kernel's time is what counts.
CPU_TOKENS = 1024
_PROBE = 1024
_PROBE_FRAMES = 17


def check_tokens(tokens: int | None, settings: SLASettings, what: str) -> None:
    """Refuse a size at which topk keeps no block: the trainer's kernel gives NaN there.

    Args:
        tokens: Of the shortest attention; None when not known, which passes.
        settings: topk and blkk.
        what: How the message names the size.

    Raises:
        RegenError: No block would be kept.
    """
    if tokens is None or settings.topk <= 0 or kept_blocks(tokens, settings) >= 1:
        return
    raise RegenError(
        f"{what} has {tokens} tokens; with topk {settings.topk:g} and blocks of {settings.blkk} "
        "no block is kept",
        hint=f"use at least {fewest_tokens(settings)} tokens: a larger --resolution, or --tokens",
    )


def wanted_size(
    adapter: FamilyAdapter, config: Config, request: SampleRequest, *, default: Size | None = None
) -> Size | None:
    """The size that the request names, checked; ``default`` when it names none.

    Raises:
        RegenError: topk keeps no block at this size.
        UsageError: Both a resolution and a token count, or a value out of range.
    """
    if request.resolution is not None and request.tokens is not None:
        raise UsageError("--resolution and --tokens name the same thing", hint="use one of them")
    if request.count < 1:
        raise UsageError(f"--samples {request.count} is too few", hint="use 1 or more")
    if request.frames is not None and request.frames < 1:
        raise UsageError(f"--frames {request.frames} is too few", hint="use 1 or more")
    frames = request.frames or (default.frames if default else 1)
    if request.resolution is not None:
        width, height = request.resolution
        if min(width, height) < 1:
            raise UsageError(f"--resolution {width}x{height} is too small")
        size = Size(height, width, frames)
    elif request.tokens is not None:
        check_tokens(request.tokens, request.settings, f"--tokens {request.tokens}")
        size = replace(adapter.size_for_tokens(config, request.tokens), frames=frames)
    elif default is not None:
        size = default if request.frames is None else replace(default, frames=frames)
    else:
        return None
    tokens = adapter.tokens_for(config, size.height, size.width, size.frames)
    check_tokens(tokens, request.settings, f"{size.width}x{size.height}")
    return size


def default_size(
    adapter: FamilyAdapter, config: Config, settings: SLASettings, *, on_cpu: bool
) -> Size:
    """A size for made-up samples: what the model was made for, or a small one on a CPU."""
    if on_cpu:
        try:
            return adapter.size_for_tokens(config, max(CPU_TOKENS, fewest_tokens(settings)))
        except RegenError:
            pass  # token counts of this family are not known; the usual size then
    if adapter.kind == "video":
        return VIDEO_SIZE
    spatial, _ = compression(adapter, config)
    side = config.get("sample_size")
    if isinstance(side, int) and side * spatial <= 2 * IMAGE_SIDE and side > 1:
        size = Size(side * spatial, side * spatial)
        tokens = adapter.tokens_for(config, size.height, size.width)
        if tokens is None or kept_blocks(tokens, settings) >= 1:
            return size
    return Size(IMAGE_SIDE, IMAGE_SIDE)


def compression(adapter: FamilyAdapter, config: Config) -> tuple[int, int]:
    """Pixels per latent each way, and frames per latent frame beyond the first."""
    shape = adapter.latent_shape(config, Size(_PROBE, _PROBE, _PROBE_FRAMES))
    spatial = max(1, _PROBE // shape[-1])
    if len(shape) < 4 or shape[1] < 2:
        return spatial, 1
    return spatial, max(1, (_PROBE_FRAMES - 1) // (shape[1] - 1))


def pixel_size(adapter: FamilyAdapter, config: Config, latents: Tensor) -> Size:
    """The size in pixels and frames that prepared latents stand for."""
    spatial, temporal = compression(adapter, config)
    frames = (latents.shape[1] - 1) * temporal + 1 if latents.ndim == 4 else 1
    return Size(latents.shape[-2] * spatial, latents.shape[-1] * spatial, frames)


def fit_to_size(
    adapter: FamilyAdapter,
    config: Config,
    sample: Sample,
    size: Size | None,
    request: SampleRequest,
) -> Sample:
    """Crop a prepared sample to a size (from its centre; videos keep their first frames).

    Raises:
        RegenError: The sample is smaller than that, or topk keeps no block at its own size.
    """
    if size is not None:
        latents = sample.latents
        shape = adapter.latent_shape(config, size)
        rows, columns = shape[-2:]
        frames = shape[1] if len(shape) == 4 and request.frames is not None else None
        have = pixel_size(adapter, config, latents)
        if (
            latents.shape[-2] < rows
            or latents.shape[-1] < columns
            or (frames is not None and latents.shape[1] < frames)
        ):
            raise RegenError(
                f"{sample.source} is {have.width}x{have.height} ({have.frames} frames), smaller "
                f"than {size.width}x{size.height} ({size.frames} frames)",
                hint="use a smaller --resolution or --frames",
            )
        top = (latents.shape[-2] - rows) // 2
        left = (latents.shape[-1] - columns) // 2
        latents = latents[..., top : top + rows, left : left + columns]
        if frames is not None:
            latents = latents[:, :frames]
        sample = replace(sample, latents=latents.contiguous())
    have = pixel_size(adapter, config, sample.latents)
    tokens = adapter.tokens_for(config, have.height, have.width, have.frames)
    check_tokens(tokens, request.settings, f"{sample.source} ({have.width}x{have.height})")
    return sample
