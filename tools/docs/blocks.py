"""Finds the fenced blocks of a Markdown page and what its comments say about running them.

A comment directly above a fence directs it; several comments may follow each other::

    <!-- docs: exit 1 -->
    ```console
    $ sla-ckpt verify output
    ```

| directive | meaning |
|---|---|
| ``given NAME`` | a fresh folder with what sandbox.py knows by this name |
| ``setup COMMAND`` | a hidden shell command before the block; ``{root}`` is the checkout |
| ``python: STATEMENT`` | the same for a block of Python |
| ``exit N`` | the exit code of the block's last command; 0 without it |
| ``numbers vary`` | figures in the output are not compared |
| ``lines vary: REGEX`` | lines in which it is found are not compared |
| ``replace A with B`` | B runs in place of A; ``{port}`` in it is a free port |
| ``not run: REASON`` | the block cannot be run here |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.docs.compare import matches

ROOT = Path(__file__).parents[2]
RUNNABLE = ("console", "bash", "python")
DATA = ("json", "toml", "yaml")
DIRECTIVES = (
    "given ",
    "setup ",
    "python: ",
    "exit ",
    "numbers vary",
    "lines vary: ",
    "replace ",
    "not run: ",
)

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w{}-]*)")
_COMMENT = re.compile(r"^\s*<!-- docs: (?P<text>.*) -->\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: Path relative to the root, POSIX.
        line: Of the opening fence, from 1.
        language: First word after the fence.
        text: Its lines, without the fence's indentation.
        indent: That indentation.
        directives: Of the comments above it.
    """

    page: str
    line: int
    language: str
    text: str
    indent: str
    directives: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def values(self, name: str) -> list[str]:
        """What follows ``name`` in each directive that starts with it."""
        return [
            text.removeprefix(name).strip() for text in self.directives if text.startswith(name)
        ]

    @property
    def not_run(self) -> str | None:
        """Why the block cannot be run; None if it can."""
        return next(iter(self.values("not run:")), None)

    @property
    def exit_code(self) -> int:
        return int(next(iter(self.values("exit")), "0"))

    @property
    def numbers_vary(self) -> bool:
        return "numbers vary" in self.directives

    @property
    def varying_lines(self) -> str | None:
        """A regular expression."""
        return next(iter(self.values("lines vary:")), None)

    @property
    def replacements(self) -> list[tuple[str, str]]:
        pairs = (value.partition(" with ") for value in self.values("replace"))
        return [(before, after) for before, _, after in pairs]


def page_paths(root: Path = ROOT) -> list[Path]:
    """README.md, CONTRIBUTING.md and every page below docs/, sorted."""
    top = [root / "README.md", root / "CONTRIBUTING.md", root / "SECURITY.md"]
    return top + sorted((root / "docs").rglob("*.md"))


def blocks_of(path: Path, root: Path = ROOT) -> list[Block]:
    """The blocks of one page in order.

    Raises:
        ValueError: A fence that is not closed, or a directive with no block below it.
    """
    return list(_blocks(path.read_text(encoding="utf-8").splitlines(), _name(path, root)))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _blocks(lines: list[str], page: str) -> Iterator[Block]:
    directives: list[str] = []
    number = 0
    while number < len(lines):
        comment, fence = _COMMENT.match(lines[number]), _FENCE.match(lines[number])
        if comment:
            directives.append(comment["text"].strip())
        elif fence:
            start, indent = number, fence["indent"]
            number += 1
            while number < len(lines) and lines[number].strip() != fence["ticks"]:
                number += 1
            if number == len(lines):
                raise ValueError(f"{page}:{start + 1}: this fence is not closed")
            text = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : number])
            yield Block(page, start + 1, fence["language"], text, indent, tuple(directives))
            directives = []
        elif lines[number].strip() and any(not text.startswith("given") for text in directives):
            raise ValueError(f"{page}:{number + 1}: a directive must stand above a block")
        number += 1


@dataclass(frozen=True)
class Command:
    """One command of a console block.

    Attributes:
        text: What is typed, continuation lines joined.
        output: Lines shown below it.
        end: Index of the line after them, within the block.
        start: Index of its first line of output.
    """

    text: str
    output: tuple[str, ...]
    start: int
    end: int


def commands_of(block: Block) -> list[Command]:
    """The commands of a ``console`` block (``$ …``) or a ``bash`` block (every line).

    Raises:
        ValueError: Output before the first command of a console block.
    """
    lines = block.text.splitlines()
    found: list[Command] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if block.language == "bash":
            if not line.strip() or line.lstrip().startswith("#"):
                number += 1
                continue
        elif line.startswith("$ "):
            line = line[2:]
        else:
            raise ValueError(f"{block.where}: output before the first command")
        number += 1
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + lines[number].removeprefix("> ").strip()
            number += 1
        start = number
        if block.language == "console":
            while number < len(lines) and not lines[number].startswith("$ "):
                number += 1
        output = lines[start:number]
        found.append(Command(line, tuple(output), start, number))
    return found


def agree(block: Block, shown: str, real: str) -> bool:
    """Whether a block's shown output is the real one, as far as its directives ask."""
    return matches(shown, real, numbers_vary=block.numbers_vary, varying_lines=block.varying_lines)
