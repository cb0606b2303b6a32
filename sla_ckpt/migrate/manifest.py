"""The step that makes ``checkpoint_manifest.json`` list the state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checkpoint.manifest import add_to_manifest
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.migrate.file_changes import bytes_change
from sla_ckpt.migrate.plan import FileChange, Step


def plan_manifest(root: Path, names: Sequence[str]) -> tuple[Step, FileChange] | None:
    """The change that makes a checkpoint's manifest list these files.

    None when it lists them, is not there, or is unreadable (rule SLA301 says so).
    """
    try:
        updated, added = add_to_manifest((root / MANIFEST_FILE).read_bytes(), names)
    except (OSError, SlaCkptError):
        return None
    if not added:
        return None
    listed = ", ".join(added)
    step = Step("manifest entry added", MANIFEST_FILE, f"no {listed}", f"lists {listed}", "SLA306")
    return step, bytes_change(root, MANIFEST_FILE, updated)
