"""``python -m tools.fuzz --inputs 2000000 --seed 1``: a campaign; prints its figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.fuzz.campaign import Campaign, run_campaign
from tools.fuzz.running import judge, make_input, warm_up
from tools.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only these")
    parser.add_argument("--output", type=Path, help="write the figures there too, also meanwhile")
    parser.add_argument("--keep", type=Path, help="folder for one input of each finding")
    parser.add_argument("--signatures", type=Path, help="write each verdict's smallest input there")
    parser.add_argument("--show", type=int, metavar="INDEX", help="write one input to stdout")
    options = parser.parse_args()
    names = tuple(sorted(options.target or TARGETS))
    if options.show is not None:
        warm_up(names)
        target, data = make_input(options.seed, options.show, names)
        sys.stdout.buffer.write(data)
        print(target.name, judge(target, data), file=sys.stderr)
        return 0
    figures = run_campaign(
        Campaign(options.seed, options.first, options.inputs, options.jobs, names),
        output=options.output,
        keep=options.keep,
        signatures=options.signatures,
    )
    print(json.dumps(figures, indent=2))
    return 1 if figures["findings"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
