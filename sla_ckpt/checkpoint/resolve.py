"""From what a person types to the checkpoint that is meant."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sla_ckpt.errors import TargetNotFoundError
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE, TWIN_FILE

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)(?:-rolling)?(-tmp)?")
_MARKERS = (
    STATE_FILE,
    TWIN_FILE,
    "model_index.json",
    "config.json",
    "training_state.json",
    "checkpoint_manifest.json",
    "optimizer.bin",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "transformer",
    "unet",
    "controlnet",
)


@dataclass(frozen=True)
class NamedCheckpoint:
    """A ``checkpoint-N`` folder of an output directory."""

    path: Path
    step: int
    temporary: bool


def parse_checkpoint_name(path: Path) -> NamedCheckpoint | None:
    """What a folder's name says; None when it is not the name of a trainer's checkpoint."""
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    if match is None or len(match[1]) > 18:
        return None
    return NamedCheckpoint(path, int(match[1]), temporary=match[2] is not None)


def list_checkpoints(output_directory: Path) -> list[NamedCheckpoint]:
    """The ``checkpoint-N`` folders of an output directory, oldest first; ``-tmp`` ones too."""
    found: list[NamedCheckpoint] = []
    with os.scandir(output_directory) as entries:
        for entry in entries:
            named = parse_checkpoint_name(Path(entry.path))
            if named is not None and entry.is_dir():
                found.append(named)
    return sorted(found, key=lambda item: (item.step, item.path.name))


def looks_like_checkpoint(directory: Path) -> bool:
    """Whether the folder itself has something of a checkpoint in it."""
    return _CHECKPOINT_NAME.fullmatch(directory.name) is not None or any(
        os.path.lexists(directory / name) for name in _MARKERS
    )


def _cached_snapshot(folder: Path) -> Path | None:
    """Of ``models--org--name`` in the download cache: the snapshot that ``main`` means."""
    if not folder.resolve().name.startswith("models--"):
        return None
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9a-f]+", commit) and snapshot.is_dir() else None


def resolve_checkpoint(path: Path | str | None = None) -> Path:
    """The checkpoint folder that ``path`` means.

    Args:
        path: A checkpoint folder, a file in one (its folder is meant), or a trainer's output
            directory (its newest finished ``checkpoint-N``), or a repository's folder in the
            Hub's download cache (its ``main``). The current directory when None.

    Raises:
        TargetNotFoundError: No such path.
    """
    given = expand(path) if path is not None else Path()
    if not os.path.lexists(given):
        raise TargetNotFoundError(
            f"no such file or folder: {given}", hint="check the path", path=str(given)
        )
    try:
        if given.is_file():
            return given.parent
        if not given.is_dir():
            raise TargetNotFoundError(
                f"{given} is neither a file nor a folder (a dangling link?)", path=str(given)
            )
        if looks_like_checkpoint(given.resolve()):
            return given
        if (snapshot := _cached_snapshot(given)) is not None:
            return snapshot
        finished = [item for item in list_checkpoints(given) if not item.temporary]
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot open {given}: {error.strerror or error}",
            hint="check its permissions",
            path=str(given),
        ) from error
    return finished[-1].path if finished else given
