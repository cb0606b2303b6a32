"""Finding a trainer's caches from a checkpoint.

SimpleTuner keeps them in ``cache/vae`` and ``cache/text`` of its working folder, or where the
dataloader configuration says (``data_backend_config`` of config.json names it; its entries have
``cache_dir_vae``, and ``cache_dir`` for text embeddings). Relative paths there are relative to the
folder that training was started in, which nothing records: the folders around the checkpoint and
around the configuration are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.jsonio import read_optional_json
from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checkpoint.runconfig import UPLOADED_CONFIG, RunConfig, load_run_config
from sla_ckpt.errors import RegenError, SlaCkptError
from sla_ckpt.paths import expand
from sla_ckpt.regen.samples.caches import CacheFolders
from sla_ckpt.regen.samples.pairing import CaptionRule

_ANCESTORS = 4
_DATALOADER_NAMES = ("multidatabackend.json", "config/multidatabackend.json")
_CONFIG_NAMES = (UPLOADED_CONFIG, "config.json", "config/config.json")
_MAX_BYTES = 4 << 20


def model_family(checkpoint: Path) -> str | None:
    """The trainer's name of the model family, from the checkpoint's manifest."""
    manifest = read_optional_json(checkpoint / MANIFEST_FILE, limit=_MAX_BYTES)
    metadata = manifest.get("metadata") if isinstance(manifest, Mapping) else None
    family = metadata.get("model_family") if isinstance(metadata, Mapping) else None
    return family if isinstance(family, str) else None


def find_caches(checkpoint: Path, config: Path | None = None) -> CacheFolders | None:
    """Caches that belong to a checkpoint, or None.

    Args:
        checkpoint: The checkpoint directory.
        config: The trainer's config.json, if the user named it.

    Raises:
        UsageError: The named config cannot be read.
        RegenError: The named config names no dataloader configuration that is there.
    """
    around = _around(checkpoint)
    family = model_family(checkpoint)
    for path, bases in _dataloaders(around, config):
        found = _from_dataloader(path, bases, family)
        if found is not None:
            return found
    if config is not None:
        raise RegenError(
            f"{config} names no dataloader configuration with caches that are there",
            hint="name the caches with --data DIR",
            path=str(config),
        )
    for folder in around:
        found = _standard(folder / "cache", family)
        if found is not None:
            return found
    return None


def folders_of(data: Path, checkpoint: Path, config: Path | None = None) -> CacheFolders:
    """What ``--data DIR`` means: latents below DIR, text there or in the ``text`` folder beside it.

    Raises:
        RegenError: No such folder.
    """
    if not data.is_dir():
        raise RegenError(
            f"--data {data} is not a directory",
            hint="name the folder that holds the trainer's caches, usually cache/",
            path=str(data),
        )
    real = data.resolve()
    beside = [parent / "text" for parent in real.parents[:3] if (parent / "text").is_dir()]
    rules: list[CaptionRule] = []
    for path, bases in _dataloaders([*_around(checkpoint), *real.parents[:3]], config):
        found = _from_dataloader(path, bases, model_family(checkpoint))
        if found is not None and any(_related(folder, real) for folder in found.latents):
            beside += found.text
            rules += found.rules
    return CacheFolders((data,), (data, *beside), tuple(rules))


def _related(a: Path, b: Path) -> bool:
    a, b = a.resolve(), b.resolve()
    return a == b or a in b.parents or b in a.parents


def _around(checkpoint: Path) -> list[Path]:
    real = checkpoint.resolve()
    return [real, *real.parents[:_ANCESTORS]]


def _dataloaders(
    around: Sequence[Path], config: Path | None
) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Dataloader configurations, and the folders their relative paths may mean."""
    seen: set[Path] = set()

    def bases_of(path: Path) -> tuple[Path, ...]:
        nearby = path.resolve().parents[:3]
        return tuple(dict.fromkeys((Path.cwd(), *nearby, *around)))

    for run in _run_configs(around, config):
        name = run.text("data_backend_config")
        if name is None or "\0" in name:
            continue
        for base in bases_of(Path(run.path)):
            path = (base / expand(name)).resolve()
            if path.is_file() and path not in seen:
                seen.add(path)
                yield path, (*bases_of(Path(run.path)), *path.parents[:3])
                break
    for folder in around:
        for candidate in _DATALOADER_NAMES:
            path = folder / candidate
            if path.is_file() and path not in seen:
                seen.add(path)
                yield path, bases_of(path)


def _run_configs(around: Sequence[Path], config: Path | None) -> Iterator[RunConfig]:
    if config is not None:
        yield load_run_config(config)
        return
    for folder in around:
        for name in _CONFIG_NAMES:
            if (folder / name).is_file():
                try:
                    yield load_run_config(folder / name)
                except SlaCkptError:
                    continue  # a config.json of something else


def _from_dataloader(path: Path, bases: Sequence[Path], family: str | None) -> CacheFolders | None:
    entries = read_optional_json(path, limit=_MAX_BYTES)
    if not isinstance(entries, list):
        return None
    latents: list[Path] = []
    text: list[Path] = []
    rules: list[CaptionRule] = []

    def place(value: object, entry: Mapping[str, Any]) -> Path | None:
        if not isinstance(value, str) or not value or "\0" in value:
            return None
        filled = value.replace("{model_family}", family or "").replace(
            "{id}", str(entry.get("id", ""))
        )
        candidates = (base / expand(filled) for base in bases)
        return next((folder for folder in candidates if folder.is_dir()), None)

    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("disabled") is True:
            continue
        kind = entry.get("dataset_type", "image")
        if kind == "text_embeds":
            folder = place(entry.get("cache_dir"), entry)
            text += [folder] if folder else []
        elif kind in ("image", "video"):
            folder = place(entry.get("cache_dir_vae"), entry)
            latents += [folder] if folder else []
            prompt = entry.get("instance_prompt")
            rules.append(
                CaptionRule(
                    folder=place(entry.get("instance_data_dir"), entry),
                    strategy=str(entry.get("caption_strategy", "textfile")),
                    prompt=prompt if isinstance(prompt, str) and prompt else None,
                )
            )
    if not latents:
        return None
    return CacheFolders(tuple(latents), tuple(text), tuple(rules), path.name)


def _standard(cache: Path, family: str | None) -> CacheFolders | None:
    vae = cache / "vae"
    if not vae.is_dir():
        return None
    own = vae / family if family else vae
    text = cache / "text"
    return CacheFolders((own if own.is_dir() else vae,), (text if text.is_dir() else cache,))
