"""Are the weights those of the model that config.json describes? SLA309."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sla_ckpt.checkpoint.weights import series_of
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.pairs.block_lists import declared_blocks
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checkpoint.layout import Component
    from sla_ckpt.checks.context import Context
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

_BLOCK = re.compile(r"(?P<list>[a-z_]+)\.(?P<number>\d{1,5})\.(?P<rest>.+)")
#: Attention of the main stream; a second stream (audio, say) has a width of its own.
_QUERY = re.compile(r"attn1?\.to_q\.weight")
#: What save_pretrained calls a diffusers model; other files beside it are not the model.
_STEM = "diffusion_pytorch_model"
#: More blocks than any model has: a number in a config must not decide how long we count.
_MOST_BLOCKS = 10_000


@rule("SLA309", "error", "weights do not fit config.json")
def geometry(context: Context) -> Iterator[Fault]:
    for component in context.checkpoint.components:
        if component.config is None:
            continue
        for series, shapes in _complete_series(context, component).items():
            yield from _blocks(component, series, shapes)
            yield from _width(component, series, shapes)


def _complete_series(
    context: Context, component: Component
) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Shapes of the tensors of each set of weights whose every shard can be read.

    A set that is not whole is other rules' business.
    """
    shards: dict[str, list[SafetensorsHeader | None]] = defaultdict(list)
    good = context.good_headers(component)
    for path in component.weights.safetensors:
        if path.rpartition("/")[2].startswith(_STEM):
            shards[series_of(path)].append(good.get(path))
    for index in component.weights.indexes:
        if not set(index.shards) <= set(component.weights.files):
            shards.pop(index.series, None)
    for series in component.weights.missing_numbered_shards():
        shards.pop(series, None)
    return {
        series: {
            name: tuple(info.shape)
            for header in headers
            if header is not None
            for name, info in header.tensors.items()
        }
        for series, headers in shards.items()
        if None not in headers
    }


def _blocks(
    component: Component, series: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Fault]:
    """Lists that are shorter or longer than declared, or have gaps."""
    assert component.config is not None
    declared = declared_blocks(component.config)
    found: dict[str, set[int]] = {attribute: set() for attribute in declared}
    for name in shapes:
        match = _BLOCK.fullmatch(name)
        if match and match["list"] in found:
            found[match["list"]].add(int(match["number"]))
    if not any(found.values()):
        return  # names of another format: nothing here can be told from them
    for attribute, (entry, number) in declared.items():
        there = found[attribute]
        missing = {n for n in range(min(number, _MOST_BLOCKS)) if n not in there}
        extra = {n for n in there if n >= number}
        if missing or extra:
            yield Fault(
                f"{component.config_path} declares {count(number, 'block')} in {attribute} "
                f"({entry}), {series} has {len(there)}: {_difference(missing, extra)}",
                path=component.config_path,
                help="these weights and this config.json are not of one model: fetch both from "
                "one save, or save the model again with save_pretrained",
            )


def _difference(missing: set[int], extra: set[int]) -> str:
    parts = [("missing", missing), ("not declared", extra)]
    return ", ".join(
        f"{join_some([str(n) for n in sorted(numbers)])} {what}"
        for what, numbers in parts
        if numbers
    )


def _width(
    component: Component, series: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Fault]:
    """Queries of another width than heads × head_dim, from which the pairs are expected."""
    config: Mapping[str, Any] = component.config or {}
    heads, head_dim = config.get("num_attention_heads"), config.get("attention_head_dim")
    declared = declared_blocks(config)
    if not declared or not isinstance(heads, int) or not isinstance(head_dim, int):
        return
    wrong: dict[int, list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        match = _BLOCK.fullmatch(name)
        if (
            match
            and match["list"] in declared
            and _QUERY.fullmatch(match["rest"])
            and len(shape) == 2
            and shape[0] != heads * head_dim
        ):
            wrong[shape[0]].append(name)
    for width, names in wrong.items():
        yield Fault(
            f"{component.config_path} declares {heads} heads of {head_dim}, {heads * head_dim} in "
            f"all, but {series} has queries of {width}: {join_some(names)}",
            path=component.config_path,
            help="these weights and this config.json are not of one model: fetch both from one "
            "save",
        )
