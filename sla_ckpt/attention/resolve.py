"""From what a user passes to a state that can run: read it, judge it, say which SLA made it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sla_ckpt.attention.kernels import check_settings as check_kernel_settings
from sla_ckpt.attention.state_source import read_any
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import (
    SLA_VARIANTS,
    PairKey,
    ProjectionTensors,
    SLASettings,
    SLAState,
)

if TYPE_CHECKING:
    from sla_ckpt.attention.session import Missing

Checkpoint = str | Path | SLAState | SLASettings


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
            ``org/model[@revision][/folder]`` or its URL. A path that exists wins over a
            repository of that name.
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
        label, state = str(state), read_any(state)
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
