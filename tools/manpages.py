"""Writes the man pages from the commands' own help: ``python -m tools.manpages [FOLDER]``.

One page for sla-ckpt and one per command, into ``man/``, from where the wheel takes them to
``share/man/man1``. A test fails when they are not what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sla_ckpt.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    "HF_TOKEN": "Token for the Hub; else the one that `hf auth login` saved.",
    "HF_ENDPOINT": "Another Hub than https://huggingface.co.",
    "HF_HOME, HF_HUB_OFFLINE": "As for every client of the Hub.",
    "NO_COLOR, FORCE_COLOR": "Never or always colour the output.",
    "SLA_CKPT_NO_PLUGINS": "Leave out what other packages add (rules, layouts, families).",
    "SLA_CKPT_TRACEBACK": "Show where an unexpected error comes from.",
}
EXIT_CODES = {
    "0": "Nothing at error level.",
    "1": "Findings at error level; with --strict warnings too.",
    "2": "Could not do what was asked: usage, files, network, a missing extra.",
    "130": "Interrupted.",
}
_TYPOGRAPHY = {"–": r"\[en]", "—": r"\[em]", "…": "...", "×": r"\[mu]", "→": "->", "’": "'"}


def roff(text: str) -> str:
    """Plain text as roff: backslashes, hyphens that must stay hyphens, leading dots."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    for mark, escape in _TYPOGRAPHY.items():
        text = text.replace(mark, escape)
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """A docstring's paragraphs; those that begin with \\b keep their lines, as click does it."""
    for index, block in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if index:
            yield ".PP"
        if block.startswith("\b"):
            yield ".nf"
            yield roff(block.removeprefix("\b").strip("\n"))
            yield ".fi"
        else:
            yield roff(" ".join(block.split()))


def definitions(title: str, items: dict[str, str]) -> Iterator[str]:
    """A section of terms and what they mean."""
    if items:
        yield f".SH {title}"
    for term, text in items.items():
        yield ".TP"
        yield rf"\fB{roff(term)}\fR"
        yield roff(" ".join(text.split()))


def page(name: str, command: click.Command, summary: str) -> str:
    """One page."""
    dashed = name.replace(" ", "-")
    context = click.Context(command, info_name=name, **command.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH "{roff(dashed.upper())}" "1" "" "" "sla\\-ckpt"',
        ".SH NAME",
        rf"{roff(dashed)} \- {roff(summary)}",
        ".SH SYNOPSIS",
        rf"\fB{roff(name)}\fR {roff(usage)}",
        ".SH DESCRIPTION",
        *paragraphs(command.help or summary),
    ]
    options = [item for item in command.get_params(context) if isinstance(item, click.Option)]
    records = [record for item in options if (record := item.get_help_record(context))]
    lines += definitions("OPTIONS", dict(records))
    also = ["sla-ckpt"]
    if command is main:
        also = [f"sla-ckpt-{name}" for name in COMMANDS]
        lines += definitions("COMMANDS", {f"sla-ckpt {n}": text for n, text in COMMANDS.items()})
        lines += definitions("ENVIRONMENT", ENVIRONMENT)
    lines += definitions("EXIT STATUS", EXIT_CODES)
    lines += [".SH SEE ALSO", ",\n".join(rf"\fB{roff(other)}\fR(1)" for other in also)]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every page by file name."""
    what = "verify, repair, regenerate and publish SLA checkpoints"
    found = {"sla-ckpt.1": page("sla-ckpt", main, what)}
    context = click.Context(main, **main.context_settings)
    for name, summary in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        found[f"sla-ckpt-{name}.1"] = page(f"sla-ckpt {name}", command, summary.rstrip("."))
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "man"
    folder.mkdir(exist_ok=True)
    for file, text in pages().items():
        (folder / file).write_text(text, encoding="ascii")
