"""Draws the pictures of docs/report.md: ``python -m tools.report_pictures``.

Needs Chromium, as tests/report/test_in_browser.py does. The run they show is made up: real files,
and weights that grow as a training's do.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from sla_ckpt import encode_state
from sla_ckpt.report import collect, to_html
from sla_ckpt.state import STATE_FILE
from tests import factories
from tests.report import runs
from tests.report.test_in_browser import find_browser

TARGET = Path(__file__).parents[1] / "docs" / "_static"
#: Enough for flat colours and smoothed text.
COLOURS = 64


def make_run(root: Path) -> None:
    """A run whose state is lost once, wiped once, and unreadable in the end."""
    for number, step in enumerate(range(250, 3500, 250), 1):
        state = runs.trained(4.5 * (1 - math.exp(-number / 4)), seed=number)
        if step == 1500:
            state = factories.zero_state()
        elif step > 1500:
            state = runs.trained(4.5 * (1 - math.exp(-(number - 6) / 4)), seed=number)
        runs.write(root, step, None if step == 1000 else state)
    newest = root / "checkpoint-3250" / STATE_FILE
    newest.write_bytes(encode_state(runs.trained(3.7))[:-512])


def main() -> None:
    os.environ["SOURCE_DATE_EPOCH"] = "1764000000"
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        root = Path(name) / "portrait-sla"
        make_run(root)
        os.chdir(name)
        page_file = Path(name) / "report.html"
        page_file.write_text(to_html(collect([root.name])), encoding="ascii")
        browser = playwright.chromium.launch(
            executable_path=find_browser(playwright.chromium.executable_path)
        )
        for target, width, height, scheme in (
            ("report.png", 960, 1130, "light"),
            ("report-phone.png", 360, 780, "dark"),
        ):
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(page_file.as_uri())
            save(page.screenshot(), TARGET / target)
        browser.close()


def save(png: bytes, target: Path) -> None:
    """The screenshot with few colours, which makes it small."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
