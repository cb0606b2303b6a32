"""The rules' pages: ``docs/rules/*.md``, shipped inside the wheel."""

from __future__ import annotations

from pathlib import Path

from sla_ckpt.errors import TargetNotFoundError

_PACKAGE = Path(__file__).parent / "pages_data"
_CHECKOUT = Path(__file__).parents[2] / "docs" / "rules"


def rule_page(code: str) -> str:
    """The page of one rule, as Markdown.

    Raises:
        TargetNotFoundError: The installation lacks it.
    """
    for folder in (_PACKAGE, _CHECKOUT):
        path = folder / f"{code}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise TargetNotFoundError(f"no page for {code} in this installation", hint="reinstall sla-ckpt")
