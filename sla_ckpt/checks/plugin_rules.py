"""Rules of plug-ins: what is asked of them, and what happens when one fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sla_ckpt.checks.registry import Fault, Rule

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

_CODE = re.compile(r"[A-Z]{2,10}\d{3}")
_LEVELS = ("error", "warning", "info")


def checked_rule(name: str, value: object) -> Rule:
    """The rule that an entry point gave.

    Raises:
        TypeError: It is no rule, or one of its attributes is of the wrong type.
        ValueError: Its code or level cannot be.
    """
    if not isinstance(value, Rule):
        raise TypeError(f"is a {type(value).__name__}, not a sla_ckpt.plugins.Rule")
    if value.code != name:
        raise ValueError(f"names a rule with another code, {value.code!r:.40}")
    if name.startswith("SLA") or not _CODE.fullmatch(name):
        raise ValueError(
            "is no code for a plug-in: 2 to 10 capital letters and 3 digits, not beginning with SLA"
        )
    if value.level not in _LEVELS:
        raise ValueError(f"has the level {value.level!r:.40}, not one of {', '.join(_LEVELS)}")
    if not isinstance(value.title, str) or not callable(value.check):
        raise TypeError("needs a title and a check function")
    if value.page is not None and not isinstance(value.page, str):
        raise TypeError("has a page that is no text")
    if value.fixable:
        raise ValueError("says it is fixable; only built-in rules can be, leave that out")
    return value


def guarded(item: Rule, package: str) -> Rule:
    """The same rule; when its function fails, that is a warning among its findings."""

    def check(context: Context) -> Iterator[Fault]:
        try:
            for fault in item.check(context):
                yield _checked_fault(fault)
        except Exception as error:  # foreign code may raise anything
            yield Fault(
                f"this rule of {package} failed, so what it looks for was not looked for: "
                f"{type(error).__name__}: {error}",
                help=f"tell the authors of {package.split()[0]}; to go on without it: "
                f"--ignore {item.code}",
                level="warning",
            )

    return replace(item, check=check, package=package)


def _checked_fault(fault: object) -> Fault:
    if not isinstance(fault, Fault):
        raise TypeError(f"it yielded a {type(fault).__name__}, not a Fault")
    texts = (fault.message, fault.path or "", fault.help or "")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a Fault's message, path and help are texts")
    if fault.level is not None and fault.level not in _LEVELS:
        raise ValueError(f"a Fault has the level {fault.level!r:.40}")
    return fault
