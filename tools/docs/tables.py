"""Tables that come from the program itself: a command's options, and the rules.

They stand between ``<!-- table: options verify -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click

from sla_ckpt.checks.registry import all_rules
from sla_ckpt.cli.main import COMMANDS

_TABLE = re.compile(
    r"(?P<start><!-- table: (?P<name>[\w ./]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def refresh(page: Path) -> bool:
    """Write the tables of a page anew; whether anything changed."""
    text = page.read_text(encoding="utf-8")
    fresh = _TABLE.sub(lambda m: f"{m['start']}\n{table(m['name'])}\n{m['end']}", text)
    if fresh == text:
        return False
    page.write_text(fresh, encoding="utf-8")
    return True


def table(name: str) -> str:
    """The lines between the markers.

    Raises:
        ValueError: There is no such table.
    """
    kind, _, argument = name.partition(" ")
    if kind == "options":
        return _join(_options(argument))
    if kind == "commands":
        return _join(_commands())
    if kind == "rules":
        return _join(_rules(argument))
    raise ValueError(f"no table is called {name!r}")


def _join(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield "| command | |"
    yield "|---|---|"
    for name, summary in COMMANDS.items():
        yield f"| [`sla-ckpt {name}`]({name}.md) | {summary} |"


def _options(command_name: str) -> Iterator[str]:
    command = importlib.import_module(f"sla_ckpt.cli.{command_name}").command
    context = click.Context(command, info_name=f"sla-ckpt {command_name}")
    yield "| option | | default |"
    yield "|---|---|---|"
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield _option(parameter, context)


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {_code(option.make_metavar(context))}"
    help_text = _cell((option.help or "").split("\b")[0])
    shown = option.default if isinstance(option.default, (str, int, float)) else None
    default = "" if option.is_flag or shown is None else f"`{shown}`"
    return f"| {names}{value} | {help_text} | {default} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rules(folder: str) -> Iterator[str]:
    yield "| rule | level | | repaired by `--fix` |"
    yield "|---|---|---|---|"
    for item in (found for found in all_rules() if found.package is None):
        fix = "yes" if item.fixable else ""
        yield f"| [{item.code}]({folder}/{item.code}.md) | {item.level} | {item.title} | {fix} |"
