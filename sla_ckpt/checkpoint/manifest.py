"""``checkpoint_manifest.json``: a resume from S3 downloads only what it lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sla_ckpt.checkpoint.jsonio import parse_json
from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.errors import FormatError


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
    manifest: Any = parse_json(data, name=MANIFEST_FILE)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, list) or not all(isinstance(item, str) for item in files):
        raise FormatError(f"{MANIFEST_FILE} has no list of files", path=MANIFEST_FILE)
    added = tuple(name for name in names if name not in files)
    if not added:
        return data, ()
    manifest["files"] = sorted([*files, *added])
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode(), added
