"""Read a state from wherever a user says it is: a file, a checkpoint, a Hub repository."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.errors import HubError, TargetNotFoundError
from sla_ckpt.hub.repo import RepoRef, looks_like_repo, parse_repo
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState

_logger = logging.getLogger(__name__)


def read_any(target: str | Path) -> SLAState:
    """Read the state that ``target`` names.

    Args:
        target: A state file, a checkpoint folder, a trainer's output folder, or a Hub repository
            in any form :func:`sla_ckpt.hub.repo.parse_repo` reads. An existing path wins.

    Returns:
        The state, with the twin's origin if a twin with the same tensors lies beside it.

    Raises:
        TargetNotFoundError: There is no such path, or no state in it.
        FormatError: The file is not a state.
        HubError: The repository cannot be read.
    """
    try:
        path = expand(target)
    except RuntimeError as error:  # ~nobody
        raise TargetNotFoundError(
            f"no such file or folder: {target}", hint="check the path", path=str(target)
        ) from error
    if path.is_file():
        return _read_file(path)
    if isinstance(target, str) and not path.exists() and looks_like_repo(target):
        return _read_repository(parse_repo(target))
    folder = resolve_checkpoint(path)
    files = {name: folder / name for name in (STATE_FILE, TWIN_FILE) if (folder / name).exists()}
    if not files:
        raise TargetNotFoundError(
            f"no {STATE_FILE} in {folder}",
            hint=f"see what is there with: sla-ckpt verify {folder}",
            path=str(folder),
        )
    return _combine(files)


def _read_file(path: Path) -> SLAState:
    if path.suffix == ".safetensors":
        from sla_ckpt.formats.twin import read_twin

        return read_twin(path)
    from sla_ckpt.formats.simpletuner import read_state

    return read_state(path)


def _combine(files: dict[str, Path]) -> SLAState:
    """The .pt is what the trainer wrote last; the twin adds the origin if it holds the same."""
    if STATE_FILE not in files:
        return _read_file(files[TWIN_FILE])
    state = _read_file(files[STATE_FILE])
    if TWIN_FILE not in files:
        return state
    twin = _read_file(files[TWIN_FILE])
    if not state.equals(twin):
        _logger.warning("%s differs from %s and is ignored", TWIN_FILE, files[STATE_FILE])
        return state
    return replace(state, origin=twin.origin)


def _read_repository(ref: RepoRef) -> SLAState:
    """Through huggingface_hub's own cache, so that it works again offline."""
    try:
        files = _download(ref)
    except HubError as error:
        raise HubError(
            f"no path {ref} here, and {error.message}", hint=error.hint, path=str(ref)
        ) from error
    if not files:
        raise TargetNotFoundError(
            f"no {STATE_FILE} in the Hub repository {ref}",
            hint=f"see what is there with: sla-ckpt verify {ref}",
            path=str(ref),
        )
    return _combine(files)


def _download(ref: RepoRef) -> dict[str, Path]:
    from huggingface_hub import get_token, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from sla_ckpt.hub.failures import hub_errors

    files: dict[str, Path] = {}
    for name in (STATE_FILE, TWIN_FILE):
        with hub_errors("read", ref.repo_id, has_token=get_token() is not None):
            try:
                found = hf_hub_download(
                    ref.repo_id, name, subfolder=ref.subfolder or None, revision=ref.revision
                )
            except LocalEntryNotFoundError:  # offline, and not in the cache
                if not files:
                    raise
                _logger.warning("%s of %s cannot be reached; used without it", name, ref)
            except EntryNotFoundError:
                continue
            else:
                files[name] = Path(found)
    return files
