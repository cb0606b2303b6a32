"""Did the save finish, and is everything there that belongs together? SLA301."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import (
    DENOISER_FOLDERS,
    GUARD_FILE,
    MANIFEST_FILE,
    MIGRATION_JOURNAL,
    MIGRATION_STAGING,
    PULL_MARKER,
    PULL_STAGING,
    TRAINING_STATE_FILE,
    CheckpointKind,
)
from sla_ckpt.checkpoint.runconfig import UPLOADED_CONFIG
from sla_ckpt.checks.evidence import manifest_files
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.checks.report import Level
from sla_ckpt.checks.siblings import folder_name, guarded_sibling, last_good
from sla_ckpt.errors import FormatError
from sla_ckpt.state import STATE_FILE
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

LEFTOVERS = (".tmp", ".incomplete", ".part")
_NEEDED = ("config.json", "model_index.json", MANIFEST_FILE, "lycoris_config.json")
_TRAINER_FILE = re.compile(r"(optimizer|scheduler|random_states|scaler|training_state)[^/]*")
#: Where DeepSpeed and FSDP keep the optimizer instead.
_SHARDED_OPTIMIZER = re.compile(r"(optimizer|pytorch_model)[^/]*/.+")
#: What an optimizer's file can be that no trainer reads. Others, such as a class of its own in
#: the pickle, are the trainer's business.
_DAMAGED = ("empty", "truncated", "lfs-pointer", "html", "zeros", "text", "unknown")


@rule("SLA301", "error", "checkpoint incomplete")
def incomplete(context: Context) -> Iterator[Fault]:
    checkpoint = context.checkpoint
    folder = folder_name(context)
    if folder.startswith("checkpoint-") and folder.endswith("-tmp"):
        yield Fault(
            f"{folder} is the temporary folder of a save that never finished",
            help=last_good(context),
        )
    yield from _interrupted(context)
    yield from _leftovers(context)
    yield from _unopenable(context)
    yield from _pipeline(context)
    if context.options.purpose == "resume":
        yield from _nothing_to_resume(context)
    if checkpoint.has_trainer_state and context.options.purpose != "inference":
        yield from _trainer_files(context)
    if context.run_config_fault is not None:
        yield Fault(context.run_config_fault, path=UPLOADED_CONFIG, level="warning")
    if checkpoint.kind is CheckpointKind.LYCORIS and (
        "lycoris_config.json" not in context.source.files()
    ):
        yield Fault(
            "lycoris_config.json is missing beside the LyCORIS weights",
            path="lycoris_config.json",
            help="copy it from the training folder: loaders need it to rebuild the adapter",
            level="warning",
        )


def _interrupted(context: Context) -> Iterator[Fault]:
    """A command of ours that was killed while it replaced files: old and new may be mixed."""
    for path, what, way_out in (
        (
            f"{MIGRATION_STAGING}/{MIGRATION_JOURNAL}",
            "a migration or repair",
            f"finish it: sla-ckpt verify --fix {context.source.label}",
        ),
        (f"{PULL_STAGING}/{PULL_MARKER}", "a pull", "run the same sla-ckpt pull again"),
    ):
        if path in context.source.files() and not context.source.is_remote:
            yield Fault(
                f"{what} was interrupted while it replaced files: old and new may be mixed",
                path=path,
                help=way_out,
            )


def _leftovers(context: Context) -> Iterator[Fault]:
    leftovers = [path for path in context.source.files() if path.endswith(LEFTOVERS)]
    if leftovers:
        yield Fault(
            f"{count(len(leftovers), 'unfinished file')} of a killed save: {join_some(leftovers)}",
            path=leftovers[0],
            help="delete them once the checkpoint is known to be good; push leaves them out",
            level="warning",
        )


def _unopenable(context: Context) -> Iterator[Fault]:
    """Dangling links, folders without permission: listed, but nobody can read them."""
    broken: dict[str, str] = getattr(context.source, "broken", {})
    for path, reason in broken.items():
        if path == STATE_FILE:
            continue  # SLA001 speaks of it
        if context.options.purpose == "inference" and _TRAINER_FILE.fullmatch(path):
            continue
        yield Fault(
            f"{path} cannot be opened: {reason}",
            path=path,
            help="fetch or copy it again; a link into a download cache breaks when that is cleaned"
            if "link" in reason
            else "check its permissions",
            level="error" if _is_needed(context, path) else "warning",
        )


def _is_needed(context: Context, path: str) -> bool:
    """Whether a loader or the trainer opens the file, or it stands in a model's folder."""
    top, _, below = path.partition("/")
    models = {*DENOISER_FOLDERS, *context.checkpoint.pipeline}
    models |= {component.folder for component in context.checkpoint.components}
    if below or top in models:
        return top in models
    return (
        path.endswith((".safetensors", ".bin"))
        or path in _NEEDED
        or (_TRAINER_FILE.fullmatch(path) is not None)
    )


