"""``python -m tools.docs run|write|tables [PAGE…]``: check the pages, or bring them up to date.

``run`` says what is wrong, ``--json FILE`` writes it for the tests. ``write`` replaces shown output
by real output, ``tables`` the tables of options and rules.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tools.docs.blocks import page_paths
from tools.docs.runner import relative, run_pages, write_outputs
from tools.docs.tables import refresh


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description=__doc__)
    parser.add_argument("action", choices=["run", "write", "tables"])
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages] or page_paths()
    if options.action in ("write", "tables"):
        for page in pages:
            if refresh(page):
                print(f"{relative(page)}: tables")
    if options.action == "tables":
        return 0
    problems: dict[str, list[str]] = {}
    started = time.monotonic()
    for page, outcomes in run_pages(pages):
        if options.action == "write" and write_outputs(page, outcomes):
            print(f"{relative(page)}: output", flush=True)
        problems[relative(page)] = [outcome.problem for _, outcome in outcomes if outcome.problem]
        seconds, started = time.monotonic() - started, time.monotonic()
        if outcomes:
            print(f"{relative(page)}: {len(outcomes)} blocks, {seconds:.1f} s", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(problems), encoding="utf-8")
    found = [problem for page in problems.values() for problem in page]
    print("\n\n".join(found), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
