"""What a plug-in imports: the types of the objects that its entry points name.

================== ======================= ====================================================
group              name of the entry point object
================== ======================= ====================================================
sla_ckpt.rules     the rule's code         a :class:`Rule`
sla_ckpt.layouts   the layout's name       a :class:`Layout`
sla_ckpt.pairs     the model class         a function from ``config.json``, as a mapping, to the
                                           head_dims that the model materialises
sla_ckpt.families  the model class         an adapter, from
                                           :class:`sla_ckpt.regen.families.base.BaseAdapter`
================== ======================= ====================================================

Nothing here needs torch. docs/plugins.md has a whole example.
"""

from __future__ import annotations

from sla_ckpt.checks.context import Context, VerifyOptions
from sla_ckpt.checks.registry import Fault, Rule
from sla_ckpt.errors import PluginError, PluginWarning
from sla_ckpt.formats.layouts.names import Layout

__all__ = [
    "Context",
    "Fault",
    "Layout",
    "PluginError",
    "PluginWarning",
    "Rule",
    "VerifyOptions",
]
