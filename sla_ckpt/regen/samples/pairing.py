"""Which caption belongs to which cached latents.

SimpleTuner names a VAE cache file after the picture's stem (or the stem's sha256) and a text cache
file after the caption's md5. So a picture's text file beside it, or its caption in the dataset's
``aspect_ratio_bucket_metadata_*.json``, leads from one to the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sla_ckpt.checkpoint.jsonio import read_optional_json

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mp4", ".mov", ".avi",
     ".mkv", ".webm"}
)  # fmt: skip
MAX_CAPTION_BYTES = 1 << 20
MAX_METADATA_BYTES = 256 << 20
MAX_ENTRIES = 500_000
EMPTY_CAPTION = hashlib.md5(b"", usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class CaptionRule:
    """How one dataset makes its captions (from the dataloader configuration).

    Attributes:
        folder: instance_data_dir.
        strategy: ``textfile``, ``filename`` or ``instanceprompt``; others are not followed.
        prompt: instance_prompt, if there is one.
    """

    folder: Path | None
    strategy: str = "textfile"
    prompt: str | None = None


@dataclass
class CaptionIndex:
    """Names of pictures and text files, by what a VAE cache file may be called."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    stored: dict[str, list[str]] = field(default_factory=dict)
    rules: tuple[CaptionRule, ...] = ()

    def add_name(self, path: Path) -> None:
        for key in _keys(path.stem):
            self.files.setdefault(key, []).append(path)

    def captions(self, cached: Path) -> Iterator[str]:
        """Captions that latents of this name may have had, likeliest first."""
        key = cached.name.removesuffix(".pt")
        found = self.files.get(key, [])
        # The cache keeps the dataset's subfolders, which tells equal stems apart.
        near = [path for path in found if path.parent.name == cached.parent.name] or found
        for path in near:
            yield from _with_prompts(_text_beside(path), self.rules)
        yield from _with_prompts(self.stored.get(key, ()), self.rules)
        for rule in self.rules:
            if rule.strategy == "filename":
                for path in near:
                    yield from (path.stem.replace("_", " "), path.stem)
            if rule.strategy == "instanceprompt" and rule.prompt is not None:
                yield rule.prompt


def caption_hash(caption: str) -> str:
    """The name SimpleTuner gives a caption's text embedding."""
    return hashlib.md5(caption.encode(), usedforsecurity=False).hexdigest()


def build_index(folders: Iterable[Path], rules: tuple[CaptionRule, ...]) -> CaptionIndex:
    """List pictures, text files and dataset metadata below some folders."""
    index = CaptionIndex(rules=rules)
    for folder in dict.fromkeys(folders):
        for path in walk(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES or path.suffix.lower() == ".txt":
                index.add_name(path)
            elif path.suffix == ".json" and path.name.startswith("aspect_ratio_bucket_"):
                _add_metadata(index, path)
    return index


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order; checkpoints and hidden folders are left out.

    Links to folders are followed (datasets are often linked), each real folder once.
    """
    seen = 0
    visited: set[str] = set()
    for root, directories, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            directories.clear()
            continue
        visited.add(real)
        directories[:] = sorted(
            name for name in directories if not name.startswith((".", "checkpoint-"))
        )
        for name in sorted(names):
            seen += 1
            if seen > MAX_ENTRIES:
                return
            yield Path(root, name)


def _keys(stem: str) -> tuple[str, str]:
    return stem, hashlib.sha256(stem.encode()).hexdigest()


def _text_beside(path: Path) -> tuple[str, ...]:
    text = path if path.suffix.lower() == ".txt" else path.with_suffix(".txt")
    try:
        with text.open("rb") as handle:
            content = handle.read(MAX_CAPTION_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ()
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return tuple(dict.fromkeys((content, content.strip(), *lines)))


def _with_prompts(captions: Iterable[str], rules: Iterable[CaptionRule]) -> Iterator[str]:
    prompts = [rule.prompt for rule in rules if rule.prompt]
    for caption in captions:
        yield caption
        for prompt in prompts:
            yield f"{prompt} {caption}"


def _add_metadata(index: CaptionIndex, path: Path) -> None:
    """Captions and names from a dataset's metadata file; other shapes are skipped."""
    content = read_optional_json(path, limit=MAX_METADATA_BYTES)
    if not isinstance(content, Mapping):
        return
    for name, entry in content.items():
        if isinstance(entry, Mapping):
            captions = entry.get("captions", entry.get("caption"))
            if isinstance(captions, str):
                captions = [captions]
            if isinstance(captions, list):
                texts = [text for text in captions if isinstance(text, str)]
                for key in _keys(Path(name).stem):
                    index.stored.setdefault(key, []).extend(texts)
    buckets = content.get("aspect_ratio_bucket_indices")
    if isinstance(buckets, Mapping):
        for names in buckets.values():
            for name in names if isinstance(names, list) else ():
                if isinstance(name, str):
                    index.add_name(path.parent / name)
