"""Are the weights whole? SLA302, SLA303, SLA307."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import Component
from sla_ckpt.checkpoint.weights import WeightIndex, series_of
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.checks.siblings import last_good
from sla_ckpt.errors import FormatError
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

#: Kinds whose way out does not depend on what the file should hold.
_OWN_HINT = ("lfs-pointer", "html", "gzip", "tar")
_STALE = "the index is stale: it belongs to another save of this model"


@rule("SLA302", "error", "weights truncated or header invalid")
def weights_unreadable(context: Context) -> Iterator[Fault]:
    for path, header in context.headers.items():
        if isinstance(header, FormatError):
            hint = header.hint if header.kind in _OWN_HINT else last_good(context)
            if "__metadata__" in header.message:
                hint = "the tensors may be whole: save the file again with text as metadata values"
            yield Fault(header.message, path=path, help=hint)
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
                help=last_good(context),
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
    for component in context.checkpoint.components:
        weights = component.weights
        for path, fault in weights.faults.items():
            yield Fault(fault, path=path, help="save the model again with save_pretrained")
        for index in weights.indexes:
            yield from _index_versus_files(index, context, component)
            if ".safetensors.index." in index.path:
                yield from _index_versus_headers(index, context.good_headers(component))
        for series, gaps in weights.missing_numbered_shards().items():
            yield Fault(
                f"{series}: {count(len(gaps), 'shard')} missing from the series: {join_some(gaps)}",
                path=gaps[0],
                help="fetch the missing shards and the index",
            )


def _index_versus_files(
    index: WeightIndex, context: Context, component: Component
) -> Iterator[Fault]:
    files = context.source.files()
    missing = [shard for shard in index.shards if shard not in files]
    named = set(index.shards)
    outside = [
        path
        for path in component.weights.files
        if path not in named and series_of(path) == index.series
        and path.endswith(".safetensors") == (".safetensors.index." in index.path)
    ]  # fmt: skip
    if missing:
        lost = sum(1 for shard in index.weight_map.values() if shard not in files)
        stale = f"; {join_some(outside)} are here instead" if outside else ""
        yield Fault(
            f"{index.path} names {count(len(missing), 'shard')} not here: {join_some(missing)} "
            f"({count(lost, 'tensor')} of {len(index.weight_map):,}){stale}",
            path=index.path,
            help=_STALE
            if outside
            else "fetch the missing shards; loaders may leave their weights random",
        )
    elif outside:
        yield Fault(
            f"{index.path} does not name {count(len(outside), 'weight file')} beside it: "
            f"{join_some(outside)}",
            path=index.path,
            help="left over from another save? loaders ignore what the index does not name",
            level="warning",
        )


def _index_versus_headers(
    index: WeightIndex, headers: dict[str, SafetensorsHeader]
) -> Iterator[Fault]:
    weight_map = index.weight_map
    named = [shard for shard in index.shards if shard in headers]
    unknown = sorted(
        name for shard in named for name in headers[shard].tensors if name not in weight_map
    )
    misplaced = sorted(
        name for name, s in weight_map.items() if s in headers and name not in headers[s].tensors
    )
    if unknown:
        yield Fault(
            f"{index.path} does not know {count(len(unknown), 'tensor')} of its shards: "
            f"{join_some(unknown)}",
            path=index.path,
            help=_STALE,
        )
    if misplaced:
        yield Fault(
            f"{index.path} expects {count(len(misplaced), 'tensor')} that their shards do not "
            f"hold: {join_some(misplaced)}",
            path=index.path,
            help=_STALE,
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
            help=last_good(context),
        )
    unread = [
        path
        for component in context.checkpoint.components
        for path in component.weights.files
        if not path.endswith(".safetensors")
    ]
    if unread:
        yield Fault(
            f"--deep reads safetensors only; {count(len(unread), 'file')} not looked into: "
            f"{join_some(unread)}",
            path=unread[0],
            help="save the model as safetensors",
            level="info",
        )
