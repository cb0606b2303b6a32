"""Where ``sla-ckpt`` and ``python -m sla_ckpt`` start.

The command line is imported inside, so that Ctrl-C while it is still being imported ends like any
other interruption, without a traceback.
"""

import sys


def main() -> None:
    """Run the command line and exit with its code; 130 when interrupted."""
    try:
        from sla_ckpt.cli.main import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
