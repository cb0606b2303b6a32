"""Which files of a checkpoint are for publishing, and why the others are not.

By exclusion, not by a list of known names: a side file that nobody foresaw must travel.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sla_ckpt.checkpoint.layout import Checkpoint
from sla_ckpt.checkpoint.weights import INDEX_SUFFIXES, WEIGHT_SUFFIXES, is_sidecar
from sla_ckpt.state import STATE_FILE, TWIN_FILE

CARD = "README.md"

TRAINING_STATE = "training state"
EMA = "EMA copy"

_TRAINING_NAMES = re.compile(
    r"optimizer(_\d+)?\.bin|scheduler(_\d+)?\.bin|random_states_\d+\.pkl|scaler\.pt"
    r"|training_state.*\.json|ramtorch_prefetch_orders\.json|flow_custom_timestep_state\.json"
    r"|checkpoint_manifest\.json|\.guard|ema_model\.pt|training_args\.bin|trainer_state\.json"
    r"|custom_checkpoint_\d+\.pkl"
)
_TRAINING_FOLDERS = ("sdnq",)
_EMA_FOLDERS = re.compile(r"(.*_)?ema")
_TEMPORARY = re.compile(r".*(\.tmp|\.temp|\.part|\.incomplete|\.lock|~|\.swp)|\.sla_ckpt[.-].*")
_BACKUP = re.compile(r".*\.bak(-[0-9TZ-]+)?|.*\.orig")
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
_LOGS = re.compile(r"events\.out\.tfevents\..*|.*\.log")
_CACHE_FOLDERS = {"cache", "__pycache__", "node_modules", ".cache", "vae_cache", "text_cache"}
_LOG_FOLDERS = {"wandb", "logs", "runs", "tensorboard"}
_CHECKPOINT_FOLDER = re.compile(r"checkpoint-\d+(-rolling)?(-tmp)?")


@dataclass(frozen=True)
class Filter:
    """What the user wants beyond the rules.

    Attributes:
        include: Globs of files to take although they would be left out.
        exclude: Globs of files to leave out.
        training_state: Take optimizer, scheduler, random states and their kind.
        ema: Take EMA copies.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    training_state: bool = False
    ema: bool = True

    def reason_to_leave_out(self, path: str) -> str | None:
        """Why a file does not travel; None when it does."""
        reason = hard_reason(path)
        if reason is not None:
            return reason
        if matches(path, self.exclude):
            return "excluded"
        reason = soft_reason(path)
        if reason is None or matches(path, self.include):
            return None
        if reason == TRAINING_STATE and self.training_state:
            return None
        if reason == EMA and self.ema:
            return None
        return reason


def matches(path: str, globs: Sequence[str]) -> bool:
    """Whether a glob fits the path, its name, or a folder it is in (``samples/``)."""
    name = path.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(path, glob)
        or fnmatch.fnmatchcase(name, glob)
        or (glob.endswith("/") and path.startswith(glob))
        for glob in globs
    )


def hard_reason(path: str) -> str | None:
    """Why a file is never published, whatever the options say."""
    parts = path.split("/")
    if ".git" in parts:
        return "git's own folder"
    if any(part in _JUNK for part in parts):
        return "operating system file"
    if any(_TEMPORARY.fullmatch(part) for part in parts):
        return "temporary or lock file"
    return None


def soft_reason(path: str) -> str | None:
    """Why a file is left out unless asked for."""
    *folders, name = path.split("/")
    if _TRAINING_NAMES.fullmatch(name) or any(part in _TRAINING_FOLDERS for part in folders):
        return TRAINING_STATE
    if _BACKUP.fullmatch(name):
        return "backup"
    if any(part in _CACHE_FOLDERS for part in folders):
        return "cache"
    if any(part in _LOG_FOLDERS for part in folders) or _LOGS.fullmatch(name):
        return "log"
    if folders and _CHECKPOINT_FOLDER.fullmatch(folders[0]):
        return "another checkpoint"
    if any(part.startswith(".") for part in (*folders, name)):
        return "hidden file"
    if folders and _EMA_FOLDERS.fullmatch(folders[0]):
        return EMA
    return None


def needed_files(checkpoint: Checkpoint) -> frozenset[str]:
    """Files without which the published model does not work.

    The state, weights with their indexes and configs of the denoiser and second experts, the
    adapter and its config, and for a pipeline every component that model_index.json names.
    """
    files = checkpoint.source.files()
    needed = {path for path in (STATE_FILE, checkpoint.state_path) if path in files}
    components = [item for item in checkpoint.components if not is_ema(item.folder)]
    for item in components:
        needed.update(item.weights.files, (index.path for index in item.weights.indexes))
        needed.update(shard for index in item.weights.indexes for shard in index.shards)
        needed.update(path for path in (item.config_path,) if path in files)
    if checkpoint.adapter_path is not None:
        needed.add(checkpoint.adapter_path)
        needed.update(
            name for name in ("lycoris_config.json", "adapter_config.json") if name in files
        )
    if "model_index.json" in files:
        needed.add("model_index.json")
        needed.update(_pipeline_files(checkpoint, files))
    return frozenset(path for path in needed if path in files)


def _pipeline_files(checkpoint: Checkpoint, files: Mapping[str, int]) -> Iterable[str]:
    from sla_ckpt.checkpoint.jsonio import read_json_object
    from sla_ckpt.errors import FormatError

    try:
        index = read_json_object(checkpoint.source, "model_index.json")
    except FormatError:
        return []
    folders = {name for name in index if not name.startswith("_")}
    return [path for path in files if path.split("/", 1)[0] in folders and "/" in path]


def is_ema(folder: str) -> bool:
    """Whether a component's folder holds an EMA copy."""
    return _EMA_FOLDERS.fullmatch(folder) is not None


def is_weight(path: str) -> bool:
    return path.endswith((*WEIGHT_SUFFIXES, *INDEX_SUFFIXES)) and not is_sidecar(path)


def case_collisions(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of paths that some file systems cannot tell apart, folders included."""
    seen: dict[str, str] = {}
    found: dict[tuple[str, str], None] = {}
    for path in sorted(set(paths)):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            first = seen.setdefault(name.casefold(), name)
            if first != name:
                found[(first, name)] = None
                break
    return list(found)


__all__ = ["CARD", "STATE_FILE", "TWIN_FILE", "Filter", "case_collisions", "needed_files"]
