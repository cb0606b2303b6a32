"""Which files of a checkpoint are published and fetched, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatch

from sla_ckpt.state import STATE_FILE, TWIN_FILE


class Role(StrEnum):
    """What a file is for."""

    STATE = "state"
    MODEL = "model"
    CARD = "card"
    TRAINING = "training state"
    TEMPORARY = "left over from a write"
    PRIVATE = "not part of a model"


#: Files that only a resume needs; random_states is a pickle with numpy state, not malware.
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|sampler)(_\d+)?\.(bin|pt)"
    r"|random_states_\d+\.pkl|training_state.*\.json|checkpoint_manifest\.json|\.guard"
    r"|ramtorch_prefetch_orders\.json|flow_custom_timestep_state\.json|ema_model\.pt"
    r"|custom_checkpoint_\d+\.pkl|dataloader_state.*|training_args\.bin"
)
_TEMPORARY = re.compile(
    r".*(\.tmp|\.incomplete|\.part|\.lock|~)|.*\.bak-\d{8}T\d{6}Z(-\d+)?|\.sla_ckpt.*"
)
_PRIVATE_FOLDERS = {".git", ".cache", ".sla_ckpt", "cache", "logs", "__pycache__", "wandb"}
_MODEL_SUFFIXES = (
    ".safetensors",
    ".json",
    ".bin",
    ".txt",
    ".model",
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".mp4",
    ".gif",
    ".yaml",
    ".yml",
    ".jinja",
)


def role_of(path: str) -> Role:
    """The role of a file by its path from the checkpoint's root."""
    folder, _, name = path.rpartition("/")
    if name in (STATE_FILE, TWIN_FILE):
        return Role.STATE
    if _TEMPORARY.fullmatch(name):
        return Role.TEMPORARY
    if _TRAINING.fullmatch(name):
        return Role.TRAINING
    if _PRIVATE_FOLDERS & set(folder.split("/")):
        return Role.PRIVATE
    if path == "README.md":
        return Role.CARD
    if path in (".gitattributes", ".gitignore") or not name.endswith(_MODEL_SUFFIXES):
        return Role.PRIVATE
    return Role.MODEL


def choose(
    files: Iterable[str],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    training_state: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """Files to transfer, and the others with the reason they are left out.

    Args:
        files: Paths from the checkpoint's root.
        include: Glob patterns of files to transfer although their role says no.
        exclude: Glob patterns of files to leave out.
        training_state: Also what only a resume needs.
    """
    wanted, unwanted = tuple(include), tuple(exclude)
    sent = {Role.STATE, Role.MODEL, Role.CARD} | ({Role.TRAINING} if training_state else set())
    chosen: list[str] = []
    left_out: dict[str, str] = {}
    for path in sorted(files):
        role = role_of(path)
        if matches(path, unwanted):
            left_out[path] = "excluded by --exclude"
        elif role in sent or matches(path, wanted):
            chosen.append(path)
        else:
            left_out[path] = role.value
    return chosen, left_out


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path, or a folder above it, matches one of the glob patterns."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatch(item, pattern.rstrip("/")) for pattern in patterns for item in above)


def case_collisions(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different paths that are one file on systems that ignore case."""
    seen: dict[str, str] = {}
    pairs = []
    for path in sorted(set(paths)):
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            pairs.append((other, path))
    return pairs


def required_of(files: Mapping[str, int]) -> set[str]:
    """What a model cannot do without: weights, their configs and indexes, the state."""
    return {
        path
        for path in files
        if role_of(path) is Role.STATE
        or path.endswith((".safetensors", ".bin", ".index.json"))
        or path.rpartition("/")[2] in ("config.json", "model_index.json", "lycoris_config.json")
    } - {path for path in files if role_of(path) is Role.TRAINING}
