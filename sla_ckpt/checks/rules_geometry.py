"""Are the weights those of the model that config.json describes? SLA309."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sla_ckpt.checkpoint.weights import STEM, series_of
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.pairs.block_lists import declared_blocks
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checkpoint.layout import Component
    from sla_ckpt.checks.context import Context
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader, TensorInfo

_BLOCK = re.compile(r"(?P<list>[a-z_]+)\.(?P<number>\d{1,5})\.(?P<rest>.+)")
#: Attention of the main stream; a second stream (audio, say) has a width of its own.
_QUERY = re.compile(r"attn1?\.to_q\.weight")
#: More blocks than any model has: a number in a config must not decide how long we count.
_MOST_BLOCKS = 10_000


@rule("SLA309", "error", "weights do not fit config.json")
def geometry(context: Context) -> Iterator[Fault]:
    for component in context.checkpoint.components:
        config = component.config or {}
        declared = declared_blocks(config)
        if not declared:
            continue
        for series, tensors in _complete_series(context, component).items():
            numbers, queries = _found(declared.keys(), tensors)
            for message in (*_blocks(declared, numbers, series), *_widths(config, queries, series)):
                yield Fault(
                    f"{component.config_path} declares {message}",
                    path=component.config_path,
                    help="these weights and this config.json are not of one model: fetch both "
                    "from one save, or save the model again with save_pretrained",
                )


def _complete_series(
    context: Context, component: Component
) -> Mapping[str, Mapping[str, TensorInfo]]:
    """The tensors of each set of diffusers' weights whose every shard can be read.

    A set that is not whole is other rules' business, and other files are not the model.
    """
    shards: dict[str, list[SafetensorsHeader | None]] = defaultdict(list)
    good = context.good_headers(component)
    for path in component.weights.safetensors:
        if path.rpartition("/")[2].startswith(STEM):
            shards[series_of(path)].append(good.get(path))
    for index in component.weights.indexes:
        if not set(index.shards) <= set(component.weights.files):
            shards.pop(index.series, None)
    for series in component.weights.missing_numbered_shards():
        shards.pop(series, None)
    return {
        series: {
            name: info
            for header in headers
            if header is not None
            for name, info in header.tensors.items()
        }
        for series, headers in shards.items()
        if None not in headers
    }


def _found(
    lists: Collection[str], tensors: Mapping[str, TensorInfo]
) -> tuple[Mapping[str, set[int]], Mapping[int, list[str]]]:
    """The blocks of each list by number, and the names of the queries by width."""
    numbers: dict[str, set[int]] = {attribute: set() for attribute in lists}
    queries: dict[int, list[str]] = defaultdict(list)
    for name, info in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match is None or match["list"] not in numbers:
            continue
        numbers[match["list"]].add(int(match["number"]))
        if len(info.shape) == 2 and _QUERY.fullmatch(match["rest"]):
            queries[info.shape[0]].append(name)
    return numbers, queries


def _blocks(
    declared: Mapping[str, tuple[str, int]], numbers: Mapping[str, set[int]], series: str
) -> Iterator[str]:
    """Lists that are shorter or longer than declared, or have gaps."""
    if not any(numbers.values()):
        return  # names of another format: nothing here can be told from them
    for attribute, (entry, number) in declared.items():
        there = numbers[attribute]
        parts = {
            "missing": [n for n in range(min(number, _MOST_BLOCKS)) if n not in there],
            "not declared": sorted(n for n in there if n >= number),
        }
        wrong = [f"{join_some([*map(str, ns)])} {what}" for what, ns in parts.items() if ns]
        if wrong:
            yield (
                f"{count(number, 'block')} in {attribute} ({entry}), {series} has {len(there)}: "
                f"{', '.join(wrong)}"
            )


def _widths(
    config: Mapping[str, Any], queries: Mapping[int, list[str]], series: str
) -> Iterator[str]:
    """Queries of another width than heads × head_dim, from which the pairs are expected."""
    heads, head_dim = config.get("num_attention_heads"), config.get("attention_head_dim")
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return
    for width, names in queries.items():
        if width != heads * head_dim:
            yield (
                f"{heads} heads of {head_dim}, {heads * head_dim} in all, but {series} has "
                f"queries of {width}: {join_some(names)}"
            )
