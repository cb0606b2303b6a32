"""``sla-ckpt push``."""

from __future__ import annotations

import click

from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_folders
from sla_ckpt.cli._output import Output
from sla_ckpt.errors import EXIT_FINDINGS, EXIT_OK
from sla_ckpt.hub.push import PushOptions, PushResult, push
from sla_ckpt.text import count, one_line


@click.command("push", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("repo")
@click.argument("checkpoint", required=False, shell_complete=complete_folders)
@_options.repo_type
@_options.dry_run
@click.option("--public/--private", default=False, help="For a new repository. [default: private]")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to, made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--path-in-repo", metavar="FOLDER", default="", help="Folder for all files.")
@click.option("-m", "--commit-message", "--message", "message", help="Commit message.")
@click.option("--commit-description", "description", help="What follows the commit message.")
@click.option("--include", multiple=True, metavar="GLOB", help="Also send these. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these out. Repeatable.")
@click.option(
    "--include-training-state", is_flag=True, help="Also send optimizer, scheduler and the like."
)
@_options.ignore
@_options.token
@_options.output_format("text", "json")
@_options.quiet
def command(
    repo: str,
    checkpoint: str | None,
    dry_run: bool,
    public: bool,
    revision: str | None,
    create_pr: bool,
    path_in_repo: str,
    message: str | None,
    description: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    include_training_state: bool,
    ignore: tuple[str, ...],
    token: str | None,
    output_format: str,
    quiet: bool,
) -> int:
    """Publish a checkpoint with its state in one commit.

    Verifies first; errors stop it. REPO is org/model in any form; CHECKPOINT a checkpoint folder or
    a trainer's output directory, the current directory by default.
    """
    output = Output(quiet=quiet)
    result = push(
        repo,
        checkpoint,
        PushOptions(
            revision=revision,
            create_pr=create_pr,
            public=public,
            path_in_repo=path_in_repo,
            message=message,
            description=description,
            include=include,
            exclude=exclude,
            training_state=include_training_state,
            ignore=_options.split_codes(ignore),
            dry_run=dry_run,
            token=token,
        ),
        note=output.note,
    )
    if output_format == "json":
        output.json(result.to_dict())
    else:
        output.data(_text(result, dry_run=dry_run))
    return EXIT_OK if result.ok else EXIT_FINDINGS


def _text(result: PushResult, *, dry_run: bool) -> str:
    if result.blocking:
        lines = ["not pushed, because the checkpoint is not whole:"]
        for finding in result.blocking:
            lines.append(f"  {click.style(finding.code, fg='red')} {one_line(finding.message)}")
            if finding.help:
                lines.append(f"        next: {one_line(finding.help)}")
        lines.append("  to push nevertheless, name the codes with --ignore")
        return "\n".join(lines)
    assert result.plan is not None
    plan = result.plan
    lines = [
        f"  {click.style(finding.code, fg='yellow')} {one_line(finding.message)}"
        for finding in result.local.warnings
    ]
    if dry_run:
        for entry in plan.entries:
            lines.append(
                f"  {entry.change:<10} {entry.file.hash.size:>15,}  {one_line(entry.path)}"
            )
        for path in plan.removed:
            lines.append(f"  {'removed':<10} {'':>15}  {one_line(path)} (other weights replace it)")
        for path, reason in plan.left_out.items():
            lines.append(f"  {'left out':<10} {'':>15}  {one_line(path)} ({reason})")
        lines.append(
            f"would send {count(len(plan.to_send), 'file')}, {plan.bytes_to_send:,} bytes to "
            f"{plan.ref}"
        )
    elif result.commit is None:
        lines.append(f"nothing changed: {plan.ref} is up to date")
    else:
        lines.append(
            f"pushed {count(len(plan.to_send), 'file')}, {plan.bytes_to_send:,} bytes to "
            f"{plan.ref} at {result.commit[:12]}"
        )
        if result.pull_request:
            lines.append(f"pull request: {result.pull_request}")
        assert result.remote is not None
        verdict = "whole" if result.remote.ok else "NOT whole, run sla-ckpt verify on it"
        lines.append(f"verified at that revision: {verdict}")
    return "\n".join(lines)
