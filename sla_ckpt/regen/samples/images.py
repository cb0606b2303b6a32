"""``--images DIR``: a handful of pictures, encoded with the base model's own pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sla_ckpt.errors import FormatError, RegenError
from sla_ckpt.regen.base_model import resolve_pipeline
from sla_ckpt.regen.families.base import Config, FamilyAdapter, Sample, Size
from sla_ckpt.regen.samples.encoders import load_encoders
from sla_ckpt.regen.samples.pictures import (
    LoadedPicture,
    PictureItem,
    list_pictures,
    load_picture,
    picture_size,
)
from sla_ckpt.regen.samples.request import SampleRequest, SampleSet
from sla_ckpt.regen.samples.sizes import (
    IMAGE_SIDE,
    VIDEO_SIZE,
    compression,
    fit_to_size,
    wanted_size,
)

#: Trainers align pictures to this where they are large enough.
_ALIGNMENT = 64


def load_images(
    checkpoint: Path,
    request: SampleRequest,
    adapter: FamilyAdapter,
    config: Config,
    *,
    device: torch.device | str,
) -> SampleSet:
    """Encode pictures (frame folders for a video model) and their captions.

    Pictures keep their shape, at most a megapixel, unless the request names a size.

    Args:
        checkpoint: The checkpoint directory, which may name the base pipeline.
        request: ``images`` is the folder; ``pipeline`` the base pipeline if named.
        adapter: Of the model.
        config: The denoiser's config.json.
        device: Where to encode.

    Raises:
        RegenError: No pictures, no base pipeline, one of another family, nothing readable.
        HubError: The base pipeline cannot be downloaded.
    """
    assert request.images is not None
    size = wanted_size(adapter, config, request)
    items = list_pictures(request.images, video=adapter.kind == "video")[: request.count]
    label, folder = resolve_pipeline(checkpoint, request.pipeline)
    skipped: list[str] = []
    loaded = _load_all(items, size, adapter, config, request, skipped)
    target = torch.device("cuda" if device == "auto" else device)
    encoders = load_encoders(folder, target)
    try:
        texts = encoders.encode_captions([item.caption for item, _ in loaded])
        samples = []
        for (item, picture), text in zip(loaded, texts, strict=True):
            latents = encoders.encode_pixels(picture.pixels)
            conditioning = {**text, "time_ids": _time_ids(picture)}
            raw = Sample(latents, conditioning, item.source)
            samples.append(
                fit_to_size(adapter, config, _prepare(adapter, config, raw, label), None, request)
            )
    finally:
        encoders.close()
    notes = [f"{len(skipped)} pictures skipped, first: {skipped[0]}"] if skipped else []
    bare = sum(not item.caption for item, _ in loaded)
    if bare:
        notes.append(f"{bare} of {len(loaded)} pictures have no caption (.txt beside them)")
    what = "videos" if adapter.kind == "video" else "pictures"
    return SampleSet(
        samples=tuple(samples),
        kind="real",
        description=f"{len(samples)} {what} from {request.images}, encoded with {label}",
        warnings=tuple(notes),
    )


def _prepare(adapter: FamilyAdapter, config: Config, sample: Sample, label: str) -> Sample:
    try:
        return adapter.prepare(config, sample)
    except RegenError as error:
        raise RegenError(
            f"{error.message} (encoded with {label})",
            hint="is that this model's base pipeline? name another with --base-model",
        ) from error


def _load_all(
    items: list[PictureItem],
    size: Size | None,
    adapter: FamilyAdapter,
    config: Config,
    request: SampleRequest,
    skipped: list[str],
) -> list[tuple[PictureItem, LoadedPicture]]:
    spatial, temporal = compression(adapter, config)
    loaded = []
    for item in items:
        try:
            frames = _frames(item, request.frames, temporal)
            height, width = (
                (size.height, size.width)
                if size is not None
                else _own_size(item, spatial, video=adapter.kind == "video")
            )
            shape = adapter.latent_shape(config, Size(height, width, frames))
            height, width = shape[-2] * spatial, shape[-1] * spatial
            loaded.append((item, load_picture(item, height, width, frames)))
        except FormatError as error:
            skipped.append(error.message)
    if not loaded:
        raise RegenError(
            f"none of the {len(items)} pictures in {request.images} can be used; "
            f"the first: {skipped[0]}",
            path=str(request.images),
        )
    return loaded


def _frames(item: PictureItem, wanted: int | None, temporal: int) -> int:
    """1 + a multiple of the VAE's step, as video VAEs take them."""
    most = min(len(item.frames), wanted or VIDEO_SIZE.frames)
    return 1 + (most - 1) // temporal * temporal


def _own_size(item: PictureItem, spatial: int, *, video: bool) -> tuple[int, int]:
    """The picture's size, at most the usual area, aligned, never enlarged."""
    height, width = picture_size(item.frames[0])
    area = VIDEO_SIZE.height * VIDEO_SIZE.width if video else IMAGE_SIDE * IMAGE_SIDE
    scale = min(1.0, (area / (height * width)) ** 0.5)
    step = max(2 * spatial, 16)
    if min(height, width) * scale >= 8 * _ALIGNMENT:
        step = max(step, _ALIGNMENT)
    return (
        max(step, int(height * scale) // step * step),
        max(step, int(width * scale) // step * step),
    )


def _time_ids(picture: LoadedPicture) -> Tensor:
    """SDXL's size conditioning: original size, crop corner, target size."""
    height, width = picture.pixels.shape[-2:]
    return torch.tensor([*picture.original, *picture.crop, height, width], dtype=torch.float32)
