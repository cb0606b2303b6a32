"""From what a user passes to a state that can run: read it, judge it, say which SLA made it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sla_ckpt.attention.kernels import check_settings as check_kernel_settings
from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.errors import AttentionError, HubError, SlaCkptError, TargetNotFoundError
from sla_ckpt.state import (
    SLA_VARIANTS,
    STATE_FILE,
    TWIN_FILE,
    PairKey,
    ProjectionTensors,
    SLASettings,
    SLAState,
)

if TYPE_CHECKING:
    from sla_ckpt.attention.session import Missing

Checkpoint = str | Path | SLAState | SLASettings

_REPO_ID = re.compile(
    r"(?:hf://)?(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedState:
    """A state that passed :func:`check_state`.

    Attributes:
        label: How messages name it: the path, the repository, or "the SLA state".
        variant: Which SLA made it.
    """

    state: SLAState
    label: str
    variant: str


def resolve(
    checkpoint: Checkpoint,
    *,
    variant: str | None = None,
    settings: SLASettings | None = None,
    missing: Missing = "error",
) -> ResolvedState:
    """Turn ``checkpoint`` into a state that can run.

    Args:
        checkpoint: A state; settings alone (``missing`` must be ``"zero"``); a state file; a
            checkpoint folder or a trainer's output folder; a Hub repository
            ``org/model[@revision]``. A path that exists wins over a repository of that name.
        variant: Which SLA made the state, where the state does not say so. ``"main"`` if neither
            does.
        settings: In place of the state's own.

    Raises:
        AttentionError: The state cannot run.
        TargetNotFoundError: No such file, folder or repository, or no state in it.
        FormatError: The file is not a state.
        HubError: The Hub cannot be reached or refuses.
    """
    if missing not in ("error", "zero"):
        raise AttentionError(f"missing={missing!r}", hint='use missing="error" or missing="zero"')
    label, state = "the SLA state", checkpoint
    if isinstance(state, SLASettings):
        if missing != "zero":
            raise AttentionError(
                "settings alone hold no projections",
                hint='pass a checkpoint, or missing="zero" to start from zero projections',
            )
        label, state = "the SLA settings", SLAState({}, state)
    elif not isinstance(state, SLAState):
        if not isinstance(state, str | Path) or not str(state):
            raise AttentionError(
                f"cannot take an SLA state from {type(state).__name__}",
                hint="pass a path, a Hub repository org/model, an SLAState or SLASettings",
            )
        label, state = str(state), _read(state)
    if settings is not None:
        state = replace(state, settings=settings)
    check_state(state, label)
    return ResolvedState(state, label, _variant(state, variant, label))


def check_settings(settings: SLASettings | None, label: str) -> None:
    """Refuse settings that cannot run.

    Raises:
        AttentionError: Names the setting (rules SLA101–SLA104).
    """
    if settings is None:
        raise AttentionError(
            f"{label} holds no settings, so SLA cannot run as it was trained",
            hint="pass settings=SLASettings(topk=..., ...) with the training run's values",
        )
    try:
        check_kernel_settings(settings)
    except AttentionError as error:
        raise AttentionError(f"{label}: {error.message}", hint=error.hint) from error


def check_state(state: SLAState, label: str) -> None:
    """Refuse a state that cannot run: settings, shapes, values.

    Raises:
        AttentionError: Names the first fault (rules SLA10x, SLA203, SLA205).
    """
    check_settings(state.settings, label)
    for key, projection in state.pairs.items():
        _check_projection(key, projection, label)


def _check_projection(key: PairKey, projection: ProjectionTensors, label: str) -> None:
    expected = {"weight": (key.head_dim, key.head_dim), "bias": (key.head_dim,)}
    for name, array in (("weight", projection.weight), ("bias", projection.bias)):
        if array.shape != expected[name]:
            raise AttentionError(
                f"{label}: proj_l.{name} of pair {key} has shape {list(array.shape)}, "
                f"not {list(expected[name])}",
                hint="regenerate it with: sla-ckpt regen",
            )
        if not np.isfinite(np.asarray(array, dtype=np.float32)).all():
            raise AttentionError(
                f"{label}: proj_l.{name} of pair {key} holds NaN or Inf",
                hint="take an earlier checkpoint, or regenerate it with: sla-ckpt regen",
            )


def _variant(state: SLAState, given: str | None, label: str) -> str:
    recorded = state.origin.get("sla_variant")
    if given is not None and recorded is not None and given != recorded:
        raise AttentionError(
            f"{label} was made by SLA variant {recorded!r}, not {given!r}",
            hint="leave variant out",
        )
    variant = recorded or given or "main"
    if variant not in SLA_VARIANTS:
        raise AttentionError(
            f"{label}: unknown SLA variant {variant!r}", hint=f"use {' or '.join(SLA_VARIANTS)}"
        )
    return variant


def _read(target: str | Path) -> SLAState:
    try:
        path = Path(target).expanduser()
    except RuntimeError as error:  # ~nobody
        raise TargetNotFoundError(
            f"no such file or folder: {target}", hint="check the path", path=str(target)
        ) from error
    match = _REPO_ID.fullmatch(str(target))
    is_repo = isinstance(target, str) and match is not None and not path.exists()
    if is_repo and match is not None:
        return _read_repository(match["repo"], match["revision"])
    if path.is_file():
        return _read_file(path)
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


def _read_repository(repo: str, revision: str | None) -> SLAState:
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import hf_hub_download

    # OSError and the HTTP library's own base error, whichever library the client uses.
    transport_errors: Any = hub_errors.HfHubHTTPError.__bases__
    files: dict[str, Path] = {}
    for name in (STATE_FILE, TWIN_FILE):
        try:
            files[name] = Path(hf_hub_download(repo, name, revision=revision))
        except hub_errors.LocalEntryNotFoundError as error:
            if files:
                _logger.warning("%s of %s cannot be reached; used without it", name, repo)
                continue
            raise HubError(
                f"no path {repo} here, and the Hub cannot be reached for a repository {repo}",
                hint="check the network; a local copy of the checkpoint works offline",
                path=repo,
            ) from error
        except hub_errors.EntryNotFoundError:
            continue
        except hub_errors.HFValidationError as error:
            raise TargetNotFoundError(
                f"neither a path nor a Hub repository: {repo}", hint="check the path", path=repo
            ) from error
        except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
            raise _not_found(repo, revision, error) from error
        except transport_errors as error:
            raise HubError(
                f"cannot download from {repo}: {_first_line(error)}",
                hint="try again later",
                path=repo,
            ) from error
    if not files:
        raise TargetNotFoundError(
            f"no {STATE_FILE} in the Hub repository {repo}",
            hint=f"see what is there with: sla-ckpt verify {repo}",
            path=repo,
        )
    return _combine(files)


def _not_found(repo: str, revision: str | None, error: BaseException) -> SlaCkptError:
    from huggingface_hub.errors import RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return TargetNotFoundError(
            f"{repo} has no revision {revision!r}", hint="check the name after @", path=repo
        )
    return TargetNotFoundError(
        f"neither a path nor a Hub repository you can read: {repo}",
        hint="check the spelling; for a private repository run: hf auth login",
        path=repo,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