def _pipeline(context: Context) -> Iterator[Fault]:
    fault = context.checkpoint.faults.get("model_index.json")
    if fault is not None:
        yield Fault(fault, path="model_index.json", help="save the pipeline again")
    folders = {path.split("/", 1)[0] for path in context.source.files() if "/" in path}
    absent = [
        f"{name}/ ({kind})"
        for name, (_, kind) in context.checkpoint.pipeline.items()
        if name not in folders
    ]
    if absent:
        denoiser = any(item.startswith(DENOISER_FOLDERS) for item in absent)
        yield Fault(
            f"model_index.json names {count(len(absent), 'component')} not here: "
            f"{join_some(absent)}",
            path="model_index.json",
            help="fetch them, or hand them to from_pretrained() yourself",
            level="error" if denoiser else "warning",
        )


def _nothing_to_resume(context: Context) -> Iterator[Fault]:
    files = context.source.files()
    if context.checkpoint.optimizer_files or any(map(_SHARDED_OPTIMIZER.fullmatch, files)):
        return
    yield Fault(
        "there is no optimizer.bin: no training can resume from here",
        path="optimizer.bin",
        help=last_good(context),
    )


def _trainer_files(context: Context) -> Iterator[Fault]:
    checkpoint, files = context.checkpoint, context.source.files()
    severity: Level = "error" if context.options.purpose == "resume" else "warning"
    for path in (TRAINING_STATE_FILE, MANIFEST_FILE):
        if path in checkpoint.faults:
            yield Fault(checkpoint.faults[path], path=path, help=last_good(context))
    if TRAINING_STATE_FILE not in files and checkpoint.optimizer_files:
        yield Fault(
            f"{TRAINING_STATE_FILE} is missing although the optimizer's state is there",
            path=TRAINING_STATE_FILE,
            help=last_good(context),
            level=severity,
        )
    yield from _damaged_trainer_files(context, severity)
    listed = manifest_files(context) or ()
    absent = [path for path in listed if path not in files and path != STATE_FILE]
    if absent:
        yield Fault(
            f"{MANIFEST_FILE} lists {count(len(absent), 'file')} not here: {join_some(absent)}",
            path=MANIFEST_FILE,
            help=last_good(context),
        )
    if GUARD_FILE not in files and not context.source.is_remote:
        sibling = guarded_sibling(context)
        if sibling is not None:
            yield Fault(
                f"completion guard {GUARD_FILE} is missing, although the run writes it "
                f"({sibling} has one): the save did not finish",
                path=GUARD_FILE,
                help=last_good(context),
            )


def _damaged_trainer_files(context: Context, level: Level) -> Iterator[Fault]:
    files = context.source.files()
    for path in context.checkpoint.trainer_files:
        message = f"{path} is empty (0 bytes)" if not files[path] else None
        if message is None and path in context.checkpoint.optimizer_files:
            fault = context.optimizers[path]
            if isinstance(fault, FormatError) and fault.kind in _DAMAGED:
                message = fault.message
        if message is not None and path != TRAINING_STATE_FILE:
            yield Fault(
                f"{message}: a resume fails, the weights are not concerned",
                path=path,
                help=last_good(context),
                level=level,
            )
