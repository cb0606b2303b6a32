"""Small pictures: each state has its own shape, so that colour is never the only sign."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sla_ckpt.checks.report import Level
from sla_ckpt.report.markup import Markup, el

#: Name -> path in a 16 × 16 box, drawn with a stroke.
_SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "good": "M3 8.5l3.2 3.2L13 5",
        "warning": "M8 2.2L14.6 13.8H1.4ZM8 6.4v3.4M8 11.7v.4",
        "error": "M4 4l8 8M12 4l-8 8",
        "missing": "M3.2 8h9.6",
        "info": "M8 7.2v5M8 3.8v.6",
        "unknown": "M5.4 5.6a2.6 2.6 0 1 1 3.8 2.3c-.8.5-1.2 1-1.2 1.9M8 12.2v.4",
        "unfinished": "M3.5 8h.1M8 8h.1M12.4 8h.1",
    }
)
LEVEL_ICONS: Mapping[Level, str] = MappingProxyType(
    {"error": "error", "warning": "warning", "info": "info"}
)


def sprite() -> Markup:
    """The definitions, once per page."""
    symbols = [
        el("symbol", el("path", d=path), id=f"i-{name}", viewBox="0 0 16 16")
        for name, path in _SHAPES.items()
    ]
    return el("svg", symbols, aria_hidden="true", class_="sprite")


def icon(name: str) -> Markup:
    """One picture; what it means stands beside it in words."""
    return el("svg", el("use", href=f"#i-{name}"), aria_hidden="true", class_="icon")
