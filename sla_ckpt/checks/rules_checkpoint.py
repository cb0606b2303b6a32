"""Is the rest of the checkpoint whole, and will it resume? SLA301–SLA308."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import (
    GUARD_FILE,
    MANIFEST_FILE,
    TRAINING_STATE_FILE,
    CheckpointKind,
    Component,
)
from sla_ckpt.checkpoint.runconfig import UPLOADED_CONFIG
from sla_ckpt.checks.evidence import manifest_files, sla_groups
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.errors import FormatError
from sla_ckpt.state import STATE_FILE
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

LEFTOVERS = (".tmp", ".incomplete", ".part")
FP32_PROJECTION_BREAKS = ("adamw_bf16",)


@rule("SLA301", "error", "checkpoint incomplete")
def incomplete(context: Context) -> Iterator[Fault]:
    checkpoint = context.checkpoint
    folder = PurePath(context.source.label).name
    if folder.startswith("checkpoint-") and folder.endswith("-tmp"):
        yield Fault(
            f"{folder} is the temporary folder of a save that never finished",
            help=_last_good(context),
        )
    yield from _leftovers(context)
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


def _leftovers(context: Context) -> Iterator[Fault]:
    leftovers = [path for path in context.source.files() if path.endswith(LEFTOVERS)]
    if leftovers:
        yield Fault(
            f"{count(len(leftovers), 'unfinished file')} of a killed save: {join_some(leftovers)}",
            path=leftovers[0],
            help="delete them once the checkpoint is known to be good; push leaves them out",
            level="warning",
        )


def _trainer_files(context: Context) -> Iterator[Fault]:
    checkpoint, files = context.checkpoint, context.source.files()
    for path in (TRAINING_STATE_FILE, MANIFEST_FILE):
        if path in checkpoint.faults:
            yield Fault(checkpoint.faults[path], path=path, help=_last_good(context))
    if TRAINING_STATE_FILE not in files and checkpoint.optimizer_files:
        yield Fault(
            f"{TRAINING_STATE_FILE} is missing although the optimizer's state is there",
            path=TRAINING_STATE_FILE,
            help=_last_good(context),
            level="error" if context.options.purpose == "resume" else "warning",
        )
    listed = manifest_files(context) or ()
    absent = [path for path in listed if path not in files and path != STATE_FILE]
    if absent:
        yield Fault(
            f"{MANIFEST_FILE} lists {count(len(absent), 'file')} not here: {join_some(absent)}",
            path=MANIFEST_FILE,
            help=_last_good(context),
        )
    if GUARD_FILE not in files and not context.source.is_remote:
        sibling = _guarded_sibling(context)
        if sibling is not None:
            yield Fault(
                f"completion guard {GUARD_FILE} is missing, although the run writes it "
                f"({sibling} has one): the save did not finish",
                path=GUARD_FILE,
                help=_last_good(context),
            )


def _siblings(context: Context) -> list[tuple[str, bool]]:
    """(name, has a guard) of the other checkpoints of this run, newest first."""
    from sla_ckpt.checkpoint.resolve import list_checkpoints
    from sla_ckpt.checkpoint.source import LocalSource

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


def _guarded_sibling(context: Context) -> str | None:
    return next((name for name, guarded in _siblings(context) if guarded), None)


def _last_good(context: Context) -> str:
    good = _guarded_sibling(context)
    if good:
        return f"the last complete checkpoint of this run is {good}"
    return "take an older checkpoint, or copy this one again from where it was written"


@rule("SLA302", "error", "weights truncated or header invalid")
def weights_unreadable(context: Context) -> Iterator[Fault]:
    for path, header in context.headers.items():
        if isinstance(header, FormatError):
            yield Fault(header.message, path=path, help=header.hint or _last_good(context))
    for component in context.checkpoint.components:
        yield from _other_weights(context, component)


def _other_weights(context: Context, component: Component) -> Iterator[Fault]:
    from sla_ckpt.formats.sniff import sniff

    files = context.source.files()
    for path in component.weights.files:
        if path.endswith(".safetensors"):
            continue
        kind = sniff(context.source.read(path, 0, 512), files[path])
        if kind not in ("torch-zip", "zip", "legacy-torch"):
            yield Fault(
                f"{path} is not a torch file but {kind} ({files[path]:,} bytes)",
                path=path,
                help=_last_good(context),
            )
    if not component.weights.files and component is context.checkpoint.denoiser:
        where = f"{component.folder}/" if component.folder else "the folder"
        yield Fault(
            f"{where} has no weights (no .safetensors and no .bin)",
            path=component.folder or None,
            help="copy the weights here, or verify the folder that has them",
        )


@rule("SLA303", "error", "shards and index disagree")
def shards(context: Context) -> Iterator[Fault]:
    files = context.source.files()
    for component in context.checkpoint.components:
        weights = component.weights
        for path, fault in weights.faults.items():
            yield Fault(fault, path=path, help="save the model again with save_pretrained")
        for index in weights.indexes:
            missing = [shard for shard in index.shards if shard not in files]
            if missing:
                lost = sum(1 for shard in index.weight_map.values() if shard not in files)
                yield Fault(
                    f"{index.path} names {count(len(missing), 'shard')} not here: "
                    f"{join_some(missing)} ({count(lost, 'tensor')} of "
                    f"{len(index.weight_map):,})",
                    path=index.path,
                    help="fetch the missing shards; loaders may leave their weights random",
                )
            yield from _index_versus_headers(index.path, index.weight_map, context, component)
        if not weights.indexes:
            for stem, gaps in weights.missing_numbered_shards().items():
                yield Fault(
                    f"{stem}: {count(len(gaps), 'shard')} missing from the series: "
                    f"{join_some(gaps)}",
                    path=gaps[0],
                    help="fetch the missing shards and the index",
                )


def _index_versus_headers(
    path: str, weight_map: object, context: Context, component: Component
) -> Iterator[Fault]:
    assert isinstance(weight_map, dict)
    if not path.endswith(".safetensors.index.json"):
        return
    headers: dict[str, SafetensorsHeader] = context.good_headers(component)
    shards = {shard for shard in weight_map.values() if shard in headers}
    present = {name: shard for shard in shards for name in headers[shard].tensors}
    unknown = sorted(name for name in present if name not in weight_map)
    misplaced = sorted(
        name for name, s in weight_map.items() if s in headers and name not in headers[s].tensors
    )
    if unknown:
        yield Fault(
            f"{path} does not know {count(len(unknown), 'tensor')} of its shards: "
            f"{join_some(unknown)}",
            path=path,
            help="the index is stale: it belongs to another save of this model",
        )
    if misplaced:
        yield Fault(
            f"{path} expects {count(len(misplaced), 'tensor')} that their shards do not hold: "
            f"{join_some(misplaced)}",
            path=path,
            help="the index is stale: it belongs to another save of this model",
        )
    outside = sorted(set(component.weights.safetensors) - set(weight_map.values()))
    if outside:
        yield Fault(
            f"{path} does not name {count(len(outside), 'weight file')} beside it: "
            f"{join_some(outside)}",
            path=path,
            help="left over from another save? loaders ignore what the index does not name",
            level="warning",
        )


@rule("SLA304", "warning", "optimizer carries the SLA parameter group", fixable=True)
def optimizer_trap(context: Context) -> Iterator[Fault]:
    purpose = context.options.purpose
    if purpose == "inference":
        return
    for path in context.checkpoint.optimizer_files:
        groups = sla_groups(context, path)
        if groups:
            yield Fault(
                f"{path} has {count(groups, 'SLA parameter group')} that a fresh process does "
                "not have yet: resume fails with 'different number of parameter groups'",
                path=path,
                help=f"the weights are fine; run: sla-ckpt verify --fix {context.source.label} "
                "(only proj_l's moments are dropped)",
                level="error" if purpose == "resume" else None,
            )


@rule("SLA305", "warning", "the configuration does not use SLA")
def config_without_sla(context: Context) -> Iterator[Fault]:
    config = context.run_config
    if config is None or context.checkpoint.state_path is None:
        return
    mechanism = config.attention_mechanism
    if mechanism is None or mechanism.lower() != "sla":
        has = f"has attention_mechanism {mechanism}" if mechanism else "sets no attention_mechanism"
        yield Fault(
            f"{config.path} {has}, not sla: the state would not be used",
            path=config.path,
            help="set attention_mechanism to sla, or name the right configuration",
        )


@rule("SLA306", "warning", "manifest does not list the state file", fixable=True)
def manifest_entry(context: Context) -> Iterator[Fault]:
    if context.options.purpose == "inference" or context.checkpoint.state_path != STATE_FILE:
        return
    listed = manifest_files(context)
    if listed is not None and STATE_FILE not in listed:
        yield Fault(
            f"{MANIFEST_FILE} does not list {STATE_FILE}: a resume from S3 downloads only what "
            "it lists",
            path=MANIFEST_FILE,
            help=f"run: sla-ckpt verify --fix {context.source.label}",
        )


@rule("SLA307", "error", "weights contain NaN or Inf")
def weights_not_finite(context: Context) -> Iterator[Fault]:
    if not context.options.deep:
        return
    from sla_ckpt.checks.deep import scan_weights

    for fault in scan_weights(context):
        yield Fault(
            f"{fault.path}: {fault.tensor} has {fault.nan:,} NaN and {fault.inf:,} Inf of "
            f"{fault.elements:,} values",
            path=fault.path,
            help=_last_good(context),
        )


@rule("SLA308", "warning", "optimizer cannot train a float32 proj_l")
def optimizer_dtype(context: Context) -> Iterator[Fault]:
    config = context.run_config
    if config is None or context.options.purpose == "inference":
        return
    name = (config.optimizer or "").lower()
    if name in FP32_PROJECTION_BREAKS and (config.attention_mechanism or "").lower() == "sla":
        yield Fault(
            f"{config.path}: optimizer {name} accepts only bfloat16 parameters and fails at the "
            "first step with a gradient for proj_l",
            path=config.path,
            help="choose an optimizer that takes float32 parameters, for instance adamw_torch",
        )
