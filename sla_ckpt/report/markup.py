"""HTML that cannot be injected into: text is escaped unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable

from sla_ckpt.text import one_line

#: Elements without an end tag.
_VOID = frozenset({"meta", "link"})


class Markup(str):
    """Finished HTML. Everything else that goes into an element is text and gets escaped."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def text(value: str, *, limit: int = 1000) -> Markup:
    """Text from a file or a path: one line, control characters made visible, escaped.

    White space at an end stays as one space, so that text and elements can alternate.
    """
    shown = html.escape(one_line(value, limit=limit))
    if not shown:
        return Markup(" " if value else "")
    return Markup(f"{' ' * value[0].isspace()}{shown}{' ' * value[-1].isspace()}")


def el(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element.

    Args:
        name: Tag.
        children: Markup as it is, other strings escaped, None left out, iterables one by one.
        attributes: Values are escaped; None and False leave the attribute out, True gives it
            without a value. A trailing ``_`` is dropped (``class_``), other ``_`` become ``-``.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {label}")
        else:
            parts.append(f' {label}="{html.escape(one_line(str(value), limit=4000))}"')
    parts.append(">")
    if name not in _VOID:
        parts += [_render(child) for child in children]
        parts.append(f"</{name}>")
    return Markup("".join(parts))


def join(children: Iterable[Child], separator: str = "") -> Markup:
    """Children one after the other, with escaped text between them."""
    rendered = [_render(child) for child in children]
    return Markup(html.escape(separator).join(item for item in rendered if item))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return text(child)
    return "".join(_render(item) for item in child)
