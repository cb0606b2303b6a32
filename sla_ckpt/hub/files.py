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
    EMA = "EMA copy"
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
_PRIVATE_FOLDERS = {"cache", "logs", "runs", "wandb", "__pycache__", "node_modules"}
_PRIVATE = re.compile(r"\..*|.*\.log|events\.out\.tfevents\..*|Thumbs\.db|desktop\.ini")
_OTHER_CHECKPOINT = re.compile(r"checkpoint-\d+(-rolling)?(-tmp)?")
#: Never transferred, whatever --include says; the Hub refuses some of them with an HTTP 500.
_FORBIDDEN_FOLDERS = {".git", ".cache", ".sla_ckpt_pull"}


def role_of(path: str) -> Role:
    """The role of a file by its path from the checkpoint's root."""
    folder, _, name = path.rpartition("/")
    if name in (STATE_FILE, TWIN_FILE):
        return Role.STATE
    if _TEMPORARY.fullmatch(name):
        return Role.TEMPORARY
    if _TRAINING.fullmatch(name):
        return Role.TRAINING
    folders = folder.split("/")
    if _PRIVATE_FOLDERS & set(folders) or any(_PRIVATE.fullmatch(n) for n in (*folders, name)):
        return Role.PRIVATE
    if _OTHER_CHECKPOINT.fullmatch(folders[0]):
        return Role.PRIVATE
    if folders[0] == "ema" or folders[0].endswith("_ema"):
        return Role.EMA
    # Whatever else is there belongs to the model: a side file that nobody foresaw must travel.
    return Role.CARD if path == "README.md" else Role.MODEL


def choose(
    files: Iterable[str],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    training_state: bool = False,
    ema: bool = True,
) -> tuple[list[str], dict[str, str]]:
    """Files to transfer, and the others with the reason they are left out.

    Args:
        files: Paths from the checkpoint's root.
        include: Glob patterns of files to transfer although their role says no.
        exclude: Glob patterns of files to leave out.
        training_state: Also what only a resume needs.
        ema: Also EMA copies of the model.
    """
    wanted, unwanted = tuple(include), tuple(exclude)
    sent = {Role.STATE, Role.MODEL, Role.CARD}
    sent |= ({Role.TRAINING} if training_state else set()) | ({Role.EMA} if ema else set())
    chosen: list[str] = []
    left_out: dict[str, str] = {}
    for path in sorted(files):
        role = role_of(path)
        if role is Role.TEMPORARY or _FORBIDDEN_FOLDERS & set(path.split("/")):
            left_out[path] = role.value
        elif matches(path, unwanted):
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
    """What a model cannot do without: weights, their configs and indexes, the state.

    Files of roles that are left out by default are not among them, nor are EMA copies.
    """
    return {
        path
        for path in files
        if role_of(path) is Role.STATE or (role_of(path) is Role.MODEL and _is_needed(path))
    }


def _is_needed(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".index.json")) or path.rpartition("/")[2] in (
        "config.json",
        "model_index.json",
        "lycoris_config.json",
    )


_WEIGHTS = re.compile(r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.(?P<kind>safetensors|bin)(\.index\.json)?")


def superseded(sent: Iterable[str], listing: Iterable[str]) -> list[str]:
    """Files in a repository that are other shards or the index of weights that are sent.

    Left there, a loader would find the old index first and load the old weights.

    Args:
        sent: Every path of the push, changed or not.
        listing: Every path of the repository.
    """
    new = set(sent)
    series = {key for path in new if (key := _series(path))}
    return sorted(path for path in listing if path not in new and _series(path) in series)


def _series(path: str) -> tuple[str, str, str] | None:
    folder, _, name = path.rpartition("/")
    match = _WEIGHTS.fullmatch(name)
    if match is None or name in (STATE_FILE, TWIN_FILE):
        return None
    return folder, match["stem"], match["kind"]
