"""The parts of the page on their own: markup, charts, the rules' pages, colours."""

from __future__ import annotations

import math
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_ckpt.checks.registry import all_rules
from sla_ckpt.report.chart import Point, nice_ticks, spectrum, trend
from sla_ckpt.report.findings import command
from sla_ckpt.report.guide import explain, has_page, render
from sla_ckpt.report.markup import Markup, el
from tests.report.reading import Page

STYLE = files("sla_ckpt.report").joinpath("report.css").read_text()


def page(body: str) -> Page:
    return Page(f"<!doctype html><html lang=en><head><title>t</title></head><body>{body}</body>")


@given(st.text(max_size=80), st.text(max_size=80))
def test_text_and_attributes_never_become_markup(text: str, value: str) -> None:
    parsed = page(el("p", "a", text, Markup("<i>b</i>"), title=value).encode(
        "ascii", "xmlcharrefreplace").decode())  # fmt: skip
    (paragraph,) = parsed.all("p")
    assert [child.tag for child in paragraph] == ["i"]
    assert set(paragraph.attrib) == {"title"}


def test_spaces_between_text_and_elements_stay() -> None:
    assert el("p", "one ", el("b", "two"), " three") == "<p>one <b>two</b> three</p>"
    assert el("p", None, ["a", [" ", "b"]], hidden=True, id=None) == "<p hidden>a b</p>"


@given(
    st.floats(-1e6, 1e12, allow_nan=False), st.floats(1e-9, 1e12), st.integers(2, 9), st.booleans()
)
def test_ticks_cover_the_range_and_are_few(
    low: float, size: float, count: int, whole: bool
) -> None:
    high = low + size
    ticks = nice_ticks(low, high, count, whole=whole)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return  # a range that floats cannot tell from a point
    assert 2 <= len(ticks) <= count + 3
    slack = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))
    assert not whole or all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("values", [[0.0], [5.0], [1e-7, 2e-7], [0.0, 0.0], [1e9, 3e9], [0.2, 0.7]])
def test_a_trend_of_any_size_is_drawn_inside_its_picture(values: list[float]) -> None:
    points = [Point(100.0 * i, value, "value", f"c{i}") for i, value in enumerate(values)]
    parsed = page(trend(points, name="n", description="d", x_label="step"))
    for chart, width, height in zip(parsed.all("svg"), (900, 340), (230, 200), strict=True):
        for mark in chart.iter():
            for key, most in (("cx", width), ("cy", height), ("x", width), ("y", height)):
                assert 0 <= float(mark.attrib.get(key, 0)) <= most
        labels = [e.text or "" for e in chart.iter() if e.attrib.get("class") == "end"]
        assert all(len(label) <= 7 for label in labels)
        assert len(labels) == len(set(labels)), "two ticks with the same label"


def test_singular_values_are_drawn_from_large_to_small() -> None:
    drawing = spectrum(np.geomspace(10, 1e-12, 128))
    assert drawing is not None
    (line,) = page(drawing).all("polyline")
    heights = [float(p.split(",")[1]) for p in line.attrib["points"].split()]
    assert heights == sorted(heights) and heights[0] == 4 and heights[-1] == 34
    assert spectrum(np.zeros(4)) is None and spectrum(np.empty(0)) is None
    assert spectrum(np.ones(5)) is not None


def test_every_rule_is_explained_without_left_over_markdown() -> None:
    codes = [rule.code for rule in all_rules()]
    articles = list(explain(codes, level=3))
    assert len(articles) == len(codes) and all(map(has_page, codes))
    for article in articles:
        parsed = page(article)
        shown = parsed.text()
        assert (
            "](" not in shown and "<!--" not in shown and "```" not in shown and "**" not in shown
        )
        assert parsed.all("h3") and not parsed.all("h1")
        assert parsed.all("h4"), "a rule's page has sections"
    assert list(explain(["SLA999"], level=3)) == [] and not has_page("SLA999")


def test_markdown_of_every_kind_that_the_pages_use() -> None:
    source = """# T <b>
Some *emphasis*, **bold**, `a < b` and 2 * 3 * 4,
[another rule](SLA202.md), [unknown](SLA999.md), [site](https://example.org/?a=1&b=2).

- one
  goes on
- two

1. first

<!-- docs: exit 1 -->
```sh
if x:
    y < z
```

| a | b |
|---|---|
| `1` | 2 |
"""
    parsed = page(render(source, level=2, known=["SLA202"]))
    assert parsed.text("h2") == "T <b>"
    assert parsed.text("em") == "emphasis" and parsed.text("strong") == "bold"
    assert parsed.all("code")[0].text == "a < b"
    links = {a.text: a.attrib["href"] for a in parsed.all("a")}
    assert links == {"another rule": "#rule-SLA202", "site": "https://example.org/?a=1&b=2"}
    assert [item.text for item in parsed.all("li")] == ["one goes on", "two", "first"]
    assert parsed.all("pre")[0][0].text == "if x:\n    y < z"
    assert [cell.text for cell in parsed.all("th")] == ["a", "b"]
    assert "unknown" in parsed.text("p")
    assert "docs:" not in parsed.text()


def test_commands_in_hints_stand_out() -> None:
    assert command("check the path") == "<span>check the path</span>"
    assert "<code>sla-ckpt verify --fix X</code>, or delete it" in command(
        "write it again: sla-ckpt verify --fix X, or delete it"
    )


def luminance(colour: str) -> float:
    if len(colour) == 4:
        colour = "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_colours_have_the_contrast_that_reading_needs(theme: str) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for lines of a chart."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    assert len(blocks) == 3
    place = {"light": 0, "dark": 1, "print": 2}[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[place]))
    for text in ("ink", "soft", "link", "good", "warn", "bad", "info", "dim"):
        for ground in ("page", "sheet"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name in ("good", "warn", "bad", "info", "dim"):
        assert contrast(colours[name], colours[f"{name}-tint"]) >= 4.5, name
        assert contrast(colours["ink"], colours[f"{name}-tint"]) >= 4.5, name
    assert contrast(colours["line"], colours["sheet"]) >= 3
    assert math.isclose(contrast("#000", "#fff"), 21)
