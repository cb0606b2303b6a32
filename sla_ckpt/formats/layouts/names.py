"""The names under which projects keep ``proj_l``.

=================  ====================================================
layout             keys
=================  ====================================================
turbodiffusion     ``blocks.N.self_attn.attn_op.local_attn.proj_l.*``
turbowan           ``blocks.N.attn1.attn_op.local_attn.proj_l.*``
sglang             ``blocks.N.attn1.local_attn.proj_l.*``
fastvideo          ``blocks.N.attn1.attn_impl.proj_l.*``
mindie             ``layers.N.sla.proj_l.*``
module             ``proj_l.*`` (thu-ml/SLA's module by itself)
pairs              ``<head_dim>:<dtype>/proj_l.*`` (the twin; also with a dot)
=================  ====================================================

Plug-ins add layouts of their own (entry-point group ``sla_ckpt.layouts``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sla_ckpt.entry_points import LAYOUTS, load_group

#: Added by torch.compile, DDP, FSDP and activation checkpointing, anywhere in a name.
WRAPPERS = (
    "_orig_mod.",
    "module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)


@dataclass(frozen=True)
class Layout:
    """How a project names its projections, one per layer.

    Attributes:
        title: What people call it: ``"FastVideo, per layer"``.
        template: The name of one tensor, with ``{layer}`` for the layer's number and ``{tensor}``
            for ``weight`` or ``bias``. What stands before it in a file (``net.``) is left open.
        suffix: ``".safetensors"`` or ``".pth"`` if it can be written too, and as what.
    """

    title: str
    template: str
    suffix: str | None = None


_BUILTIN: Mapping[str, Layout] = MappingProxyType(
    {
        "turbodiffusion": Layout(
            "TurboDiffusion, per layer",
            "blocks.{layer}.self_attn.attn_op.local_attn.proj_l.{tensor}",
            ".pth",
        ),
        "turbowan": Layout(
            "TurboWan-Diffusers, per layer",
            "blocks.{layer}.attn1.attn_op.local_attn.proj_l.{tensor}",
        ),
        "sglang": Layout("sglang, per layer", "blocks.{layer}.attn1.local_attn.proj_l.{tensor}"),
        "fastvideo": Layout(
            "FastVideo, per layer",
            "blocks.{layer}.attn1.attn_impl.proj_l.{tensor}",
            ".safetensors",
        ),
        "mindie": Layout("MindIE-SD, per layer", "layers.{layer}.sla.proj_l.{tensor}"),
    }
)
_SHARED = MappingProxyType({"module": "thu-ml/SLA module", "pairs": "SimpleTuner pairs"})
#: What ``migrate --to`` calls the state and its twin, so no layout can have these names.
_STATES = ("simpletuner", "safetensors")


@functools.cache
def layouts() -> Mapping[str, Layout]:
    """The per-layer layouts by name, those of plug-ins included."""
    taken = (*_BUILTIN, *_SHARED, *_STATES)
    plugins = load_group(LAYOUTS, _checked, taken=taken)
    return MappingProxyType({**_BUILTIN, **{item.name: item.value for item in plugins}})


def titles() -> Mapping[str, str]:
    """What people call each layout, by :attr:`ProjectionName.layout`."""
    return {**{name: item.title for name, item in layouts().items()}, **_SHARED}


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    text = text.replace(r"\{layer\}", r"(?P<layer>\d{1,5})")
    text = text.replace(r"\{tensor\}", r"(?P<tensor>weight|bias)")
    return re.compile(r"(?P<container>(?:[^:/]*\.)?)" + text)


_LAYER_PATTERNS = {name: _pattern(layout.template) for name, layout in _BUILTIN.items()}
_MODULE = re.compile(r"proj_l\.(?P<tensor>weight|bias)")
_PAIR = re.compile(
    r"(?P<container>(?:state\.)?)(?P<pair>\d{1,6}:\w+)[./]proj_l\.(?P<tensor>weight|bias)"
)
_ANY = re.compile(r"(?:^|[./])proj_l\.(?:weight|bias)$")
#: SLA2 learns its router and a mixing factor; no projection can stand for them.
_SLA2 = re.compile(r"(?:^|\.)(?:local_attn|attn_impl|sla)\.(?:alpha|router)\b")


@dataclass(frozen=True)
class ProjectionName:
    """What one tensor's name says.

    Attributes:
        layout: A key of :func:`titles`.
        container: What stands before the layout's own name (``"net_ema."``), ``""`` if nothing.
        layer: Layer number; None for shared layouts.
        pair: ``"128:bf16"`` for the pairs layout.
        tensor: ``"weight"`` or ``"bias"``.
    """

    layout: str
    container: str
    layer: int | None
    pair: str | None
    tensor: str


def strip_wrappers(name: str) -> str:
    """Remove every known wrapper's prefix: ``module.blocks.0._orig_mod.x`` -> ``blocks.0.x``.

    Only whole name parts are removed, so ``submodule.x`` stays.
    """
    parts = name.split(".")
    kept = [part for part in parts[:-1] if f"{part}." not in WRAPPERS]
    return ".".join([*kept, parts[-1]])


def parse_name(name: str) -> ProjectionName | None:
    """Recognise a projection's name (wrappers already stripped); None if it is none."""
    for layout, pattern in _LAYER_PATTERNS.items():
        if match := pattern.fullmatch(name):
            return _in_layer(layout, match)
    match = _PAIR.fullmatch(name)
    if match:
        return ProjectionName("pairs", match["container"], None, match["pair"], match["tensor"])
    match = _MODULE.fullmatch(name)
    if match:
        return ProjectionName("module", "", None, None, match["tensor"])
    for layout, pattern in _plugin_patterns().items():
        if match := pattern.fullmatch(name):
            return _in_layer(layout, match)
    return None


def _in_layer(layout: str, match: re.Match[str]) -> ProjectionName:
    return ProjectionName(layout, match["container"], int(match["layer"]), None, match["tensor"])


@functools.cache
def _plugin_patterns() -> Mapping[str, re.Pattern[str]]:
    return {
        name: _pattern(layout.template)
        for name, layout in layouts().items()
        if name not in _BUILTIN
    }


def _checked(name: str, value: object) -> Layout:
    """The layout that an entry point gave.

    Raises:
        TypeError: It is no layout.
        ValueError: Its name, template or suffix cannot be.
    """
    if not isinstance(value, Layout):
        raise TypeError(f"is a {type(value).__name__}, not a sla_ckpt.plugins.Layout")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValueError("is no name for a layout: small letters, digits, - and _")
    if not isinstance(value.title, str) or not isinstance(value.template, str):
        raise TypeError("needs a title and a template")
    bare = value.template.replace("{layer}", "0", 1).replace("{tensor}", "weight", 1)
    if len(bare) != len(value.template) - 8 or not re.fullmatch(r"[\w.-]+", bare):
        raise ValueError("needs a template with {layer} and {tensor} once each")
    if any(pattern.fullmatch(bare) for pattern in _LAYER_PATTERNS.values()):
        raise ValueError("has the names of a layout that is built in")
    if value.suffix not in (None, ".pth", ".safetensors"):
        raise ValueError(f"has the suffix {value.suffix!r:.40}, neither .pth nor .safetensors")
    return value


def is_projection(name: str) -> bool:
    """Whether a name ends like a projection's, in whatever layout."""
    return _ANY.search(name) is not None


def is_sla2(name: str) -> bool:
    """Whether a name belongs to SLA2 (router, alpha)."""
    return _SLA2.search(name) is not None
