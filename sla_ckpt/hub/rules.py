"""Rules for repositories: is the state there, the right one, and announced? SLA401–SLA404."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import DENOISER_FOLDERS, LORA_FILES, CheckpointKind
from sla_ckpt.checks.evidence import signs_of_sla
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.errors import UsageError
from sla_ckpt.state import STATE_FILE, TWIN_FILE

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

README = "README.md"
_NO_WEIGHTS = (CheckpointKind.UNKNOWN, CheckpointKind.STATE_FILE)
MAX_CARD_BYTES = 512 * 1024


@rule("SLA401", "error", "state file missing on the Hub", remote_only=True)
def missing_on_hub(context: Context) -> Iterator[Fault]:
    checkpoint = context.checkpoint
    if checkpoint.kind in _NO_WEIGHTS or checkpoint.state_path is not None:
        return
    label = context.source.label
    if checkpoint.twin_path is not None:
        yield Fault(
            f"{label} has {TWIN_FILE} but no {STATE_FILE}, which is what SimpleTuner loads",
            path=STATE_FILE,
            help=f"run: sla-ckpt pull {label} DIR, sla-ckpt migrate DIR, sla-ckpt push {label} DIR",
            level="warning",
        )
        return
    signs = signs_of_sla(context)
    what = f"although {'; '.join(signs)}" if signs else "and nothing says that it needs one"
    yield Fault(
        f"{label} has weights without {STATE_FILE}, {what}",
        path=STATE_FILE,
        help=f"push it from where it was trained: sla-ckpt push {label} CHECKPOINT; if it is "
        f"lost: sla-ckpt pull {label} DIR, then sla-ckpt regen DIR",
    )


@rule("SLA402", "error", "state on the Hub differs from the local one", remote_only=True)
def differs_from_local(context: Context) -> Iterator[Fault]:
    if context.options.against is None or context.checkpoint.state_path is None:
        return
    local = _local_state(context.options.against)
    here = hashlib.sha256(local.read_bytes()).hexdigest()
    there = hashlib.sha256(context.source.read(context.checkpoint.state_path)).hexdigest()
    if here != there:
        yield Fault(
            f"{context.checkpoint.state_path} on the Hub ({there[:12]}…) is not {local} "
            f"({here[:12]}…)",
            path=context.checkpoint.state_path,
            help=f"run: sla-ckpt push {context.source.label} {context.options.against}",
        )


def _local_state(path: Path) -> Path:
    from sla_ckpt.checkpoint.resolve import resolve_checkpoint

    file = path if path.is_file() else resolve_checkpoint(path) / STATE_FILE
    if not file.is_file():
        raise UsageError(f"--against: there is no {file}", hint="name a checkpoint that has one")
    return file


@rule("SLA403", "warning", "model card does not say that SLA is needed", remote_only=True)
def card_is_silent(context: Context) -> Iterator[Fault]:
    if context.checkpoint.state_path is None and context.checkpoint.twin_path is None:
        return
    has_card = README in context.source.files()
    if has_card:
        text = context.source.read(README, 0, MAX_CARD_BYTES).decode("utf-8", "replace").lower()
        if "sparse-linear-attention" in text or STATE_FILE in text:
            return
    yield Fault(
        f"{context.source.label}: "
        + (f"{README} does not mention SLA" if has_card else f"there is no {README}"),
        path=README,
        help=f"sla-ckpt push {context.source.label} adds a section that says how to load it",
    )


@rule("SLA404", "error", "weights in a subfolder without the state", remote_only=True)
def subfolder_without_state(context: Context) -> Iterator[Fault]:
    files = context.source.files()
    root_has_state = context.checkpoint.state_path is not None
    for folder in sorted(model_folders(files)):
        beside = (f"{folder}/{STATE_FILE}", f"{folder}/{TWIN_FILE}")
        inside = tuple(f"{folder}/{name}/{STATE_FILE}" for name in DENOISER_FOLDERS)
        if any(path in files for path in (*beside, *inside)):
            continue
        yield Fault(
            f"{context.source.label}: {folder}/ has weights without {STATE_FILE} beside them"
            + (" (the root has one)" if root_has_state else ""),
            path=folder,
            help=f"run: sla-ckpt push {context.source.label} CHECKPOINT --path-in-repo {folder}",
            level="warning" if root_has_state else None,
        )


def model_folders(files: Iterable[str]) -> set[str]:
    """Folders, other than the root, that hold a denoiser's folder or an adapter file."""
    found = set()
    for path in files:
        folder, _, name = path.rpartition("/")
        parent, _, last = folder.rpartition("/")
        if name in LORA_FILES and folder and last != "ema":
            found.add(folder)
        elif last in DENOISER_FOLDERS and parent and name.endswith((".safetensors", ".bin")):
            found.add(parent)
    return found
