"""The base model of a LoRA: named by the user, or by a configuration beside the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.weights import STEM
from sla_ckpt.errors import HubError, RegenError
from sla_ckpt.paths import expand
from sla_ckpt.regen.backbone_files import (
    DENOISER_FOLDERS,
    LORA_FILE,
    BackboneFiles,
    find_backbone,
    read_json,
)

PIPELINE_INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
#: SimpleTuner's configuration: uploaded copy, and the one training was started with.
_CONFIG_NAMES = ("simpletuner_config.json", "config.json")


@dataclass(frozen=True)
class BaseReference:
    """A base model as something names it.

    Attributes:
        name: A local folder or a Hub id ``org/model[@revision]``.
        subfolder: Denoiser folder, None for the usual ones.
        named_by: The file that says so, for messages.
    """

    name: str
    subfolder: str | None
    named_by: str


def resolve_base_model(
    checkpoint: Path,
    base_model: str | Path | None,
    *,
    named_in_file: str | None = None,
    denoiser: str | None = None,
) -> tuple[str, BackboneFiles]:
    """Find, and for a Hub id download, the denoiser of a LoRA's base.

    Args:
        checkpoint: The LoRA checkpoint.
        base_model: What the user named; None looks for a configuration that names it.
        named_in_file: The base that the LoRA file's own metadata names; asked last.
        denoiser: Subfolder of the base to take.

    Returns:
        How reports name the base, and its files.

    Raises:
        RegenError: Nothing names the base, or it is no diffusers model.
        HubError: The Hub refused or could not be reached.
    """
    if base_model is not None:
        reference = BaseReference(str(base_model), denoiser, "--base-model")
        return _open(reference, (Path.cwd(),))
    found = next(_named_beside(checkpoint), None)
    if found is None and named_in_file:
        found = BaseReference(named_in_file, None, str(checkpoint / LORA_FILE))
    if found is not None:
        if denoiser is not None:
            found = replace(found, subfolder=denoiser)
        return _open(found, (checkpoint, checkpoint.parent, Path.cwd()))
    raise RegenError(
        f"{checkpoint / LORA_FILE} is a LoRA, and nothing beside it names its base model",
        hint="name it: --base-model org/model, or --base-model DIR",
        path=str(checkpoint),
    )


def _named_beside(checkpoint: Path) -> Iterator[BaseReference]:
    for folder in (checkpoint, checkpoint.resolve().parent):
        for name in _CONFIG_NAMES:
            path = folder / name
            if path.is_file():
                yield from _from_config(read_json(path), str(path))
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            base = read_json(adapter).get("base_model_name_or_path")
            if isinstance(base, str) and base:
                yield BaseReference(base, None, str(adapter))
        card = folder / "README.md"
        if card.is_file():
            found = _from_card(card)
            if found:
                yield BaseReference(found, None, str(card))


def _from_config(config: dict[str, Any], path: str) -> Iterator[BaseReference]:
    """SimpleTuner's keys, with or without the dashes its config.json may carry."""
    plain = {key.lstrip("-"): value for key, value in config.items()}
    for kind in ("transformer", "unet"):
        name = plain.get(f"pretrained_{kind}_model_name_or_path")
        if isinstance(name, str) and name and name != "None":
            subfolder = plain.get(f"pretrained_{kind}_subfolder")
            wanted = subfolder if isinstance(subfolder, str) and subfolder != "None" else None
            yield BaseReference(name, wanted or None, path)
    name = plain.get("pretrained_model_name_or_path")
    if isinstance(name, str) and name and name != "None":
        yield BaseReference(name, None, path)


