"""Inputs that once broke a reader, or that stand for a kind of verdict, keep their verdict."""

from __future__ import annotations

import pytest

from tools.fuzz.corpus import FOLDER, files, kept
from tools.fuzz.running import warm_up
from tools.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_each_kept_input_gets_its_verdict(target: str) -> None:
    warm_up((target,))
    inputs = [each for each in kept() if each.target == target]
    assert inputs
    for each in inputs:
        verdict = each.judge()
        assert (each.name, verdict.outcome, verdict.finding) == (each.name, each.outcome, None)


def test_the_corpus_is_small_and_complete() -> None:
    assert files() == {f"{each.target}/{each.name}" for each in kept()}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 300_000
