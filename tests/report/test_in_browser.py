"""The page as Chromium shows it: no errors, no network, nothing cut off, light and dark.

Runs where a Chromium is found: the one that SLA_CKPT_BROWSER names, a system's, or playwright's
own. ``tools/test.sh`` gets one in CI (tools/browser.sh). The other tests of this folder check the
page's HTML without one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.report import collect, to_html
from tests.report import runs

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
pytestmark = pytest.mark.browser


def find_browser(own: str) -> str | None:
    named = os.environ.get("SLA_CKPT_BROWSER")
    candidates = [named] if named else [*map(shutil.which, NAMES), own]
    return next((path for path in candidates if path and Path(path).exists()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("no Chromium on this machine: see tools/browser.sh")
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run full of events, one checkpoint, and several targets, as files."""
    root = tmp_path_factory.mktemp("pages")
    run = runs.eventful(root / "portrait-sla-with-a-rather-long-name-that-has-to-break-somewhere")
    one = runs.write(root / "one", 5, runs.trained(2.0))
    gone = root / "gone<script>document.title='owned'</script>"
    targets = {"run": [run], "one": [one], "several": [run, one, gone]}
    made = {}
    for name, named in targets.items():
        made[name] = root / f"{name}.html"
        made[name].write_text(to_html(collect([str(target) for target in named])))
    return made


class Visit:
    """A page in a window of its own, and everything it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, viewport: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()

    def colour(self, selector: str, what: str = "backgroundColor") -> list[int]:
        script = "([s, w]) => getComputedStyle(document.querySelector(s))[w]"
        text = self.page.evaluate(script, [selector, what])
        return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]


OUTSIDE = """() => [...document.querySelectorAll('main *, header *, nav *')].filter(e => {
    if (e.closest('.scroll, svg, pre')) return false;
    const box = e.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("name", ["run", "one", "several"])
def test_it_renders_quietly_without_network_and_without_sideways_scrolling(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    with Visit(browser, pages[name], DESK, "light") as visit:
        for viewport in (DESK, PHONE):
            visit.page.set_viewport_size(viewport)
            assert visit.page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
            assert visit.page.evaluate(OUTSIDE) == []
            for scheme in ("light", "dark"):
                visit.page.emulate_media(color_scheme=scheme)
                dark = sum(visit.colour("body")) < 3 * 64
                assert dark == (scheme == "dark")
                assert (sum(visit.colour("body", "color")) > 3 * 128) == dark
        assert "owned" not in visit.page.title()
        assert visit.complaints == []
        assert visit.requests == [pages[name].as_uri()]


def test_every_link_inside_the_page_leads_to_what_it_names(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["run"], DESK, "light") as visit:
        dead, links = visit.page.evaluate(
            """() => {
                const links = [...new Set([...document.links].map(a => a.getAttribute('href')))];
                const dead = links.filter(link => {
                    location.hash = link;
                    return document.querySelector(':target') === null;
                });
                return [dead, links.length];
            }"""
        )
        assert dead == [] and links > 20
        visit.page.click("a.chip[title='checkpoint-600: errors']")
        assert visit.page.evaluate("document.querySelector(':target').textContent").startswith(
            "checkpoint-600"
        )
        visit.page.click("tr:target a.code")
        assert "NaN or Inf" in visit.page.inner_text(":target")
        visit.page.click(":target .guide a")
        assert visit.page.inner_text(":target h3").startswith("SLA205: ")
        assert visit.complaints == []


def test_the_chart_fits_the_screen_and_says_more_on_hovering(
    browser: Any, pages: dict[str, Path]
) -> None:
    for viewport, shown, hidden in ((DESK, "wide", "narrow"), (PHONE, "narrow", "wide")):
        with Visit(browser, pages["run"], viewport, "light") as visit:
            chart = visit.page.locator(f".trend .{shown}")
            assert chart.is_visible()
            assert not visit.page.locator(f".trend .{hidden}").is_visible()
            box = chart.bounding_box()
            assert box["width"] > 0.7 * viewport["width"]
            titles = chart.locator("g > title").all_text_contents()
            assert len(titles) == 11 and titles[1].startswith("checkpoint-200: norm 2,")
            sizes = visit.page.evaluate(
                "s => [...document.querySelectorAll(s)].map(e => e.getBoundingClientRect().height)",
                f".trend .{shown} text",
            )
            assert min(sizes) >= 11, "labels too small to read"


def test_the_keyboard_reaches_everything_and_names_say_what_it_is(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["run"], DESK, "light") as visit:
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the findings"
        assert visit.page.locator(".skip").is_visible()
        seen = set()
        for _ in range(40):
            visit.page.keyboard.press("Tab")
            seen.add(visit.page.evaluate("document.activeElement.className.split(' ')[0]"))
        assert {"chip", "scroll", "code"} <= seen
        for role, name in (("region", "Table of checkpoints"), ("list", "Checkpoints"),
                           ("navigation", "Contents"), ("heading", "Findings")):  # fmt: skip
            assert visit.page.get_by_role(role, name=name, exact=True).count() == 1
        chart = visit.page.get_by_role("img", name="128:bf16: norm of proj_l.weight")
        assert chart.count() == 1


def test_it_prints_on_paper_in_light_colours(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["run"], DESK, "dark") as visit:
        assert visit.page.pdf(format="A4").startswith(b"%PDF")
        visit.page.emulate_media(media="print")
        assert visit.colour("body") == [255, 255, 255]
        assert visit.colour("body", "color") == [0, 0, 0]
        assert not visit.page.locator("nav").is_visible()
