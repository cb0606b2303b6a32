"""Runs the blocks of many pages in one process, and writes real output into the pages."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.docs.blocks import ROOT, Block, agree, blocks_of, commands_of
from tools.docs.sandbox import Sandbox, environment
from tools.docs.session import Outcome, PageSession


@contextmanager
def _sandbox() -> Iterator[tuple[Sandbox, dict[str, str]]]:
    """A sandbox whose variables this process has, before it imports what reads them once."""
    with tempfile.TemporaryDirectory(prefix="sla-ckpt-docs-") as folder:
        root = Path(folder).resolve()
        sandbox = Sandbox(root)
        variables = environment(sandbox, root)
        for name in [n for n in os.environ if n.startswith(("HF_", "SLA_CKPT_", "NO_COLOR"))]:
            del os.environ[name]
        os.environ.update(variables)
        try:
            yield sandbox, variables
        finally:
            sandbox.close()


def run_pages(pages: Iterable[Path]) -> Iterator[tuple[Path, list[tuple[Block, Outcome]]]]:
    """Every page with the outcomes of its blocks."""
    with _sandbox() as (sandbox, variables):
        for page in pages:
            yield page, list(PageSession(sandbox, variables).run(blocks_of(page)))


def write_outputs(page: Path, outcomes: list[tuple[Block, Outcome]]) -> bool:
    """Replace the output that a page shows by the real one where they differ.

    A command that shows nothing is left alone; a line ``?`` below it asks for its output.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    before = list(lines)
    for block, outcome in reversed(outcomes):
        if block.language != "console" or not outcome.outputs:
            continue
        for command, real in reversed(list(zip(commands_of(block), outcome.outputs, strict=True))):
            shown = "\n".join(command.output)
            if shown.strip() and not agree(block, shown, real):
                first = block.line + command.start
                fresh = [f"{block.indent}{line}".rstrip() for line in real.strip("\n").splitlines()]
                lines[first : block.line + command.end] = fresh
    if lines == before:
        return False
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
