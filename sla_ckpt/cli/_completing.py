"""What tab completion offers. The shells' own scripts are click's: ``sla-ckpt completion``."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_codes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Rule codes, also behind a comma: ``SLA206,SLA3<TAB>``."""
    from sla_ckpt.checks.registry import all_rules

    before, comma, last = incomplete.rpartition(",")
    return [
        CompletionItem(f"{before}{comma}{rule.code}", help=rule.title)
        for rule in all_rules()
        if rule.code.startswith(last.upper())
    ]


def complete_targets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files and folders; the shell itself lists them."""
    return [CompletionItem(incomplete, type="file")]


def complete_folders(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Folders; the shell itself lists them."""
    return [CompletionItem(incomplete, type="dir")]
