"""Pictures and short videos in a folder, with captions, as tensors.

A picture's caption is the ``.txt`` of the same name beside it. For a video model a folder of
frames is one video: its caption is ``<folder>.txt`` beside the folder, or ``caption.txt`` in it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sla_ckpt.errors import FormatError, RegenError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 200_000_000
_MAX_CAPTION_BYTES = 1 << 20


@dataclass(frozen=True)
class PictureItem:
    """One picture, or the frames of one video.

    Attributes:
        frames: Files in order; one for a picture.
        caption: Text; empty when there is none.
        source: How messages name it.
    """

    frames: tuple[Path, ...]
    caption: str
    source: str


@dataclass(frozen=True, eq=False)
class LoadedPicture:
    """Pixels of an item.

    Attributes:
        pixels: [3, F, H, W] float32 in [-1, 1].
        original: (height, width) before resizing.
        crop: (top, left) of the crop in the resized picture.
    """

    pixels: Tensor
    original: tuple[int, int]
    crop: tuple[int, int]


def list_pictures(folder: Path, *, video: bool) -> list[PictureItem]:
    """Pictures of a folder by name; for ``video``, one item per folder of frames.

    Raises:
        RegenError: No such folder, or nothing usable in it.
    """
    if not folder.is_dir():
        raise RegenError(
            f"--images {folder} is not a directory",
            hint="name a folder with a handful of pictures and captions in .txt files",
            path=str(folder),
        )
    pictures = _pictures_in(folder)
    items = [
        PictureItem((path,), _text(path.with_suffix(".txt")) or "", path.name)
        for path in pictures
        if not video or path.with_suffix(".txt").is_file()
    ]
    if video:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        # Loose frames without captions of their own: the folder itself is the video.
        for clip in folders if folders or items else [folder]:
            frames = _pictures_in(clip)
            if frames:
                caption = _text(clip.parent / f"{clip.name}.txt") or _text(clip / "caption.txt")
                items.append(PictureItem(tuple(frames), caption or "", f"{clip.name}/"))
    if not items:
        kinds = ", ".join(sorted(SUFFIXES))
        raise RegenError(
            f"{folder} holds no pictures ({kinds})",
            hint="for a video model put each video's frames into a folder of their own"
            if video
            else "name a folder with a handful of pictures and captions in .txt files",
            path=str(folder),
        )
    return items


def _pictures_in(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted((path for path in found if path.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """``frame_10`` after ``frame_9``."""
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as handle:
            return handle.read(_MAX_CAPTION_BYTES).decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) after the EXIF rotation.

    Raises:
        FormatError: Not a readable picture.
    """
    with _opened(path) as picture:
        width, height = picture.size
        rotated = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if rotated else (height, width)


def load_picture(item: PictureItem, height: int, width: int, frames: int) -> LoadedPicture:
    """Resize to cover ``height`` × ``width``, crop the centre, scale to [-1, 1].

    Raises:
        FormatError: A file is no readable picture.
        RegenError: Fewer frames than asked for.
    """
    if len(item.frames) < frames:
        raise RegenError(f"{item.source} has {len(item.frames)} frames, {frames} are needed")
    loaded = [_load(path, height, width) for path in item.frames[:frames]]
    pixels = torch.stack([pixels for pixels, _, _ in loaded], dim=1)
    return LoadedPicture(pixels, loaded[0][1], loaded[0][2])


def _load(path: Path, height: int, width: int) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    from PIL import Image, ImageOps

    with _opened(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("RGBA", "LA", "P"):
            colours = picture.convert("RGBA")
            white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(white, colours)
        picture = picture.convert("RGB")
        original = (picture.height, picture.width)
        scale = max(height / picture.height, width / picture.width)
        covering = (
            max(width, round(picture.width * scale)),
            max(height, round(picture.height * scale)),
        )
        if covering != picture.size:
            picture = picture.resize(covering, Image.Resampling.LANCZOS)
        left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        values = np.asarray(picture, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1).contiguous(), original, (top, left)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A decoded picture; whatever Pillow says about a bad file becomes one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, lower limit on the size only warns
            picture = Image.open(handle)
            pixels = picture.width * picture.height
            if pixels <= MAX_PIXELS:
                picture.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise FormatError(
            f"{path} is not a readable picture ({str(error)[:80]})", path=str(path)
        ) from error
    with picture:
        if pixels > MAX_PIXELS:
            raise FormatError(f"{path} has {pixels:,} pixels, over {MAX_PIXELS:,}", path=str(path))
        yield picture
