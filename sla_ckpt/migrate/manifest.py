"""``checkpoint_manifest.json``: a resume from S3 downloads only what it lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.jsonio import parse_json
from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.errors import FormatError, SlaCkptError
from sla_ckpt.migrate.plan import FileChange, Step
from sla_ckpt.migrate.stored import bytes_change


def add_to_manifest(data: bytes, names: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
    """Add files to a manifest, keeping everything else and its formatting.

    Args:
        data: The manifest as it is.
        names: Files it should list.

    Returns:
        The new manifest, and which of the names were not listed before. The very same bytes when
        there are none.

    Raises:
        FormatError: It is no manifest.
    """
    manifest: Any = parse_json(data, name="checkpoint_manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, list) or not all(isinstance(item, str) for item in files):
        raise FormatError(
            "checkpoint_manifest.json has no list of files", path="checkpoint_manifest.json"
        )
    added = tuple(name for name in names if name not in files)
    if not added:
        return data, ()
    manifest["files"] = sorted([*files, *added])
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode(), added


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
