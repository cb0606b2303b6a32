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
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

#: Added by torch.compile, DDP, FSDP and activation checkpointing, anywhere in a name.
WRAPPERS = (
    "_orig_mod.",
    "module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)

LAYER_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "turbodiffusion": "blocks.{layer}.self_attn.attn_op.local_attn.proj_l.{tensor}",
        "turbowan": "blocks.{layer}.attn1.attn_op.local_attn.proj_l.{tensor}",
        "sglang": "blocks.{layer}.attn1.local_attn.proj_l.{tensor}",
        "fastvideo": "blocks.{layer}.attn1.attn_impl.proj_l.{tensor}",
        "mindie": "layers.{layer}.sla.proj_l.{tensor}",
    }
)

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "turbodiffusion": "TurboDiffusion, per layer",
        "turbowan": "TurboWan-Diffusers, per layer",
        "sglang": "sglang, per layer",
        "fastvideo": "FastVideo, per layer",
        "mindie": "MindIE-SD, per layer",
        "module": "thu-ml/SLA module",
        "pairs": "SimpleTuner pairs",
    }
)


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    text = text.replace(r"\{layer\}", r"(?P<layer>\d{1,5})")
    text = text.replace(r"\{tensor\}", r"(?P<tensor>weight|bias)")
    return re.compile(r"(?P<container>(?:[^:/]*\.)?)" + text)


_LAYER_PATTERNS = {layout: _pattern(template) for layout, template in LAYER_KEYS.items()}
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
        layout: A key of :data:`TITLES`.
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
        match = pattern.fullmatch(name)
        if match:
            layer, tensor = int(match["layer"]), match["tensor"]
            return ProjectionName(layout, match["container"], layer, None, tensor)
    match = _PAIR.fullmatch(name)
    if match:
        return ProjectionName("pairs", match["container"], None, match["pair"], match["tensor"])
    match = _MODULE.fullmatch(name)
    return ProjectionName("module", "", None, None, match["tensor"]) if match else None


def is_projection(name: str) -> bool:
    """Whether a name ends like a projection's, in whatever layout."""
    return _ANY.search(name) is not None


def is_sla2(name: str) -> bool:
    """Whether a name belongs to SLA2 (router, alpha)."""
    return _SLA2.search(name) is not None
