"""Samples from a trainer's VAE and text caches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sla_ckpt.errors import FormatError, RegenError
from sla_ckpt.regen.families.base import Config, FamilyAdapter, Sample
from sla_ckpt.regen.samples.cache_files import TEXT_NAME, read_latents, read_text_embedding
from sla_ckpt.regen.samples.pairing import (
    EMPTY_CAPTION,
    CaptionIndex,
    CaptionRule,
    build_index,
    caption_hash,
    walk,
)
from sla_ckpt.regen.samples.request import SampleRequest, SampleSet
from sla_ckpt.regen.samples.sizes import fit_to_size, wanted_size

#: Torch files that trainers keep near caches and that are none.
_NOT_CACHES = frozenset({"sla_attention.pt", "ema_model.pt", "scaler.pt"})
#: A cache of another family is given up on after this many useless files in a row.
_MAX_USELESS = 64
#: How many latents are looked at in search of ones whose caption is known.
_MAX_LOOKED_AT = 4096


@dataclass(frozen=True)
class CacheFolders:
    """Where a trainer's caches lie.

    Attributes:
        latents: Folders with VAE cache files, in subfolders too.
        text: Folders with text cache files.
        rules: How the datasets make their captions.
        named_by: What led here, for reports.
    """

    latents: tuple[Path, ...]
    text: tuple[Path, ...]
    rules: tuple[CaptionRule, ...] = ()
    named_by: str = ""


@dataclass
class _TextCache:
    """Text cache files of one family, by caption hash."""

    paths: Mapping[str, Path]
    loaded: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        if key not in self.paths or key in self.broken:
            return None
        if key not in self.loaded:
            try:
                self.loaded[key] = read_text_embedding(self.paths[key])
            except FormatError as error:
                self.broken[key] = error.message
                return None
        return self.loaded[key]

    def others(self) -> Iterator[str]:
        """Keys for latents whose caption is not known: non-empty captions first."""
        keys = sorted(self.paths, key=lambda key: (key == EMPTY_CAPTION, key))
        usable = [key for key in keys if key != EMPTY_CAPTION] or keys
        while True:
            live = [key for key in usable if key not in self.broken]
            if not live:
                return
            yield from live


def load_caches(
    folders: CacheFolders,
    request: SampleRequest,
    adapter: FamilyAdapter,
    config: Config,
    *,
    family: str | None = None,
) -> SampleSet:
    """Load and pair cached latents and captions.

    Args:
        folders: Where they are.
        request: How many, and their size.
        adapter: Of the model; checks each sample.
        config: The model's config.json.
        family: The trainer's name of the model family (``flux``), if known.

    Raises:
        RegenError: No cache there, or none of its files fits this model.
    """
    size = wanted_size(adapter, config, request)
    latents, text_paths = _list_files(folders)
    where = ", ".join(str(folder) for folder in folders.latents)
    if not latents:
        raise RegenError(
            f"no cached latents in {where}",
            hint="name the folder that holds the trainer's VAE cache (.pt files), or use --images",
            path=where,
        )
    needs_text = any(spec.required for spec in adapter.conditioning(config).values())
    if not text_paths and needs_text:
        raise RegenError(
            f"{len(latents)} cached latents in {where}, but no cached text embeddings "
            "(<md5>-<family>.pt)",
            hint="name the folder that holds both caches, usually cache/",
            path=where,
        )
    text = _TextCache(_of_family(text_paths, family, adapter.name))
    index = build_index(
        [*folders.latents, *(rule.folder for rule in folders.rules if rule.folder)], folders.rules
    )
    loader = _Loader(adapter, config, request, text, text.others())
    samples: list[Sample] = []
    guessed = 0
    for path, key in _paired_first(latents, index, text, request.count):
        if len(samples) == request.count or loader.useless_in_a_row > _MAX_USELESS:
            break
        try:
            samples.append(fit_to_size(adapter, config, loader.sample(path, key), size, request))
        except (FormatError, RegenError) as error:
            loader.skip(error.message)
            continue
        loader.useless_in_a_row = 0
        guessed += key is None
    if not samples:
        raise RegenError(
            f"none of the {len(latents)} cached latents in {where} can be used; "
            f"the first: {loader.reasons[0]}",
            hint="name the cache that was made for this model family with --data, or use --images",
            path=where,
        )
    return _describe(samples, guessed, loader, folders, where)


class _Loader:
    """Makes samples of cache files and counts what could not be used."""

    def __init__(
        self,
        adapter: FamilyAdapter,
        config: Config,
        request: SampleRequest,
        text: _TextCache,
        others: Iterator[str],
    ) -> None:
        self._adapter = adapter
        self._config = config
        self._request = request
        self._text = text
        self._others = others
        self.reasons: list[str] = []
        self.useless_in_a_row = 0

    def skip(self, reason: str) -> None:
        self.reasons.append(reason)
        self.useless_in_a_row += 1

    @property
    def broken_text(self) -> list[str]:
        return list(self._text.broken.values())

    def sample(self, path: Path, key: str | None) -> Sample:
        latents, beside = read_latents(path)
        conditioning = self._text.load(key) if key is not None else None
        if conditioning is None:
            conditioning = self._any_text()
        raw = Sample(latents, {**conditioning, **beside}, path.name)
        return self._adapter.prepare(self._config, raw)

    def _any_text(self) -> Mapping[str, Tensor]:
        for key in self._others:
            found = self._text.load(key)
            if found is not None:
                return found
        if self._text.broken:
            raise RegenError(next(iter(self._text.broken.values())))
        return {}


def _list_files(folders: CacheFolders) -> tuple[list[Path], dict[str, dict[str, Path]]]:
    """VAE cache files in an even but fixed order, and text cache files by family and hash."""
    latents: dict[Path, None] = {}
    text: dict[str, dict[str, Path]] = {}
    for folder in dict.fromkeys((*folders.latents, *folders.text)):
        for path in walk(folder):
            if path.suffix != ".pt" or path.name in _NOT_CACHES:
                continue
            found = TEXT_NAME.fullmatch(path.name)
            if found:
                text.setdefault(found[2], {}).setdefault(found[1], path)
            elif folder in folders.latents:
                latents[path] = None
    # Names in order would give neighbours of one dataset; their hashes spread over all of it.
    ordered = sorted(latents, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return ordered, text


def _of_family(
    text: Mapping[str, Mapping[str, Path]], family: str | None, name: str
) -> Mapping[str, Path]:
    """The text cache of the model's family; the largest one when the family is not known."""
    for wanted in (family, name):
        if wanted is not None and wanted in text:
            return text[wanted]
    return max(text.values(), key=len) if text else {}


