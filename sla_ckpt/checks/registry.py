"""The rules by code, and how a rule is written.

A rule is a function that takes a :class:`~sla_ckpt.checks.context.Context` and yields a
:class:`Fault` for each thing it has to say. Everything it needs is on the context, which reads
each file at most once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sla_ckpt.checks.report import Level
from sla_ckpt.errors import UsageError

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context


@dataclass(frozen=True)
class Fault:
    """What a rule yields; the registry adds code and level.

    Attributes:
        message: One line that names file, key and numbers.
        path: File concerned.
        help: The next step.
        level: Overrides the rule's level where the case is milder or worse than usual.
        fixable: Overrides the rule's, where this case cannot be repaired.
    """

    message: str
    path: str | None = None
    help: str | None = None
    level: Level | None = None
    fixable: bool | None = None


Check = Callable[["Context"], Iterable[Fault]]


@dataclass(frozen=True)
class Rule:
    """A rule of docs/rules/.

    Attributes:
        code: Stable code.
        level: Its usual level.
        title: What it is about, in a few words.
        check: The function.
        fixable: Whether ``--fix`` can usually repair it.
        remote_only: Whether it makes sense only for a Hub repository.
        page: What ``sla-ckpt rules CODE`` prints, as Markdown; built-in rules have theirs in
            docs/rules/.
        package: The package and version that a plug-in's rule comes from; None for built-in ones.
    """

    code: str
    level: Level
    title: str
    check: Check
    fixable: bool = False
    remote_only: bool = False
    page: str | None = None
    package: str | None = None


_RULES: dict[str, Rule] = {}
_MODULES = (
    "sla_ckpt.checks.rules_file",
    "sla_ckpt.checks.rules_settings",
    "sla_ckpt.checks.rules_pairs",
    "sla_ckpt.checks.rules_complete",
    "sla_ckpt.checks.rules_weights",
    "sla_ckpt.checks.rules_geometry",
    "sla_ckpt.checks.rules_trainer",
    "sla_ckpt.hub.rules",
)


def rule(
    code: str, level: Level, title: str, *, fixable: bool = False, remote_only: bool = False
) -> Callable[[Check], Check]:
    """Register a rule function."""

    def register(check: Check) -> Check:
        if code in _RULES:
            raise ValueError(f"rule {code} is registered twice")
        _RULES[code] = Rule(code, level, title, check, fixable, remote_only)
        return check

    return register


def all_rules() -> tuple[Rule, ...]:
    """Every rule, by code; those of plug-ins after the built-in ones."""
    import importlib

    for module in _MODULES:
        importlib.import_module(module)
    return (*(_RULES[code] for code in sorted(_RULES)), *_plugin_rules())


@functools.cache
def _plugin_rules() -> tuple[Rule, ...]:
    from sla_ckpt.entry_points import RULES, announced, load_group

    if not announced(RULES):
        return ()
    from sla_ckpt.checks.plugin_rules import checked_rule, guarded

    found = load_group(RULES, checked_rule, taken=_RULES)
    return tuple(guarded(plugin.value, plugin.package) for plugin in found)


def select_rules(select: Iterable[str], ignore: Iterable[str]) -> tuple[Rule, ...]:
    """Rules chosen by codes or prefixes (``SLA2`` means SLA201–SLA299), as ruff does.

    The longest matching prefix decides, so ``--select SLA206 --ignore SLA2`` keeps SLA206.

    Raises:
        UsageError: A code that matches no rule.
    """
    rules = all_rules()
    wanted, unwanted = tuple(select), tuple(ignore)
    for code in (*wanted, *unwanted):
        if not code or not any(item.code.startswith(code) for item in rules):
            raise UsageError(
                f"no rule matches {code!r}", hint="run: sla-ckpt rules to list the codes"
            )

    def chosen(code: str) -> bool:
        positive = max((len(p) for p in wanted if code.startswith(p)), default=-1 if wanted else 0)
        negative = max((len(p) for p in unwanted if code.startswith(p)), default=-1)
        return positive > negative

    return tuple(item for item in rules if chosen(item.code))
