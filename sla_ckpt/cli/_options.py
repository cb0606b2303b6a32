"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from sla_ckpt.cli._completing import complete_codes
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
    shell_complete=complete_codes,
    help="Rules to leave out, by code or prefix: SLA206, SLA3. Repeat or separate by commas.",
)

select = click.option(
    "--select",
    metavar="CODES",
    multiple=True,
    shell_complete=complete_codes,
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


def _only_models(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value not in (None, "model"):
        raise UsageError(f"--repo-type {value}: checkpoints are in model repositories")


#: As commands for `hf` have it; there is nothing to choose.
repo_type = click.option(
    "--repo-type", "--type", expose_value=False, callback=_only_models, hidden=True
)

revision = click.option(
    "--revision", metavar="REV", help="Branch, tag or commit of a Hub repository."
)


def at_revision(target: str, revision: str | None) -> str:
    """A target as typed, at ``--revision`` if that was given.

    Raises:
        UsageError: A revision for what is no Hub repository, or for one that names its own.
    """
    if revision is None:
        return target
    from sla_ckpt.hub import repo

    if expand(target).exists() or not repo.looks_like_repo(target):
        raise UsageError(f"--revision is for Hub repositories, and {target} is none")
    return repo.at_revision(target, revision)


def output_format(*choices: str) -> Callable[[F], F]:
    """``--format`` with the given choices, the first one being the default."""
    explicit = click.option(
        "--format",
        "output_format",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        callback=_format_chosen,
        help="How to print the result.",
    )
    json = click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_json,
        help="The same as --format json.",
    )
    return lambda function: explicit(json(function))


def _remember_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta["sla_ckpt.json"] = value


def _format_chosen(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not context.meta.get("sla_ckpt.json"):
        return value
    context.set_parameter_source("output_format", ParameterSource.COMMANDLINE)
    return "json"


def is_default(name: str) -> bool:
    """Whether the running command got an option's value from its default, not from the user."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.DEFAULT


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