def _paired_first(
    latents: Sequence[Path], index: CaptionIndex, text: _TextCache, count: int
) -> Iterator[tuple[Path, str | None]]:
    """Latents with the hash of their caption; then those whose caption is not known."""
    unknown: list[Path] = []
    for number, path in enumerate(latents):
        key = None
        if number < max(_MAX_LOOKED_AT, count):
            hashes = (caption_hash(caption) for caption in index.captions(path))
            key = next((value for value in hashes if value in text.paths), None)
        if key is None:
            unknown.append(path)
        else:
            yield path, key
    for path in unknown:
        yield path, None


def _describe(
    samples: list[Sample], guessed: int, loader: _Loader, folders: CacheFolders, where: str
) -> SampleSet:
    shapes = Counter("x".join(map(str, sample.latents.shape)) for sample in samples)
    shown = ", ".join(f"{count} of {shape}" for shape, count in shapes.most_common(3))
    paired = len(samples) - guessed
    pairing = f"{paired} with their own caption"
    notes = []
    if guessed:
        pairing += f", {guessed} with another cached caption"
        notes.append(
            f"the captions of {guessed} of {len(samples)} samples are not known; "
            "other cached captions are used"
        )
    skipped = [*loader.reasons, *loader.broken_text]
    if skipped:
        notes.append(f"{len(skipped)} cache files skipped, first: {skipped[0]}")
    named = f" (named by {folders.named_by})" if folders.named_by else ""
    return SampleSet(
        samples=tuple(samples),
        kind="real",
        description=f"{len(samples)} cached samples from {where}{named}: {shown}; {pairing}",
        warnings=tuple(notes),
    )
