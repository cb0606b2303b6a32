"""``verify --output``: a file instead of standard output, for every format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sla_ckpt import encode_state
from sla_ckpt.state import STATE_FILE
from tests import factories
from tests.report import runs
from tests.report.conftest import Verify
from tests.report.reading import Page


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return runs.write(tmp_path / "run", 500, runs.trained(2.0))


def damaged(folder: Path) -> None:
    (folder / STATE_FILE).write_bytes(b"")


def warned(folder: Path) -> None:
    (folder / STATE_FILE).write_bytes(encode_state(factories.zero_state()))


def untouched(folder: Path) -> None:
    pass


@pytest.mark.parametrize("happened", [untouched, warned, damaged])
@pytest.mark.parametrize("option", [[], ["--strict"], ["--ignore", "SLA0"]])
def test_the_exit_code_is_that_of_the_other_formats(
    good: Path, verify: Verify, happened: object, option: list[str]
) -> None:
    runs.write(good.parent, 100, None)
    assert callable(happened)
    happened(good)
    expected, _, _ = verify(good.parent, *option)
    code, out, _ = verify(good.parent, *option, "--format", "html")
    assert code == expected
    word = {0: "Whole", 1: "Warnings" if happened is warned else "Not whole"}[code]
    assert Page(out).text("p", class_="verdict").startswith(word)


def test_a_missing_target_is_exit_2_and_a_page(verify: Verify, tmp_path: Path) -> None:
    code, _, err = verify(tmp_path / "gone", "--output", tmp_path / "r.html")
    assert code == 2
    assert "no such file or folder" in Page((tmp_path / "r.html").read_text()).text()
    assert "wrote" in err


@pytest.mark.parametrize("format_", ["text", "json", "sarif", "github", "html"])
def test_every_format_writes_to_the_file_what_it_prints(
    good: Path, verify: Verify, tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    damaged(good)
    code, printed, _ = verify(good, "--format", format_)
    target = tmp_path / "out"
    assert verify(good, "--format", format_, "-o", target)[:2] == (code, "")
    assert target.read_text() == printed
    assert verify(good, "--format", format_, "-o", "-")[1] == printed


@pytest.mark.parametrize(
    ("name", "start"),
    [("r.html", "<!doctype html>"), ("r.JSON", "{"), ("r.sarif", "{"), ("r", "/")],
)
def test_the_suffix_chooses_the_format_unless_one_is_named(
    good: Path, verify: Verify, tmp_path: Path, name: str, start: str
) -> None:
    target = tmp_path / name
    verify(good, "-o", target)
    assert target.read_text().startswith(start)
    verify(good, "-o", target, "--format", "text")
    assert target.read_text().startswith("/")


def test_a_file_has_no_colours(
    good: Path, verify: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    verify(good, "-o", tmp_path / "r.txt")
    assert "\x1b" not in (tmp_path / "r.txt").read_text()


def test_an_existing_file_is_replaced_in_one_step(
    good: Path, verify: Verify, tmp_path: Path
) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")
    (tmp_path / "linked.json").hardlink_to(target)
    assert verify(good, "-o", target, "-q")[2] == ""
    assert json.loads(target.read_text())["ok"]
    # Replaced, not written into: whoever has the old file open keeps it.
    assert (tmp_path / "linked.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linked.json", "r.json", "run"]


def test_where_nothing_can_be_written_it_is_one_line_and_exit_2(
    good: Path, verify: Verify, tmp_path: Path
) -> None:
    for target in (tmp_path / "no" / "such" / "r.html", tmp_path, Path("/dev/null/r.html")):
        code, out, err = verify(good, "-o", target)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and "Traceback" not in err


def test_fix_shows_what_the_repair_left(good: Path, verify: Verify, tmp_path: Path) -> None:
    from sla_ckpt import SLAState

    state = SLAState(runs.trained(1.0).pairs, None)
    (good / STATE_FILE).write_bytes(encode_state(state))
    assert verify(good, "--format", "html")[0] == 1
    code, out, _ = verify(good, "--fix", "--format", "html")
    assert code == 0
    assert Page(out).text("p", class_="verdict").startswith("Whole")


def test_no_checkpoint_at_all_is_a_page(verify: Verify, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    cwd = Path.cwd()
    os.chdir(tmp_path)
    try:
        code, out, _ = verify("--files", "notes.txt", "--format", "html")
    finally:
        os.chdir(cwd)
    assert code == 0
    assert Page(out).text("h1") == "Nothing to verify"
