"""What kind of thing a folder or repository is, and where its parts are.

Sources: SimpleTuner's ``checkpoint-N`` folders, diffusers' ``save_pretrained`` and pipeline
folders, PEFT and LyCORIS adapter files. Only listings, JSON files and safetensors headers are
read, never tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sla_ckpt.checkpoint.jsonio import read_json_object
from sla_ckpt.checkpoint.source import Source
from sla_ckpt.checkpoint.weights import STEM, WeightSet, collect_weights, read_header_of
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.state import STATE_FILE, TWIN_FILE

DENOISER_FOLDERS = ("transformer", "unet")
#: Second experts of two-expert models (Wan 2.2).
SECOND_DENOISER_FOLDERS = ("transformer_2", "unet_2")
#: Where SimpleTuner keeps the average of an adapter.
ADAPTER_EMA_FOLDER = "ema"
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
MANIFEST_FILE = "checkpoint_manifest.json"
GUARD_FILE = ".guard"
TRAINING_STATE_FILE = "training_state.json"
#: Working folders of ours, and the files there that say that originals are being replaced.
MIGRATION_STAGING = ".sla_ckpt-migrate"
MIGRATION_JOURNAL = "journal.json"
PULL_STAGING = ".sla_ckpt_pull"
PULL_MARKER = "placing"
_TRAINER_FILES = ("optimizer.bin", "scheduler.bin", TRAINING_STATE_FILE, "random_states_0.pkl")


class CheckpointKind(StrEnum):
    FULL = "full"
    LORA = "lora"
    LYCORIS = "lycoris"
    CONTROLNET = "controlnet"
    DIFFUSERS = "diffusers"
    PIPELINE = "pipeline"
    STATE_FILE = "state-file"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Component:
    """One model folder: its config and its weights.

    Attributes:
        folder: Source path of the folder, ``""`` for the root.
        config: config.json as an object, None when absent or unreadable.
        config_fault: Why it could not be read.
        weights: The weight files and indexes in it.
    """

    folder: str
    config: Mapping[str, Any] | None
    config_fault: str | None
    weights: WeightSet

    @property
    def class_name(self) -> str | None:
        name = self.config.get("_class_name") if self.config else None
        return name if isinstance(name, str) else None

    @property
    def config_path(self) -> str:
        return f"{self.folder}/config.json" if self.folder else "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as found, before any judgement.

    Attributes:
        source: Where it is read from.
        kind: What it is.
        denoiser: The model that meets SLA; None for adapters and bare state files.
        others: EMA copies, second experts and the other models of a pipeline.
        pipeline: model_index.json: component -> (library, class), without the empty ones.
        adapter_path: The LoRA or LyCORIS file.
        adapter_metadata: Its safetensors metadata; empty when unreadable.
        state_path: Where ``sla_attention.pt`` is, None when there is none.
        twin_path: Where ``sla_attention.safetensors`` is.
        manifest: SimpleTuner's checkpoint_manifest.json.
        training_state: SimpleTuner's training_state.json.
        faults: Path -> why a JSON file of the above could not be read.
    """

    source: Source
    kind: CheckpointKind
    denoiser: Component | None = None
    others: tuple[Component, ...] = ()
    pipeline: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    adapter_path: str | None = None
    adapter_metadata: Mapping[str, str] = field(default_factory=dict)
    state_path: str | None = None
    twin_path: str | None = None
    manifest: Mapping[str, Any] | None = None
    training_state: Mapping[str, Any] | None = None
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def components(self) -> tuple[Component, ...]:
        return ((self.denoiser,) if self.denoiser else ()) + self.others

    @property
    def trainer_files(self) -> tuple[str, ...]:
        """What a resume loads beside the weights and the state: optimizers, random states, …"""
        pattern = re.compile(
            r"(optimizer|scheduler)(_\d+)?\.bin|random_states_\d+\.pkl|scaler\.pt"
            r"|training_state(-.+)?\.json"
        )
        return tuple(path for path in self.source.files() if pattern.fullmatch(path))

    @property
    def has_trainer_state(self) -> bool:
        """Whether a training run wrote this folder and could resume from it."""
        files = self.source.files()
        return self.manifest is not None or any(name in files for name in _TRAINER_FILES)

    @property
    def optimizer_files(self) -> tuple[str, ...]:
        pattern = re.compile(r"optimizer(_\d+)?\.bin")
        return tuple(path for path in self.source.files() if pattern.fullmatch(path))

    @property
    def expected_state_path(self) -> str:
        """Where the state belongs: the root of the checkpoint, where trainers look."""
        return self.state_path or STATE_FILE


