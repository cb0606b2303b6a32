"""How shown and real output are compared, and how blocks are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs.blocks import Block, blocks_of, commands_of
from tools.docs.compare import matches

SHOWN = "sending 8 files, 3,773,490 bytes\nverified at 08fb891647cc in 1.2 s\n"


def test_times_sizes_and_hashes_may_differ() -> None:
    assert matches(SHOWN, "sending 8 files, 12 bytes\nverified at 1b00aa in 3 min\n") is False
    assert matches(SHOWN, "sending 8 files, 12 bytes\nverified at 1b00aa66f00d in 3 min\n")


@pytest.mark.parametrize("real", ["sending 9 files, 12 bytes\n", SHOWN + "one more line\n", ""])
def test_counts_and_lines_must_agree(real: str) -> None:
    assert not matches(SHOWN, real)


def test_an_ellipsis_stands_for_lines_or_for_the_rest_of_one() -> None:
    assert matches("first\n…\nlast: …\n", "first\na\nb\nlast: 7\n")
    assert matches("first\n…\nlast: …\n", "first\nlast: 7\n")
    assert not matches("first\n…\nlast: …\n", "second\nlast: 7\n")


def test_figures_and_lines_may_vary_where_the_page_says_so() -> None:
    assert not matches("loss 0.5 better\n", "loss 0.25 better\n")
    assert matches("loss 0.5 better\n", "loss  0.25 better\n", numbers_vary=True)
    assert not matches("loss 0.5 better\n", "loss 0.25 worse\n", numbers_vary=True)
    assert matches("a\n  zero\n", "a\n  best\n  zero\n", varying_lines="^  (zero|best)")


PAGE = """\
# Page

<!-- docs: given run -->
<!-- docs: exit 1 -->
```console
$ first \\
>   argument
output
$ second
```

- in a list:

  ```bash
  # a remark
  third
  ```
"""


def page(folder: Path, text: str) -> list[Block]:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return blocks_of(path, folder)


def test_blocks_carry_their_directives_and_commands_their_output(tmp_path: Path) -> None:
    console, bash = page(tmp_path, PAGE)
    assert (console.exit_code, console.values("given")) == (1, ["run"])
    first, second = commands_of(console)
    assert (first.text, first.output) == ("first argument", ("output",))
    assert (second.text, second.output) == ("second", ())
    assert [command.text for command in commands_of(bash)] == ["third"]
    assert bash.directives == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nfirst\n", "not closed"),
        ("<!-- docs: exit 1 -->\nwords\n\n```bash\nfirst\n```\n", "above a block"),
    ],
)
def test_a_page_that_would_not_be_checked_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        page(tmp_path, text)
