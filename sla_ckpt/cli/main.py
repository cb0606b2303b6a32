"""The ``sla-ckpt`` command: finds the subcommand, and turns errors into one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from sla_ckpt._version import __version__
from sla_ckpt.cli._output import print_error, safe_streams, show_plugin_warnings
from sla_ckpt.errors import EXIT_CANNOT, EXIT_INTERRUPTED, SlaCkptError

#: Command -> one-line help. The modules are imported only when a command runs, so that
#: ``sla-ckpt --help`` costs nothing.
COMMANDS = {
    "verify": "Is this checkpoint whole and consistent?",
    "inspect": "Show what a state holds: settings, pairs, norms, origin.",
    "migrate": "Bring older or foreign layouts to the current one.",
    "regen": "Regenerate sla_attention.pt with a short SLA run.",
    "push": "Publish a checkpoint with its state in one commit.",
    "pull": "Fetch a checkpoint with its state and verify it.",
    "rules": "List the rules that verify checks, or explain one.",
    "env": "Show versions, kernels, plug-ins and whether a Hub token is set.",
    "completion": "Print the script for tab completion in your shell.",
}


class LazyGroup(click.Group):
    """A group whose commands live in ``sla_ckpt.cli.<name>`` and load on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"sla_ckpt.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="sla-ckpt")
def main() -> None:
    """Trust your SLA (Sparse–Linear Attention) checkpoints.

    Exit codes: 0 nothing at error level, 1 findings at error level, 2 could not do it,
    130 interrupted.
    """


def _forget_output() -> None:
    """What could not be written must not raise again when the interpreter flushes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    safe_streams()
    show_plugin_warnings()
    sys.exit(_run(args))


def _run(args: list[str] | None) -> int:
    try:
        result: Any = main.main(args, prog_name="sla-ckpt", standalone_mode=False)
    except SlaCkptError as error:
        print_error(error.message, error.hint)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "sla-ckpt"
        print_error(error.format_message(), f"see: {command} --help")
        return EXIT_CANNOT
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted", None)
        return EXIT_INTERRUPTED
    except SystemExit as left:
        # click leaves like this when it has answered the shell's request for completions, and,
        # quietly, when the reader of a pipe went away (``| head``).
        return 0 if left.code == 0 else EXIT_CANNOT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"{where}{error.strerror or error}", "is the disk full, or a file gone?")
        _forget_output()
        return EXIT_CANNOT
    except Exception as error:  # the one place that may: a user never meets a traceback
        if os.environ.get("SLA_CKPT_TRACEBACK"):
            raise
        print_error(
            f"{type(error).__name__}: {error}",
            "this is unexpected; set SLA_CKPT_TRACEBACK=1 to see where it comes from",
        )
        return EXIT_CANNOT
    return result if isinstance(result, int) else 0
