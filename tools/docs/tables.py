"""Tables that come from the program itself or from benchmarks/results/: options, rules, figures.

They stand between ``<!-- table: options verify -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from sla_ckpt.checks.registry import all_rules
from sla_ckpt.cli.main import COMMANDS
from tools.docs.blocks import ROOT

_TABLE = re.compile(
    r"(?P<start><!-- table: (?P<name>[^>]+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def refresh(page: Path) -> bool:
    """Write the tables of a page anew; whether anything changed."""
    text = page.read_text(encoding="utf-8")
    fresh = _TABLE.sub(lambda m: f"{m['start']}\n{table(m['name'])}\n{m['end']}", text)
    if fresh == text:
        return False
    page.write_text(fresh, encoding="utf-8")
    return True


def count(page: Path) -> int:
    """How many tables of a page are kept."""
    return len(_TABLE.findall(page.read_text(encoding="utf-8")))


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
    if kind == "recovery":
        return _join(_recovery(argument))
    if kind == "attention":
        return _join(_attention(argument))
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
    context = click.Context(command, **command.context_settings)
    yield "| option | | default |"
    yield "|---|---|---|"
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield _option(parameter, context)


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {_value(option, context)}"
    help_text = _cell((option.help or "").split("\b")[0])
    shown = option.default if isinstance(option.default, (str, int, float)) else None
    default = "" if option.is_flag or shown in (None, "") else f"`{shown}`"
    return f"| {names}{value} | {help_text} | {default} |"


def _value(option: click.Option, context: click.Context) -> str:
    """The placeholder of an option's value."""
    text = option.make_metavar(context)
    for long, short in {"INTEGER": "N", "FLOAT": "X"}.items():
        text = short if text in (long, f"{long} RANGE") else text
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rules(folder: str) -> Iterator[str]:
    yield "| rule | level | | repaired by `--fix` |"
    yield "|---|---|---|---|"
    for item in (found for found in all_rules() if found.package is None):
        fix = "yes" if item.fixable else ""
        yield f"| [{item.code}]({folder}/{item.code}.md) | {item.level} | {item.title} | {fix} |"


def _result(name: str) -> Any:
    """A file of benchmarks/results/."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


_RECOVERY = {
    "regen_8_real": "8 real samples",
    "regen_1_real": "1 real sample",
    "regen_8_synthetic": "8 made-up samples",
}


def _recovery(name: str) -> Iterator[str]:
    yield f"| model | loss | state lost | {' | '.join(_RECOVERY.values())} |"
    yield "|---|---|---|" + "---|" * len(_RECOVERY)
    for run in _result(name)["results"]:
        model = f"{run['regime']}, head_dim {run['head_dim']}, topk {run['topk']}"
        shares = (_share(run[key]) if key in run else "" for key in _RECOVERY)
        losses = f"{run['true_loss']:.4f} | {run['lost_loss']:.4f}"
        yield f"| {model} | {losses} | {' | '.join(shares)} |"


def _share(outcome: dict[str, Any]) -> str:
    return f"{outcome['recovered']:.0f} %" if outcome["written"] else "nothing written"


def _attention(name: str) -> Iterator[str]:
    """The newest run that compares the whole module with the others."""
    run = [run for run in _result(name)["runs"].values() if "table" in run][-1]
    packages = ("dense", "thu-ml/SLA, blkq 64 / 128", "sla-ckpt, blkq 64 / 128")
    yield f"| tokens | heads, head_dim | topk | {' | '.join(packages)} |"
    yield "|---|---|---|---|---|---|"
    for row in run["table"]:
        shape = row["shape"]
        size = f"{shape['length']:,} | {shape['heads']}, {shape['dim']} | {shape['topk']}"
        dense, *times = (
            f"{row[key]['module']['both']:.2f}"
            for key in ("dense", "thu_64", "thu_128", "ours_64", "ours_128")
        )
        yield f"| {size} | {dense} ms | {times[0]} / {times[1]} ms | {times[2]} / {times[3]} ms |"
