"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

quiet = click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")

ignore = click.option(
    "--ignore",
    metavar="CODES",
    multiple=True,
    help="Rules to leave out, by code or prefix: SLA206, SLA3. Repeat or separate by commas.",
)

select = click.option(
    "--select",
    metavar="CODES",
    multiple=True,
    help="Only these rules, by code or prefix.",
)

dry_run = click.option(
    "--dry-run", is_flag=True, help="Show what would be done; write and send nothing."
)

config = click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False),
    help="The trainer's config.json (or .toml) of this run.",
)

token = click.option(
    "--token",
    envvar=None,
    metavar="TOKEN",
    help="Hub token; by default HF_TOKEN or the one saved by `hf auth login`.",
)


def output_format(*choices: str) -> Callable[[F], F]:
    """``--format`` with the given choices, the first one being the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="How to print the result.",
    )


def split_codes(values: tuple[str, ...]) -> tuple[str, ...]:
    """``("SLA1,SLA206", "SLA3")`` -> ``("SLA1", "SLA206", "SLA3")``."""
    return tuple(
        code.strip().upper() for value in values for code in value.split(",") if code.strip()
    )
