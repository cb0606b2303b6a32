"""Every command block of README.md and docs/ runs and prints what the page shows."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sla_ckpt import read_state
from sla_ckpt.cli.main import COMMANDS
from tools.docs import tables, vectors
from tools.docs.blocks import DATA, DIRECTIVES, ROOT, RUNNABLE, Block, blocks_of, page_paths

pytestmark = pytest.mark.timeout(900)

PAGES = [path.relative_to(ROOT).as_posix() for path in page_paths()]
BLOCKS = {page: blocks_of(ROOT / page) for page in PAGES}
WITH_BLOCKS = [
    page for page in PAGES if any(b.language in (*RUNNABLE, *DATA) for b in BLOCKS[page])
]

#: The blocks that cannot run here, and why. A new one needs a reason that holds.
NOT_RUN = {
    ("README.md", "it would run the tests inside the tests"): 1,
    ("README.md", "it would change the environment that runs the tests"): 1,
    ("docs/regen.md", "it needs four cards"): 1,
    ("docs/samples.md", "it downloads the base model"): 1,
    ("docs/start.md", "it would change the environment that runs the tests"): 1,
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong, by page. One process runs all pages: it imports torch and diffusers once."""
    found = tmp_path_factory.mktemp("docs") / "problems.json"
    command = [sys.executable, "-m", "tools.docs", "run", "--json", str(found)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.is_file(), result.stderr[-4000:]
    read: dict[str, list[str]] = json.loads(found.read_text(encoding="utf-8"))
    return read


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_the_blocks_of_a_page_do_what_it_says(page: str, problems: dict[str, list[str]]) -> None:
    assert problems[page] == [], "if the page is out of date: python -m tools.docs write " + page


def test_only_the_listed_blocks_are_not_run() -> None:
    marked: dict[tuple[str, str], int] = {}
    for block in all_blocks():
        if block.not_run is not None:
            assert block.language in RUNNABLE, block.where
            marked[block.page, block.not_run] = marked.get((block.page, block.not_run), 0) + 1
    assert marked == NOT_RUN


def test_directives_are_spelt_right() -> None:
    for block in all_blocks():
        for directive in block.directives:
            assert directive.startswith(DIRECTIVES), f"{block.where}: {directive}"


def test_commands_stand_in_blocks_that_are_run() -> None:
    """A shell or Python block under another name would escape."""
    known = {*RUNNABLE, *DATA, "text", "{toctree}", "{eval-rst}", "{include}", "{literalinclude}"}
    for block in all_blocks():
        assert block.language in known, f"{block.where}: {block.language!r}"
        if block.language == "text":
            assert not block.text.startswith("$ "), block.where


def test_tables_are_those_of_the_program(tmp_path: Path) -> None:
    for page in PAGES:
        copy = tmp_path / "page.md"
        copy.write_bytes((ROOT / page).read_bytes())
        assert copy.read_text(encoding="utf-8").count("<!-- table:") == tables.count(copy)
        assert not tables.refresh(copy), f"{page} is stale; run: python -m tools.docs tables"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_its_options_and_its_json(command: str) -> None:
    page = (ROOT / "docs" / "commands" / f"{command}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# `sla-ckpt {command}`\n")
    assert f"<!-- table: options {command} -->" in page
    assert "../json-schema.md" in page


def test_the_vectors_of_the_format_are_what_the_writer_makes() -> None:
    made = vectors.vectors()
    assert sorted(path.name for path in vectors.FOLDER.iterdir()) == sorted(made)
    for name, data in made.items():
        stored = vectors.FOLDER / name
        if name == "rezipped.pt":  # compressed bytes depend on the zlib
            assert entries(stored) == entries(vectors.FOLDER / "valid.pt")
        else:
            assert stored.read_bytes() == data, name
    assert read_state(vectors.FOLDER / "rezipped.pt").equals(
        read_state(vectors.FOLDER / "valid.pt")
    )


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def all_blocks() -> list[Block]:
    return [block for blocks in BLOCKS.values() for block in blocks]
