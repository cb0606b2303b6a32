"""From files, as a hook names those that changed, to the checkpoints that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sla_ckpt.checkpoint.resolve import looks_like_checkpoint, parse_checkpoint_name
from sla_ckpt.paths import expand


def checkpoints_containing(files: Iterable[str | Path]) -> tuple[Path, ...]:
    """The checkpoint folders that hold these files, each once, in the order they are met.

    Args:
        files: Paths, which need not exist any more.

    Returns:
        For a file of a pipeline's component (``pipe/vae/config.json``) the pipeline; for one in a
        trainer's output directory the ``checkpoint-N`` it is in. Files of no checkpoint give none.
    """
    found = (_containing(expand(file)) for file in files)
    return tuple(dict.fromkeys(folder for folder in found if folder is not None))


def _containing(file: Path) -> Path | None:
    """The outermost of nested checkpoint folders, not above a ``checkpoint-N`` or a ``.git``."""
    outermost: Path | None = None
    for folder in file.parents:
        if looks_like_checkpoint(folder.resolve()):
            outermost = folder
            if parse_checkpoint_name(folder.resolve()) is not None:
                break
        elif outermost is not None:
            break
        if (folder / ".git").exists():
            break
    return outermost
