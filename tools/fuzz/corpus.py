"""The inputs worth keeping, each with the verdict it must get: ``tests/corpus/<target>/<name>``.

``python -m tools.fuzz.corpus FOLDER`` adds inputs that a campaign wrote (``--signatures``), the
smallest of each kind of verdict that is not there yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.fuzz.running import Verdict, judge, warm_up
from tools.fuzz.targets import TARGETS

FOLDER = Path(__file__).parents[2] / "tests" / "corpus"
_VERDICTS = FOLDER / "verdicts.json"
#: Larger inputs, and more of one target, are not kept.
_MAX_BYTES = 2500
_MAX_FILES = 24


@dataclass(frozen=True)
class Kept:
    """One input of the corpus and the verdict it must get: ``"clean"``, or an error's kind."""

    target: str
    name: str
    outcome: str

    @property
    def data(self) -> bytes:
        return (FOLDER / self.target / self.name).read_bytes()

    def judge(self) -> Verdict:
        return judge(TARGETS[self.target], self.data)


def kept() -> Iterator[Kept]:
    """Every input, in order."""
    for path, outcome in json.loads(_VERDICTS.read_text()).items():
        target, _, name = path.partition("/")
        yield Kept(target, name, outcome)


def files() -> set[str]:
    """What lies in the folder, as ``target/name``."""
    return {f"{path.parent.name}/{path.name}" for path in FOLDER.glob("*/*")}


def add(folder: Path) -> None:
    """Add the smallest input of each kind of verdict that the corpus lacks."""
    outcomes = {f"{each.target}/{each.name}": each.outcome for each in kept()}
    seen = {(each.target, each.judge().signature) for each in kept()}
    count = {name: sum(path.startswith(f"{name}/") for path in outcomes) for name in TARGETS}
    for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        target = path.name.rpartition("-")[0]
        if path.suffix == ".txt" or target not in TARGETS or path.stat().st_size > _MAX_BYTES:
            continue
        data = path.read_bytes()
        verdict = judge(TARGETS[target], data)
        kind = (target, verdict.signature)
        if kind in seen or verdict.finding or count[target] >= _MAX_FILES:
            continue
        seen.add(kind)
        count[target] += 1
        _write(f"{target}/{path.name.rpartition('-')[2]}", data)
        outcomes[f"{target}/{path.name.rpartition('-')[2]}"] = verdict.outcome
    _VERDICTS.write_text(json.dumps(dict(sorted(outcomes.items())), indent=1) + "\n")


def _write(path: str, data: bytes) -> None:
    (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / path).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.corpus", description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    warm_up(tuple(TARGETS))
    add(options.folder)
    print(f"{len(files())} inputs")


if __name__ == "__main__":
    main()
