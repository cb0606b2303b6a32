"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sla_ckpt.errors import UsageError
from sla_ckpt.paths import expand

if TYPE_CHECKING:
    from sla_ckpt.state import PairKey

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


def optional_path(text: str | None) -> Path | None:
    """A path as it was typed, ``~`` replaced; None when the option was not given."""
    return expand(text) if text is not None else None


def pixels(text: str | None) -> tuple[int, int] | None:
    """``"1024x768"`` -> (width, height) in pixels; None when the option was not given.

    Raises:
        UsageError: It is no resolution.
    """
    from sla_ckpt.checkpoint.runconfig import parse_resolution

    if text is None:
        return None
    found = parse_resolution(text)
    if found is None:
        raise UsageError(f"--resolution {text!r} is not WxH", hint="write it as 1024x1024")
    return found


def pairs(values: tuple[str, ...]) -> tuple[PairKey, ...]:
    """``("128:bf16,64:bf16", "128:float16")`` -> the pairs.

    Raises:
        UsageError: One of them is no pair.
    """
    from sla_ckpt.state import PairKey

    return tuple(PairKey.parse_lenient(part) for text in values for part in text.split(","))


def split_codes(values: tuple[str, ...]) -> tuple[str, ...]:
    """``("SLA1,SLA206", "SLA3")`` -> ``("SLA1", "SLA206", "SLA3")``."""
    return tuple(
        code.strip().upper() for value in values for code in value.split(",") if code.strip()
    )
