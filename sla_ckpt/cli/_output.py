"""What goes where: data to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from sla_ckpt.text import one_line


def safe_streams() -> None:
    """Make printing never fail on a name the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def colours_allowed() -> bool | None:
    """False under NO_COLOR, True under FORCE_COLOR, else None: click asks the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def print_error(message: str, hint: str | None) -> None:
    """One line that says what is wrong, and one with the next step."""
    allowed = colours_allowed()
    label = click.style("error:", fg="red", bold=True)
    click.echo(f"{label} {one_line(message)}", err=True, color=allowed)
    if hint:
        click.echo(f"  {click.style('next:', fg='cyan')} {one_line(hint)}", err=True, color=allowed)


@dataclass(frozen=True)
class Output:
    """One command's output.

    Attributes:
        quiet: Drop everything but data and errors.
    """

    quiet: bool = False

    def data(self, text: str) -> None:
        """A result, to stdout."""
        click.echo(text, color=colours_allowed())

    def json(self, value: Any) -> None:
        """A result as JSON, to stdout."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))

    def note(self, text: str) -> None:
        """Progress or a remark, to stderr."""
        if not self.quiet:
            click.echo(text, err=True, color=colours_allowed())

    def warning(self, text: str) -> None:
        """Something the user should know although the command goes on, to stderr."""
        label = click.style("warning:", fg="yellow", bold=True)
        click.echo(f"{label} {one_line(text)}", err=True, color=colours_allowed())

    def stage_printer(self) -> Callable[[str], None]:
        """A callback for libraries that report stages by a line each."""
        return self.note
