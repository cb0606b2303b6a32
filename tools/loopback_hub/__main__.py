"""`python -m tools.loopback_hub --root DIR`: runs until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from .auth import ROLES
from .server import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.loopback_hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds all state")
    parser.add_argument("--port", type=int, default=0, help="0 (default) picks a free one")
    parser.add_argument("--xet", action="store_true", help="large files go over xet, not LFS")
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        metavar="NAME:ROLE",
        help=f"make a token; ROLE is one of {', '.join(ROLES)}. Its value is printed",
    )
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LoopbackHub(options.root, xet=options.xet, port=options.port) as hub:
        print(hub.url, flush=True)
        for text in options.token:
            user, _, role = text.partition(":")
            print(f"{text} {hub.token(role or 'write', user=user)}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
