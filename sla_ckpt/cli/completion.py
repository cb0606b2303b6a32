"""``sla-ckpt completion``."""

from __future__ import annotations

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from sla_ckpt.cli._output import Output
from sla_ckpt.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str | None) -> int:
    """Print the script for tab completion in SHELL, by default the one in $SHELL.

    \b
    bash:  eval "$(sla-ckpt completion bash)"      in ~/.bashrc
    zsh:   eval "$(sla-ckpt completion zsh)"       in ~/.zshrc, after compinit
    fish:  sla-ckpt completion fish | source       in ~/.config/fish/config.fish
    """
    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise UsageError(
            f"no completion for the shell {shell!r:.40}", hint="name one: bash, zsh or fish"
        )
    root = context.find_root().command
    Output().data(kind(root, {}, "sla-ckpt", "_SLA_CKPT_COMPLETE").source().rstrip())
    return 0
