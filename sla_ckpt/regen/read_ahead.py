"""Reading the weights into the system's cache while Python is still importing.

torch and diffusers take seconds to import, and the disk would be idle meanwhile. Needs neither.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.regen.backbone_files import find_backbone

_CHUNK = 16 << 20


def read_ahead(
    checkpoint: Path | str | None,
    *,
    base_model: str | None = None,
    ema: bool = False,
    denoiser: str | None = None,
) -> threading.Thread | None:
    """Start reading the denoiser's weights, front to back; None where there are none to read.

    Whoever loads them later finds them in memory as far as this got; from then on both ask for
    the same pages, which are read once. What is wrong with the files is not said here: loading
    them says it.

    Args:
        checkpoint: As for :func:`~sla_ckpt.regen.engine.regenerate`, like the options.
    """
    # Of the processes that torchrun starts, one is enough.
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        found = find_backbone(resolve_checkpoint(checkpoint), ema=ema, denoiser=denoiser)
        if found is None and base_model is not None:
            found = find_backbone(Path(base_model), denoiser=denoiser)
    except (SlaCkptError, OSError):
        return None
    if found is None:
        return None
    thread = threading.Thread(
        target=_read, args=(found.weights,), name="sla-ckpt-read-ahead", daemon=True
    )
    thread.start()
    return thread


def _read(files: tuple[Path, ...]) -> None:
    buffer = bytearray(_CHUNK)
    try:
        for path in files:
            with path.open("rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass
    except OSError:
        return
