"""``sla-ckpt migrate``."""

from __future__ import annotations

from typing import Literal

import click

from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_targets
from sla_ckpt.cli._output import Output
from sla_ckpt.errors import EXIT_FINDINGS, EXIT_OK
from sla_ckpt.migrate.options import MigrateOptions, targets

_LOSSY = ("reduce", "overwrite", "drop_strays")


class _Grouped(click.Command):
    """Options that lose something stand under their own heading in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {
            "Options": [],
            "Options that lose something": [],
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                lossy = parameter.name in _LOSSY
                groups["Options that lose something" if lossy else "Options"].append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command("migrate", cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "checkpoint", required=False, metavar="[CHECKPOINT]", shell_complete=complete_targets
)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True),
    help="File, index or folder of another project to read the projections from.",
)
@click.option(
    "--to",
    type=click.Choice(targets()),
    help="Layout to write; by default the state is repaired where it is.",
)
@click.option(
    "-o", "--output", type=click.Path(), help="File (per-layer layouts) or folder to write."
)
@click.option(
    "--pair", metavar="PAIR", help="The pair to read or write, as 128:bf16, if it is not clear."
)
@click.option("--layers", type=click.IntRange(1, 9999), help="Layers of a per-layer file.")
@click.option(
    "--expect", multiple=True, metavar="PAIR", help="Pair the model needs, as 128:bf16. Repeatable."
)
@click.option("--topk", type=click.FloatRange(0, 1, min_open=True), help="topk to record.")
@click.option("--feature-map", type=click.Choice(["softmax", "elu", "relu"]), help="To record.")
@click.option("--blkq", type=click.Choice(["64", "128"]), help="Query block length to record.")
@click.option("--blkk", type=click.Choice(["64"]), help="Key block length to record.")
@click.option(
    "--variant", type=click.Choice(["main", "sla-1"]), help="SLA variant that trained the source."
)
@_options.config
@click.option(
    "--base-model", type=click.Path(file_okay=False), help="Folder of an adapter's base model."
)
@click.option(
    "--drop-strays", is_flag=True, help="Drop all-zero pairs that this model cannot make."
)
@click.option("--keep-optimizer", is_flag=True, help="Leave optimizer.bin as it is.")
@click.option(
    "--reduce",
    type=click.Choice(["mean"]),
    help="Average layers that differ, and report the error that makes.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace a state or file that is there (a backup is kept)."
)
@_options.dry_run
@_options.output_format("text", "json")
@_options.quiet
def command(
    checkpoint: str | None,
    source: str | None,
    to: str | None,
    output: str | None,
    pair: str | None,
    layers: int | None,
    expect: tuple[str, ...],
    topk: float | None,
    feature_map: str | None,
    blkq: str | None,
    blkk: str | None,
    variant: str | None,
    config: str | None,
    base_model: str | None,
    drop_strays: bool,
    keep_optimizer: bool,
    reduce: Literal["mean"] | None,
    overwrite: bool,
    dry_run: bool,
    output_format: str,
    quiet: bool,
) -> int:
    """Bring older, foreign or broken states into the right form.

    CHECKPOINT is a checkpoint folder, a trainer's output directory (its newest checkpoint), or a
    file of another project. Without one, the current directory. What is found is detected and
    printed; originals are kept as backups.
    """
    from sla_ckpt.migrate.api import migrate
    from sla_ckpt.migrate.show import to_json, to_text, with_remaining
    from sla_ckpt.state import PairKey

    options = MigrateOptions(
        source=_options.optional_path(source),
        to=to,
        output=_options.optional_path(output),
        reduce=reduce,
        layers=layers,
        expect=_options.pairs(expect),
        pair=PairKey.parse_lenient(pair) if pair else None,
        config=_options.optional_path(config),
        base_model=_options.optional_path(base_model),
        topk=topk,
        feature_map=feature_map,
        blkq=int(blkq) if blkq else None,
        blkk=int(blkk) if blkk else None,
        variant=variant,
        drop_strays=drop_strays,
        optimizer=not keep_optimizer,
        overwrite=overwrite,
    )
    result = with_remaining(migrate(checkpoint, options, dry_run=dry_run), options, dry_run=dry_run)
    printer = Output(quiet=quiet)
    if output_format == "json":
        printer.json(to_json(result, dry_run=dry_run))
    else:
        for note in result.plan.notes:
            printer.warning(note)
        text = to_text(result, dry_run=dry_run)
        if text:
            printer.data(text)
    return EXIT_FINDINGS if result.plan.problems else EXIT_OK