def discover(source: Source) -> Checkpoint:
    """Find out what ``source`` holds.

    Raises:
        TargetNotFoundError: A file vanished while it was read.
    """
    files = source.files()
    faults: dict[str, str] = {}

    def optional_json(path: str) -> Mapping[str, Any] | None:
        if path not in files:
            return None
        try:
            return read_json_object(source, path)
        except SlaCkptError as error:
            faults[path] = error.message
            return None

    def component(folder: str) -> Component:
        path = f"{folder}/config.json" if folder else "config.json"
        config = optional_json(path)
        return Component(folder, config, faults.get(path), collect_weights(source, folder))

    kind, denoiser_folder, adapter = _classify(source)
    pipeline = _pipeline_components(optional_json("model_index.json"))
    metadata: Mapping[str, str] = {}
    if adapter is not None:
        try:
            metadata = read_header_of(source, adapter).metadata
        except SlaCkptError as error:
            faults[adapter] = error.message
        if kind is CheckpointKind.LORA and "lycoris_config" in metadata:
            kind = CheckpointKind.LYCORIS
    return Checkpoint(
        source=source,
        kind=kind,
        denoiser=component(denoiser_folder) if denoiser_folder is not None else None,
        others=tuple(
            component(folder) for folder in _other_folders(source, denoiser_folder, pipeline)
        ),
        pipeline=pipeline,
        adapter_path=adapter,
        adapter_metadata=metadata,
        state_path=_locate(source, STATE_FILE, denoiser_folder),
        twin_path=_locate(source, TWIN_FILE, denoiser_folder),
        manifest=optional_json(MANIFEST_FILE),
        training_state=optional_json(TRAINING_STATE_FILE),
        faults=faults,
    )


def _classify(source: Source) -> tuple[CheckpointKind, str | None, str | None]:
    """Kind, denoiser folder and adapter file."""
    files = source.files()
    folders = {path.split("/", 1)[0] for path in files if "/" in path}
    denoiser = next((name for name in DENOISER_FOLDERS if name in folders), None)
    if "model_index.json" in files:
        return CheckpointKind.PIPELINE, denoiser, None
    if denoiser is not None:
        return CheckpointKind.FULL, denoiser, None
    if "controlnet" in folders:
        return CheckpointKind.CONTROLNET, "controlnet", None
    adapter = next((name for name in LORA_FILES if name in files), None)
    if adapter is not None:
        lycoris = "lycoris_config.json" in files
        return (CheckpointKind.LYCORIS if lycoris else CheckpointKind.LORA), None, adapter
    if any(path.startswith(STEM) for path in files) or (
        "config.json" in files and any(_is_root_weight(path) for path in files)
    ):
        return CheckpointKind.DIFFUSERS, "", None
    loose = [path for path in files if _is_root_weight(path) and path.endswith(".safetensors")]
    if len(loose) == 1:
        return CheckpointKind.LORA, None, loose[0]
    if STATE_FILE in files or TWIN_FILE in files:
        return CheckpointKind.STATE_FILE, None, None
    return CheckpointKind.UNKNOWN, None, None


def _is_root_weight(path: str) -> bool:
    from sla_ckpt.checkpoint.weights import WEIGHT_SUFFIXES, is_sidecar

    return "/" not in path and path.endswith(WEIGHT_SUFFIXES) and not is_sidecar(path)


def _pipeline_components(index: Mapping[str, Any] | None) -> dict[str, tuple[str, str]]:
    return {
        name: (entry[0], entry[1])
        for name, entry in (index or {}).items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
        and name not in ("", ".", "..") and "/" not in name
    }  # fmt: skip


def _other_folders(
    source: Source, denoiser: str | None, pipeline: Mapping[str, tuple[str, str]]
) -> list[str]:
    folders = {path.split("/", 1)[0] for path in source.files() if "/" in path}
    wanted = [*SECOND_DENOISER_FOLDERS]
    wanted += [f"{name}_ema" for name in (*DENOISER_FOLDERS, "controlnet")]
    wanted += [ADAPTER_EMA_FOLDER, *pipeline]
    return [name for name in dict.fromkeys(wanted) if name in folders and name != denoiser]


def _locate(source: Source, name: str, denoiser_folder: str | None) -> str | None:
    """The state file: at the root, else inside the denoiser's folder."""
    files = source.files()
    if name in files:
        return name
    inside = f"{denoiser_folder}/{name}" if denoiser_folder else None
    return inside if inside in files else None
