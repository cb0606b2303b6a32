"""File changes whose content is known before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from sla_ckpt.errors import SlaCkptError, WriteError
from sla_ckpt.formats.simpletuner import encode_state, read_state
from sla_ckpt.formats.twin import encode_twin, foreign_metadata, read_twin
from sla_ckpt.migrate.plan import FileChange, fingerprint
from sla_ckpt.state import SLAState


def bytes_change(
    root: Path, path: str, data: bytes, check: Callable[[Path], None] | None = None
) -> FileChange:
    """Write these bytes; they are read back and compared, and then given to ``check``."""

    def compare(staged: Path) -> None:
        if staged.read_bytes() != data:
            raise differs(path)
        if check is not None:
            check(staged)

    def write(staged: Path) -> None:
        staged.write_bytes(data)

    return FileChange(path, write, compare, fingerprint(root / path))


def state_change(root: Path, path: str, state: SLAState) -> FileChange:
    """Write ``sla_attention.pt``; every tensor is compared after reading it back."""

    def check(staged: Path) -> None:
        if not read_state(staged, name=path).equals(state):
            raise differs(path)

    return bytes_change(root, path, encode_state(state), check)


def twin_change(root: Path, path: str, state: SLAState, pt_sha256: str) -> FileChange:
    """Write the twin; every tensor is compared after reading it back.

    Metadata that others put into the twin that is there is kept.
    """
    try:
        extra = foreign_metadata(root / path)
    except SlaCkptError:
        extra = {}

    def check(staged: Path) -> None:
        if not read_twin(staged, name=path).equals(state):
            raise differs(path)

    data = encode_twin(state, pt_sha256=pt_sha256, extra=extra)
    return bytes_change(root, path, data, check)


def state_sha256(state: SLAState) -> str:
    """Hash of the ``.pt`` that a state is written as."""
    return hashlib.sha256(encode_state(state)).hexdigest()


def differs(path: str) -> WriteError:
    return WriteError(
        f"{path} reads back differently from what was written",
        hint="check the disk; the old file is untouched",
        path=path,
    )
