"""``sla-ckpt pull``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import click

from sla_ckpt.checks.render import to_text
from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_folders
from sla_ckpt.cli._output import Output
from sla_ckpt.errors import EXIT_FINDINGS, EXIT_OK, UsageError
from sla_ckpt.hub.pull import PullOptions, PullResult, pull
from sla_ckpt.text import count, one_line

Note = Callable[[str], None]
Tick = Callable[[int, int], None]


@click.command("pull", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("repo")
@click.argument("directory", required=False, shell_complete=complete_folders)
@_options.repo_type
@click.option(
    "--local-dir",
    metavar="DIRECTORY",
    shell_complete=complete_folders,
    help="DIRECTORY, as hf download names it.",
)
@_options.dry_run
@click.option("--revision", metavar="REV", help="Branch, tag or commit.")
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["inference", "resume"]),
    default="inference",
    show_default=True,
    help="Whether to fetch what only a resume needs.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Also fetch these. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these out. Repeatable.")
@click.option("--force", is_flag=True, help="Replace local files that differ.")
@_options.ignore
@_options.token
@_options.output_format("text", "json")
@_options.quiet
def command(
    repo: str,
    directory: str | None,
    local_dir: str | None,
    dry_run: bool,
    revision: str | None,
    purpose: Literal["inference", "resume"],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    ignore: tuple[str, ...],
    token: str | None,
    output_format: str,
    quiet: bool,
) -> int:
    """Fetch a checkpoint with its state and verify it.

    REPO is org/model[@revision][/folder] in any form; DIRECTORY the target, named after the
    repository by default. An interrupted pull goes on where it stopped.
    """
    if directory is not None and local_dir is not None:
        raise UsageError(f"both {directory} and --local-dir {local_dir}", hint="name one of them")
    output = Output(quiet=quiet)
    with _transfer_bar(output) as (note, tick):
        result = pull(
            repo,
            directory if local_dir is None else local_dir,
            PullOptions(
                revision=revision,
                purpose=purpose,
                include=include,
                exclude=exclude,
                force=force,
                ignore=_options.split_codes(ignore),
                dry_run=dry_run,
                token=token,
            ),
            note=note,
            tick=tick,
        )
    if output_format == "json":
        output.json(result.to_dict())
    else:
        output.data(_text(result, quiet=quiet))
    return EXIT_OK if result.ok else EXIT_FINDINGS


@contextlib.contextmanager
def _transfer_bar(output: Output) -> Iterator[tuple[Note, Tick]]:
    """Where remarks and bytes go: a bar on a terminal, lines alone elsewhere."""
    if output.quiet or not sys.stderr.isatty():
        yield output.note, lambda count, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetching", total=None, visible=False)

        def tick(count: int, total: int) -> None:
            bar.update(task, advance=count, total=total, visible=True)

        yield lambda text: bar.console.print(text, markup=False, highlight=False), tick


def _text(result: PullResult, *, quiet: bool) -> str:
    size = sum(result.fetched.values())
    if result.report is None:
        lines = [f"  {size:>15,}  {one_line(path)}" for path, size in result.fetched.items()]
        lines += [
            f"  {'left out':>15}  {one_line(p)} ({why})" for p, why in result.left_out.items()
        ]
        lines.append(
            f"would fetch {count(len(result.fetched), 'file')}, {size:,} bytes of "
            f"{result.ref} into {result.directory}"
        )
        return "\n".join(lines)
    head = (
        f"fetched {count(len(result.fetched), 'file')}, {size:,} bytes of {result.ref} at "
        f"{result.commit[:12]} into {result.directory}"
    )
    if result.present:
        head += f"; {count(len(result.present), 'file')} were there already"
    text = to_text([result.report], quiet=quiet)
    return f"{head}\n{text}" if text else head
