"""What goes where: data to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from sla_ckpt.errors import PluginWarning
from sla_ckpt.fsio import atomic_write
from sla_ckpt.text import one_line

#: Typography in our own texts, for terminals that lack it (Windows code pages, LANG=C).
_PLAIN = str.maketrans(
    {"–": "-", "—": "-", "…": "...", "×": "x", "→": "->", "←": "<-", "·": "*", "’": "'",
     "≈": "~", "≤": "<=", "≥": ">=", "−": "-", "“": '"', "”": '"'}
)  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The codec error handler ``sla_ckpt``: plain ASCII for typography, escapes for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def safe_streams() -> None:
    """Make printing never fail on a name the terminal cannot encode."""
    codecs.register_error("sla_ckpt", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sla_ckpt")


def show_plugin_warnings() -> None:
    """Print a warning about a plug-in as one line, not as Python shows warnings."""
    show = warnings.showwarning

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, PluginWarning):
            print_warning(str(message))
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


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


def print_warning(text: str) -> None:
    """Something the user should know although the command goes on, to stderr."""
    label = click.style("warning:", fg="yellow", bold=True)
    click.echo(f"{label} {one_line(text)}", err=True, color=colours_allowed())


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

    def deliver(self, text: str, path: Path | None) -> None:
        """A result, to a file in one step, or to stdout when ``path`` is None.

        Raises:
            WriteError: The file cannot be written; what was there is untouched.
        """
        if path is None:
            if text:
                self.data(text)
            return
        plain = click.unstyle(text)
        if plain and not plain.endswith("\n"):
            plain += "\n"
        # A name that no encoding has must not keep the result from being written.
        atomic_write(path, plain.encode("utf-8", "backslashreplace"))
        self.note(f"wrote {one_line(str(path))}")

    def json(self, value: Any) -> None:
        """A result as JSON, to stdout."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))

    def note(self, text: str) -> None:
        """Progress or a remark, to stderr."""
        if not self.quiet:
            click.echo(text, err=True, color=colours_allowed())

    def warning(self, text: str) -> None:
        """Something the user should know although the command goes on, to stderr."""
        print_warning(text)