def _from_card(path: Path) -> str | None:
    """``base_model:`` of a model card's front matter."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    front = text[3:].partition("\n---")[0]
    found = re.search(r"^base_model:\s*(?:\n\s*-\s*)?[\"']?([^\s\"'\[\]]+)", front, re.MULTILINE)
    return found.group(1) if found else None


def resolve_pipeline(checkpoint: Path, pipeline: str | Path | None) -> tuple[str, Path]:
    """Find, and for a Hub id download, the pipeline whose VAE and text encoders encode samples.

    The denoiser's weights are not downloaded.

    Args:
        checkpoint: The checkpoint directory.
        pipeline: What the user named; None looks for a pipeline in or beside the checkpoint, then
            for a configuration that names one.

    Returns:
        How reports name it, and its folder.

    Raises:
        RegenError: Nothing names one, or what is named is none.
        HubError: The Hub refused or could not be reached.
    """
    references = [*_named_beside(checkpoint)]
    if pipeline is not None:
        references.insert(0, BaseReference(str(pipeline), None, "--base-model"))
    else:
        for folder in (checkpoint, checkpoint.resolve().parent / "pipeline"):
            if (folder / PIPELINE_INDEX).is_file():
                return folder.name, folder
    roots = (Path.cwd(), checkpoint, checkpoint.parent)
    for reference in references:
        local = _local_folder(reference, roots)
        if local is None and _HUB_ID.fullmatch(reference.name):
            local = _download(reference, _pipeline_files)
        # A denoiser's folder may be named too; its pipeline is the folder around it.
        for folder in (local, local.resolve().parent) if local is not None else ():
            if (folder / PIPELINE_INDEX).is_file():
                return reference.name, folder
    if references:
        raise RegenError(
            f"{references[0].name} (from {references[0].named_by}) is not a pipeline "
            f"(no {PIPELINE_INDEX})",
            hint="name the base model's pipeline, with its VAE and text encoders, "
            "with --base-model org/model or --base-model DIR",
        )
    raise RegenError(
        "--images needs the base model's VAE and text encoders, and nothing names them",
        hint="name its pipeline: --base-model org/model, or --base-model DIR",
        path=str(checkpoint),
    )


def _local_folder(reference: BaseReference, roots: Sequence[Path]) -> Path | None:
    folders = (root / expand(reference.name) for root in roots)
    return next((folder for folder in folders if folder.is_dir()), None)


def _open(reference: BaseReference, roots: Sequence[Path]) -> tuple[str, BackboneFiles]:
    folder = _local_folder(reference, roots)
    if folder is None:
        if Path(reference.name).is_absolute() or not _HUB_ID.fullmatch(reference.name):
            raise RegenError(
                f"base model {reference.name!r} (from {reference.named_by}) is neither a folder "
                "nor a Hub id",
                hint="name a diffusers folder or org/model with --base-model",
            )
        folder = _download(reference, _denoiser_files)
    files = find_backbone(folder, denoiser=reference.subfolder) if folder is not None else None
    if files is None:
        raise RegenError(
            f"base model {reference.name} (from {reference.named_by}) has no denoiser in "
            "diffusers format",
            hint="name a diffusers folder or repository with --base-model",
        )
    return reference.name, files


def _download(
    reference: BaseReference, choose: Callable[[Sequence[str], BaseReference], list[str]]
) -> Path | None:
    """The chosen files of a Hub repository, nothing else; None when it has none of them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repo, _, revision = reference.name.partition("@")
    try:
        wanted = choose(HfApi().list_repo_files(repo, revision=revision or None), reference)
        if not wanted:
            return None
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except OfflineModeIsEnabled:
        return _cached(repo, revision or "main", reference)
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise HubError(
            f"cannot download base model {reference.name} (from {reference.named_by}): "
            f"{f'HTTP {status}' if status else type(error).__name__}",
            hint="check the name, and for a gated or private model `hf auth login`; "
            "or name a local copy with --base-model DIR",
        ) from error
    except OSError as error:
        raise HubError(
            f"cannot download base model {reference.name} (from {reference.named_by}): "
            f"{type(error).__name__}",
            hint="check the network, or name a local copy with --base-model DIR",
        ) from error


def _cached(repo: str, revision: str, reference: BaseReference) -> Path:
    """What an earlier download left in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    folders = (reference.subfolder,) if reference.subfolder else DENOISER_FOLDERS
    for name in (PIPELINE_INDEX, *(f"{folder}/config.json" for folder in folders), "config.json"):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parents[name.count("/")]
    raise HubError(
        f"base model {reference.name} is not in the Hub's cache, and offline mode is on",
        hint="unset HF_HUB_OFFLINE, or name a local copy with --base-model DIR",
    )


def _denoiser_files(listed: Sequence[str], reference: BaseReference) -> list[str]:
    """Exactly the files :func:`find_backbone` will read, so that no other variant is fetched.

    And the scheduler's config: it tells epsilon from v prediction and holds the noise schedule.
    """
    names = set(listed)
    folders = (reference.subfolder,) if reference.subfolder else DENOISER_FOLDERS
    prefix = next((f"{f}/" for f in folders if f"{f}/config.json" in names), "")
    if f"{prefix}config.json" not in names:
        return []
    inside = sorted(n for n in names if n.startswith(f"{prefix}{STEM}"))
    index = f"{prefix}{STEM}.safetensors.index.json"
    if index in names:
        shards = [n for n in inside if re.search(rf"/?{STEM}-\d+-of-\d+\.safetensors$", n)]
        chosen = [index, *shards]
    elif f"{prefix}{STEM}.safetensors" in names:
        chosen = [f"{prefix}{STEM}.safetensors"]
    else:
        chosen = [n for n in inside if ".safetensors" in n]
    beside = [name for name in (SCHEDULER_CONFIG, PIPELINE_INDEX) if name in names]
    return [f"{prefix}config.json", *chosen, *beside]


def _pipeline_files(listed: Sequence[str], reference: BaseReference) -> list[str]:
    """Configs, tokenizers, and the plain safetensors of everything but the denoiser."""
    if PIPELINE_INDEX not in listed:
        return []
    chosen = [PIPELINE_INDEX]
    for name in listed:
        folder, _, file = name.partition("/")
        if not file or folder.startswith(DENOISER_FOLDERS):
            continue
        # model.fp16.safetensors is a second copy of model.safetensors.
        is_variant = re.search(r"\.(fp16|bf16|fp32|ema|non_ema)\.", file) is not None
        if file.endswith((".json", ".txt", ".model")) or (
            file.endswith(".safetensors") and not is_variant
        ):
            chosen.append(name)
    return chosen
