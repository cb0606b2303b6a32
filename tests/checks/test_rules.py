"""What holds for all rules: their pages, selecting them, and checkpoints with several findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, verify
from sla_ckpt.checks.pages import rule_page
from sla_ckpt.checks.registry import all_rules
from sla_ckpt.errors import UsageError
from tests import factories
from tests.checks.reports import codes, rewrite

DATA = factories.DATA


def test_a_good_checkpoint_has_no_errors_and_no_warnings(good: Path) -> None:
    report = verify(good)
    assert report.ok
    assert codes(report) == ["SLA107"]
    assert report.kind == "full"
    assert report.expected == report.found == ("128:bf16",)


def test_every_rule_has_a_page_that_says_what_the_rule_says() -> None:
    for rule in all_rules():
        page = rule_page(rule.code)
        level = next(line for line in page.splitlines() if line.startswith("**Level:**"))
        assert page.startswith(f"# {rule.code}: {rule.title}\n")
        assert level.startswith(f"**Level:** {rule.level}")
        assert ("**Fixable:**" in level) == rule.fixable, rule.code


def test_select_and_ignore_work_by_longest_prefix(good: Path) -> None:
    rewrite(good, factories.state("64:bf16"))
    (good / ".guard").unlink()
    assert set(codes(verify(good, VerifyOptions(select=("SLA2",))))) == {"SLA202", "SLA207"}
    options = VerifyOptions(select=("SLA202",), ignore=("SLA2",))
    assert codes(verify(good, options)) == ["SLA202"]
    assert "SLA202" not in codes(verify(good, VerifyOptions(ignore=("SLA202",))))
    with pytest.raises(UsageError, match="SLA9"):
        verify(good, VerifyOptions(select=("SLA9",)))


@pytest.mark.parametrize("name", ["out_full", "out_full_ema", "out_peft", "out_lycoris_ema"])
def test_checkpoints_that_simpletuner_wrote_are_recognised(name: str) -> None:
    report = verify(DATA / f"checkpoints/{name}/checkpoint-3")
    kinds = {"out_full": "full", "out_full_ema": "full", "out_peft": "lora"}
    assert report.kind == kinds.get(name, "lycoris")
    assert "SLA304" in codes(report)
    assert not {"SLA302", "SLA303", "SLA004", "SLA002"} & set(codes(report))
