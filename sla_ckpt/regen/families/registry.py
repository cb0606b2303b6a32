"""Finding the adapter for a model class, built in or from a plug-in.

A plug-in is any installed package with an entry point in the group ``sla_ckpt.families`` whose
name is the model class it serves and whose object is an adapter (or a function without arguments
that returns one)::

    [project.entry-points."sla_ckpt.families"]
    MyTransformer2DModel = "my_package.adapter:ADAPTER"

Built-in adapters win over plug-ins of the same class, with a warning.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sla_ckpt.entry_points import FAMILIES, announced, load, package_of, warn
from sla_ckpt.errors import PluginError, RegenError
from sla_ckpt.pairs.config import config_class_name
from sla_ckpt.regen.families.base import Config, FamilyAdapter

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GUIDE = "docs/adding-a-family.md"

# Modules of this package; each has a tuple ADAPTERS.
_MODULES: tuple[str, ...] = (
    "auraflow",
    "cogvideox",
    "cosmos",
    "flux",
    "flux2",
    "hidream",
    "hunyuan_video",
    "kandinsky5",
    "ltx",
    "ltx2",
    "lumina2",
    "pixart",
    "qwen_image",
    "sana",
    "sd3",
    "unet",
    "wan",
    "z_image",
)


def adapter_for(
    config_or_class_name: Config | str, scheduler: Config | None = None
) -> FamilyAdapter:
    """The adapter for a model, bound to its config.

    Args:
        config_or_class_name: Parsed ``config.json``, or a class name alone.
        scheduler: Parsed ``scheduler_config.json`` of the base model if at hand; it decides
            between epsilon and v, and the noise schedule, where a family has both.

    Raises:
        RegenError: No adapter serves this class, or a plug-in for it does not load.
    """
    if isinstance(config_or_class_name, str):
        class_name: str | None = config_or_class_name
        config: Config = {"_class_name": config_or_class_name}
    else:
        config = config_or_class_name
        class_name = config_class_name(config)
    if class_name is None:
        raise RegenError("config.json has no _class_name, so the model family is unknown")
    adapter = builtin_adapters().get(class_name)
    plugins = [entry for entry in announced(FAMILIES) if entry.name == class_name]
    if plugins and adapter is not None:
        warn(f"plug-in {class_name} of {package_of(plugins[0])} is left out: it is built in")
    elif plugins:
        adapter = _load_adapter(plugins[0])
    if adapter is None:
        raise RegenError(
            f"no family adapter knows how to run {class_name[:80]}",
            hint=f"write one of about 40 lines, see {GUIDE} (entry point {FAMILIES})",
        )
    if isinstance(config_or_class_name, str):
        return adapter
    return adapter.for_config(config, scheduler)


@functools.cache
def builtin_adapters() -> Mapping[str, FamilyAdapter]:
    """The adapters of this package, by class name."""
    found: dict[str, FamilyAdapter] = {}
    for name in _MODULES:
        module = importlib.import_module(f"sla_ckpt.regen.families.{name}")
        for adapter in module.ADAPTERS:
            for class_name in adapter.class_names:
                found[class_name] = adapter
    return MappingProxyType(found)


def _load_adapter(entry: EntryPoint) -> FamilyAdapter:
    try:
        loaded = load(entry)
    except PluginError as error:
        raise RegenError(error.message, hint=error.hint) from error
    # A class has the attributes of its instances, so it would pass for an adapter itself.
    is_factory = isinstance(loaded, type) or not isinstance(loaded, FamilyAdapter)
    adapter = loaded() if is_factory and callable(loaded) else loaded
    if not isinstance(adapter, FamilyAdapter):
        raise RegenError(
            f"plug-in {entry.name} of {package_of(entry)}: {entry.value} is not a FamilyAdapter",
            hint=f"see {GUIDE}",
        )
    return adapter
