"""The other checkpoints of a run: which of them is the last good one."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import GUARD_FILE
from sla_ckpt.checkpoint.source import LocalSource

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context


def folder_name(context: Context) -> str:
    """The name of the target's folder, also when the user typed ``.``."""
    if isinstance(context.source, LocalSource):
        return context.source.root.resolve().name
    return PurePath(context.source.label).name


def guarded_sibling(context: Context) -> str | None:
    """The newest other finished checkpoint of the run that has a completion guard."""
    return next((name for name, guarded in _siblings(context) if guarded), None)


def last_good(context: Context) -> str:
    """A next step for a checkpoint that is not whole."""
    good = guarded_sibling(context)
    if good:
        return f"the last complete checkpoint of this run is {good}"
    return "take an older checkpoint, or copy this one again from where it was written"


def _siblings(context: Context) -> list[tuple[str, bool]]:
    """(name, has a guard) of the other checkpoints of this run, newest first."""
    from sla_ckpt.checkpoint.resolve import list_checkpoints

    if not isinstance(context.source, LocalSource):
        return []
    here = context.source.root.resolve()
    if not here.name.startswith("checkpoint-"):
        return []
    try:
        found = list_checkpoints(here.parent)
    except OSError:
        return []
    others = [item for item in found if item.path.name != here.name and not item.temporary]
    return [(item.path.name, (item.path / GUARD_FILE).exists()) for item in reversed(others)]
