"""``sla-ckpt rules``."""

from __future__ import annotations

from typing import Any

import click

from sla_ckpt.checks.pages import rule_page
from sla_ckpt.checks.registry import Rule, all_rules
from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_codes
from sla_ckpt.cli._output import Output
from sla_ckpt.errors import UsageError
from sla_ckpt.text import one_line

_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


@click.command("rules", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("code", required=False, shell_complete=complete_codes)
@_options.output_format("text", "json")
def command(code: str | None, output_format: str) -> int:
    """List the rules that verify checks, or explain one: sla-ckpt rules SLA202."""
    output = Output()
    rules = all_rules()
    if code is None:
        if output_format == "json":
            output.json([_fields(item) for item in rules])
            return 0
        for item in rules:
            level = click.style(f"{item.level:<8}", fg=_COLOURS[item.level])
            tail = " [fixable]" if item.fixable else ""
            if item.package is not None:
                tail += f" [{one_line(item.package)}]"
            output.data(f"{item.code}  {level} {one_line(item.title)}{tail}")
        return 0
    found = next((item for item in rules if item.code == code.upper()), None)
    if found is None:
        raise UsageError(f"no rule {code!r}", hint="run: sla-ckpt rules to list them")
    page = _page(found)
    if output_format == "json":
        output.json({**_fields(found), "page": page})
    else:
        output.data(page.rstrip())
    return 0


def _fields(item: Rule) -> dict[str, Any]:
    return {
        "code": item.code,
        "level": item.level,
        "title": item.title,
        "fixable": item.fixable,
        "package": item.package,
    }


def _page(item: Rule) -> str:
    """Its page; for a plug-in's rule what the plug-in gives, or the little that is known."""
    if item.package is None:
        return rule_page(item.code)
    return item.page or f"# {item.code}: {item.title}\n\nA rule of {item.package}.\n"
