"""``sla-ckpt verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from sla_ckpt.checkpoint.containing import checkpoints_containing
from sla_ckpt.checks.render import to_github, to_json, to_sarif, to_text
from sla_ckpt.checks.report import Report, combined_exit_code
from sla_ckpt.checks.verify import VerifyOptions, expand_target, verify_many
from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_targets
from sla_ckpt.cli._output import Output
from sla_ckpt.errors import UsageError
from sla_ckpt.paths import expand

_BY_SUFFIX = {".html": "html", ".htm": "html", ".json": "json", ".sarif": "sarif"}


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, metavar="[TARGET]...", shell_complete=complete_targets)
@_options.select
@_options.ignore
@click.option("--strict", is_flag=True, help="Warnings count as errors for the exit code.")
@click.option("--fix", is_flag=True, help="Repair what is fixable; originals are kept as backups.")
@_options.dry_run
@click.option("--deep", is_flag=True, help="Read every weight and look for NaN and Inf.")
@click.option("--tokens", type=click.IntRange(min=1), help="Attention tokens the model runs at.")
@click.option("--resolution", metavar="WxH", help="Pixels the model runs at, as 1024x1024.")
@click.option(
    "--expect",
    multiple=True,
    metavar="PAIR",
    help="Pair the model materialises, as 128:bf16, when it cannot be derived. Repeatable.",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["resume", "inference"]),
    help="Judge for resuming a training (stricter) or for inference (training state left out).",
)
@_options.config
@click.option(
    "--base-model",
    type=click.Path(file_okay=False),
    help="Folder of an adapter's base model, to derive the pairs from its config.",
)
@click.option(
    "--against",
    type=click.Path(),
    metavar="CHECKPOINT",
    help="Local checkpoint whose state a repository must hold (SLA402).",
)
@click.option("--all", "organisation", metavar="ORG", help="Every model of a Hub account.")
@_options.revision
@_options.token
@click.option(
    "--files",
    is_flag=True,
    help="TARGETs are files, as hooks name them: verify the checkpoints that hold them, if any.",
)
@click.option("-r", "--recursive", is_flag=True, help="Every checkpoint below a folder.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=4, show_default=True, help="Targets at a time."
)
@_options.output_format("text", "json", "sarif", "github", "html")
@click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the result to FILE (- is stdout); .html, .json and .sarif choose the format.",
)
@_options.quiet
def command(
    targets: tuple[str, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    strict: bool,
    fix: bool,
    dry_run: bool,
    deep: bool,
    tokens: int | None,
    resolution: str | None,
    expect: tuple[str, ...],
    purpose: Literal["resume", "inference"] | None,
    config: str | None,
    base_model: str | None,
    against: str | None,
    organisation: str | None,
    revision: str | None,
    token: str | None,
    files: bool,
    recursive: bool,
    jobs: int,
    output_format: str,
    destination: str | None,
    quiet: bool,
) -> int:
    """Is this checkpoint whole and consistent?

    TARGET is a checkpoint folder, a trainer's output directory (its newest checkpoint), a
    sla_attention.pt, or a Hub repository org/model[@revision][/folder] or its URL. Without one,
    the current directory.

    --format html makes one self-contained page. For an output directory it shows every checkpoint,
    and how the projections moved; the exit code is about the newest, as in every format.
    """
    if destination is not None and _options.is_default("output_format"):
        output_format = _BY_SUFFIX.get(Path(destination).suffix.lower(), output_format)
    options = VerifyOptions(
        select=_options.split_codes(select),
        ignore=_options.split_codes(ignore),
        deep=deep,
        tokens=tokens,
        resolution=_options.pixels(resolution),
        expect=_options.pairs(expect),
        purpose=purpose,
        config=_options.optional_path(config),
        base_model=_existing("--base-model", base_model),
        against=_existing("--against", against),
        token=token,
    )
    if organisation is not None and (targets or files or revision is not None):
        raise UsageError("--all ORG takes no targets, --files or --revision")
    if organisation is not None:
        expanded = _models_of(organisation, token)
    elif files:
        expanded = [str(folder) for folder in checkpoints_containing(targets)]
    else:
        expanded = _expanded(targets or (".",), revision, recursive=recursive)
    output = Output(quiet=quiet)
    if files and not expanded:
        output.note("none of these files is in a checkpoint")
    if dry_run and not fix:
        raise UsageError("--dry-run goes with --fix", hint="verify alone never writes")
    reports: Sequence[Report] = ()
    if fix:
        from sla_ckpt.migrate.verify_fix import verify_and_fix

        reports = list(verify_and_fix(expanded, options, dry_run=dry_run, note=output.note))
    if output_format == "html":
        # After --fix this looks again, at what the repair left.
        reports, text = _html(expanded, options, strict=strict, jobs=jobs)
    else:
        reports = reports or list(verify_many(expanded, options, jobs=jobs))
        text = _render(reports, output_format, quiet=quiet)
    path = None if destination in (None, "-") else expand(str(destination))
    output.deliver(text, path)
    return combined_exit_code(reports, strict=strict)


def _expanded(targets: Sequence[str], revision: str | None, *, recursive: bool) -> list[str]:
    named = [_options.at_revision(target, revision) for target in targets]
    return [item for target in named for item in expand_target(target, recursive=recursive)]


def _models_of(organisation: str, token: str | None) -> list[str]:
    from sla_ckpt.hub.remote import list_org

    found = list_org(organisation, token=token)
    if not found:
        raise UsageError(f"{organisation} has no models that you can see")
    return found


def _html(
    targets: Sequence[str], options: VerifyOptions, *, strict: bool, jobs: int
) -> tuple[Sequence[Report], str]:
    """The reports that the exit code is about, and the page."""
    from sla_ckpt.report import collect, judged_reports, to_html

    runs = collect(targets, options, jobs=jobs)
    return judged_reports(runs), to_html(runs, strict=strict)


def _render(reports: Sequence[Report], output_format: str, *, quiet: bool) -> str:
    if output_format == "text":
        return to_text(reports, quiet=quiet)
    return {"json": to_json, "sarif": to_sarif, "github": to_github}[output_format](reports)


def _existing(option: str, text: str | None) -> Path | None:
    """A path that must be there even if, for this target, nobody looks into it."""
    path = _options.optional_path(text)
    if path is not None and not path.exists():
        raise UsageError(f"{option} {text}: no such file or folder", hint="check the path")
    return path
