"""Head_dims of model classes that plug-ins know (entry-point group ``sla_ckpt.pairs``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sla_ckpt.entry_points import PAIRS, announced, load, package_of, warn
from sla_ckpt.errors import PluginError
from sla_ckpt.state import MAX_HEAD_DIM


def plugin_head_dims(class_name: str, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The head_dims that a model of this config materialises, as the class's plug-in says.

    Args:
        class_name: The config's ``_class_name``.
        config: Parsed ``config.json``.

    Returns:
        Ascending; None when no plug-in knows the class, or the one that does fails, which is a
        :class:`~sla_ckpt.errors.PluginWarning`.
    """
    for entry in announced(PAIRS):
        if entry.name != class_name:
            continue
        try:
            return _checked(load(entry), config)
        except PluginError as error:
            warn(error.message)
        except Exception as error:  # foreign code may raise anything
            warn(
                f"plug-in {class_name} of {package_of(entry)} is left out: "
                f"{type(error).__name__}: {error}"
            )
    return None


def _checked(function: object, config: Mapping[str, Any]) -> tuple[int, ...]:
    if not callable(function):
        raise TypeError(f"a {type(function).__name__} in place of a function")
    head_dims = tuple(sorted(set(function(config))))
    for value in head_dims:
        if type(value) is not int or not 1 <= value <= MAX_HEAD_DIM:
            raise ValueError(f"{value!r:.40} is no head_dim")
    return head_dims
