"""Where ``sla-ckpt`` and ``python -m sla_ckpt`` start.

The command line is imported inside, so that Ctrl-C while it is still being imported ends like any
other interruption, without a traceback.
"""

import contextlib
import os
import sys


def main() -> None:
    """Run the command line and exit with its code; 130 when interrupted."""
    try:
        from sla_ckpt.cli.main import run

        run()
    except SystemExit as left:
        _leave_quickly(left.code)
        raise
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


def _leave_quickly(code: object) -> None:
    """Exit without taking torch and diffusers apart, which takes a second and changes nothing.

    Everything that a command writes is on the disk by now.
    """
    if "torch" not in sys.modules or not isinstance(code, int):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
