"""Finding and loading plug-ins: installed packages that announce an entry point in a group of ours.

The name of an entry point is the id that it adds (a rule's code, a model class, a layout's name),
so that ids are known, and clashes found, without importing anything. Loading runs foreign code,
which may fail in any way; that is told in one line and never stops a command that can go on.
``SLA_CKPT_NO_PLUGINS=1`` leaves all of them out.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from sla_ckpt.errors import PluginError, PluginWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

RULES = "sla_ckpt.rules"
LAYOUTS = "sla_ckpt.layouts"
FAMILIES = "sla_ckpt.families"
PAIRS = "sla_ckpt.pairs"
GROUPS = (RULES, LAYOUTS, FAMILIES, PAIRS)

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """What an entry point gave.

    Attributes:
        name: Its name, which is the id of what it adds.
        package: The installed package and its version, ``"acme-sla 1.0"``.
        value: The loaded object.
    """

    name: str
    package: str
    value: T


def announced(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, by name and package; nothing is imported."""
    if os.environ.get("SLA_CKPT_NO_PLUGINS"):
        return ()
    from importlib.metadata import entry_points

    try:
        found = entry_points(group=group)
    except Exception as error:  # one package with malformed metadata spoils the whole listing
        warn(
            "plug-ins are left out, because an installed package has unreadable metadata: "
            f"{type(error).__name__}: {error}"
        )
        return ()
    return tuple(sorted(found, key=lambda item: (item.name, package_of(item))))


def package_of(entry: EntryPoint) -> str:
    """``"acme-sla 1.0"``, the package that announces an entry point."""
    metadata = entry.dist.metadata if entry.dist is not None else None
    if metadata is None or "Name" not in metadata or "Version" not in metadata:
        return "an unnamed package"
    return f"{metadata['Name']} {metadata['Version']}"


def load(entry: EntryPoint) -> object:
    """Import what an entry point names.

    Raises:
        PluginError: It does not load, for whatever reason.
    """
    try:
        # A module that prints while it is imported must not spoil JSON on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            return entry.load()
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise PluginError(
            f"plug-in {entry.name} of {package_of(entry)} does not load: "
            f"{type(error).__name__}: {error}",
            hint="reinstall or remove that package",
        ) from error


def load_group(
    group: str, check: Callable[[str, object], T], *, taken: Collection[str] = ()
) -> tuple[Plugin[T], ...]:
    """Everything that a group adds; what is broken is left out with a :class:`PluginWarning`.

    Args:
        group: One of :data:`GROUPS`.
        check: Gets a name and the loaded object, returns what it stands for. A ValueError or
            TypeError from it says in a few words what is wrong.
        taken: Ids that are built in; a plug-in cannot replace them.
    """
    found: dict[str, Plugin[T]] = {}
    for entry in announced(group):
        package = package_of(entry)
        try:
            if entry.name in taken:
                raise ValueError("is built in, and a plug-in cannot replace it")
            if entry.name in found:
                raise ValueError(f"is already there, from {found[entry.name].package}")
            value = check(entry.name, load(entry))
        except PluginError as error:
            warn(error.message)
        except (TypeError, ValueError) as error:
            warn(f"plug-in {entry.name} of {package} is left out: {entry.name} {error}")
        else:
            found[entry.name] = Plugin(entry.name, package, value)
    return tuple(found.values())


def warn(message: str) -> None:
    """Tell the user, once, about a plug-in that is at fault."""
    warnings.warn(message, PluginWarning, stacklevel=2)
