"""The documentation site builds without a warning and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sla_ckpt.checks.registry import all_rules
from tools.docs.blocks import ROOT

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|embed|object|video)\b[^>]*\b(?:src|data)\s*=\s*[\"'](?P<a>[^\"']+)"
    r"|<link\b[^>]*\bhref\s*=\s*[\"'](?P<b>[^\"']+)"
)
_OF_CSS = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])(?P<a>[^\"')]+)")
_MARKDOWN_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; tools/test.sh has built it already and names the folder."""
    if built := os.environ.get("SLA_CKPT_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(folder / "doctrees")]
    result = subprocess.run(
        [sys.executable, *command, "docs", str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        for match in _LOADED.finditer(page.read_text(encoding="utf-8")):
            address = match["a"] or match["b"]
            assert not address.startswith(("http:", "https:", "//")), f"{page.name}: {address}"


@pytest.mark.slow
def test_the_style_sheets_load_nothing_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        for match in _OF_CSS.finditer(sheet.read_text(encoding="utf-8")):
            assert not match["a"].startswith(("http:", "https:", "//")), f"{sheet}: {match['a']}"


@pytest.mark.slow
def test_every_rule_and_every_public_name_has_its_place(site: Path) -> None:
    import sla_ckpt

    for rule in all_rules():
        if rule.package is None:
            assert (site / "rules" / f"{rule.code}.html").is_file()
    reference = "".join(
        page.read_text(encoding="utf-8") for page in (site / "library").glob("*.html")
    )
    for name in set(sla_ckpt.__all__) - {"__version__"}:
        assert re.search(rf'id="sla_ckpt[\w.]*\.{name}"', reference), name


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    assert "<math" in (site / "sla.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_pages_outside_the_site_lead_somewhere(name: str) -> None:
    for match in _MARKDOWN_LINK.finditer((ROOT / name).read_text(encoding="utf-8")):
        if "://" not in match["target"]:
            assert (ROOT / match["target"]).exists(), match["target"]
