"""``verify --format html``: what the page says, and that it is sound without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from sla_ckpt import SLAState, encode_state
from sla_ckpt.report import collect, to_html
from sla_ckpt.state import STATE_FILE
from tests import factories
from tests.hub.running import Runner
from tests.report import runs
from tests.report.conftest import Verify
from tests.report.reading import Page
from tools.loopback_hub import LoopbackHub


def page_of(*targets: object, strict: bool = False) -> Page:
    return Page(to_html(collect([str(target) for target in targets]), strict=strict))


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.eventful(tmp_path_factory.mktemp("runs") / "portrait-sla")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return runs.write(tmp_path, 500, runs.trained(2.0))


def assert_sound(page: Page) -> None:
    """Well-formed, self-contained, every link inside it leads somewhere, readable by machine."""
    assert page.root.attrib["lang"] == "en"
    for name in ("script", "iframe", "img", "object", "embed", "form", "base", "audio", "video"):
        assert page.all(name) == []
    assert len(page.ids) == len(set(page.ids))
    for element in page.root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on") and key != "style" and key != "src"
            if key.rpartition("}")[2] != "href":
                continue
            name = str(element.tag).rpartition("}")[2]
            if value.startswith("#"):
                assert value[1:] in page.ids, f"dead link {value}"
            elif name == "link":
                assert value.startswith("data:")
            else:
                assert name == "a" and value.startswith(("https://", "http://127.0.0.1"))
    assert "url(" not in page.text("style") and "@import" not in page.text("style")
    levels = [int(e.tag[1]) for e in page.root.iter() if re.fullmatch(r"h[1-6]", str(e.tag))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for table in page.all("table"):
        assert all(cell.attrib.get("scope") for cell in table.iter("th"))
    for picture in page.all("svg", role="img"):
        assert (picture[0].text or "").strip(), "a chart without a title"
    assert page.source.isascii()


def test_a_run_shows_every_checkpoint_and_judges_the_newest(eventful: Path) -> None:
    page = page_of(eventful)
    assert_sound(page)
    assert page.text("h1") == "portrait-sla"
    assert page.text("p", class_="verdict") == "Whole checkpoint-1100: no errors, no warnings"
    chips = [chip.attrib["title"] for chip in page.all("a", class_="chip")]
    assert chips == [
        "checkpoint-100: good",
        "checkpoint-200: good",
        "checkpoint-300: no state",
        "checkpoint-400: good",
        "checkpoint-500: warnings",
        "checkpoint-600: errors",
        "checkpoint-700: good",
        "checkpoint-800: good",
        "checkpoint-900: good",
        "checkpoint-1000: state unreadable",
        "checkpoint-1100: good",
        "checkpoint-1200-tmp: unfinished",
    ]
    assert "in 9 of 11 checkpoints" in page.text("dl", class_="facts")
    assert "3 of 10 with errors" in page.text("dl", class_="facts")


def test_the_timeline_says_what_happened(eventful: Path) -> None:
    said = page_of(eventful).text("ul", class_="remarks")
    for sentence in (
        "No state in checkpoint-300, although checkpoint-100 has one.",
        "The state cannot be read in checkpoint-1000.",
        "128:bf16 falls to all zeros at checkpoint-500: what checkpoint-400 had learned",
        "128:bf16 has NaN or Inf in checkpoint-600.",
        "128:bf16 is the same in checkpoint-700 and checkpoint-800: SLA was not training",
        "128:bf16 falls from norm 3.2 at checkpoint-800 to 1 at checkpoint-900.",
        "Settings change at checkpoint-900: topk 0.2 → 0.15.",
        "128:bf16: norm 1 at checkpoint-100, 3.6 at checkpoint-1100.",
    ):
        assert sentence in said
    assert said.index("NaN") < said.index("falls from norm") < said.index("norm 1 at")


def test_a_bad_newest_checkpoint_points_to_the_last_good_one(tmp_path: Path) -> None:
    runs.write(tmp_path, 1, runs.trained(1.0))
    runs.write(tmp_path, 2, None)
    newest = runs.write(tmp_path, 3, runs.trained(2.0))
    assert "Last good one" not in page_of(tmp_path).text("dl", class_="facts")
    (newest / STATE_FILE).write_bytes(b"")
    page = page_of(tmp_path)
    assert "Last good one checkpoint-1" in page.text("dl", class_="facts")
    assert_sound(page)


def test_the_chart_has_a_mark_with_a_title_for_every_checkpoint(eventful: Path) -> None:
    page = page_of(eventful)
    for class_ in ("wide", "narrow"):
        (chart,) = page.all("svg", class_=class_)
        groups = [e for e in chart.iter() if str(e.tag).endswith("}g")]
        titles = [group[0].text or "" for group in groups]
        assert titles[1].startswith("checkpoint-200: norm 2, bias norm 0.1")
        assert titles[2] == "checkpoint-300: no state"
        assert titles[4] == "checkpoint-500: all zero"
        assert titles[5] == "checkpoint-600: NaN or Inf"
        assert titles[9] == "checkpoint-1000: state unreadable"
        assert len(titles) == 11
        lines = [e for e in chart.iter() if str(e.tag).endswith("}polyline")]
        # Broken where a norm is missing: 100-200, 400-500, 700-900.
        assert [len(e.attrib["points"].split()) for e in lines] == [2, 2, 3]
    assert page.text("p", class_="legend") == (
        "all zero no state or no such pair NaN, Inf or unreadable"
    )


def test_findings_say_what_where_and_what_next(eventful: Path) -> None:
    page = page_of(eventful)
    card = page.text("article", id="r1-o-SLA205-error")
    assert "error SLA205 NaN or Inf" in card
    assert "has 1 of 16,384 values NaN or Inf" in card
    assert "Where sla_attention.pt In checkpoint-600 Next" in card
    assert f"sla-ckpt regen {eventful}/checkpoint-600" in card
    assert "About SLA205" in card
    explained = page.text("article", id="rule-SLA205")
    assert explained.startswith("SLA205: ") and "What to do" in explained
    row = page.text("tr", id="r1-c5")
    assert row == "checkpoint-600 errors – SLA205"


def test_a_finding_of_many_checkpoints_is_shown_once(eventful: Path) -> None:
    page = page_of(eventful)
    assert len([i for i in page.ids if "SLA107" in i and not i.startswith("rule")]) == 1
    assert "and 3 more checkpoints" in page.text("article", id="r1-SLA107-info")


def test_one_checkpoint_has_pairs_settings_and_origin(good: Path) -> None:
    state = runs.trained(2.0)
    origin = {"tool": "sla-ckpt", "seed": "7"}
    from sla_ckpt.formats.twin import write_state

    write_state(good, SLAState(state.pairs, state.settings, origin=origin))
    page = page_of(good)
    assert_sound(page)
    assert page.text("h1") == "checkpoint-500"
    assert page.text("p", class_="path") == str(good)
    pairs = page.text("section", id="r1-pairs")
    assert "128:bf16 128×128 float32 2 0.1" in pairs and "128 of 128" in pairs
    assert "singular values from" in pairs and "trained" in pairs
    settings = page.text("section", id="r1-settings")
    assert "topk 0.2 feature_map softmax blkq 64" in settings
    assert "seed 7 tool sla-ckpt" in settings
    assert hashlib.sha256((good / STATE_FILE).read_bytes()).hexdigest() in settings
    assert page.all("svg", class_="wide") == []


def test_nothing_from_a_file_or_a_name_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;"
    root = tmp_path / "a<script>alert(1)<" / "script>\"'&quot;\u202e"
    folder = root / "checkpoint-5"
    state = SLAState(runs.trained(1.0).pairs, origin={evil: evil, "tool": "\x1b[2J\x00"})
    config = {**factories.FLUX_CONFIG, "_class_name": evil}
    factories.write_full_checkpoint(folder, state, config=config)
    from sla_ckpt.formats.twin import encode_twin

    data = encode_state(state)
    (folder / STATE_FILE).write_bytes(data)
    twin = encode_twin(state, pt_sha256=hashlib.sha256(data).hexdigest())
    (folder / "sla_attention.safetensors").write_bytes(twin)
    runs.write(root, 6, None)
    page = page_of(root, tmp_path / "gone<script>alert(2)</script>")
    assert_sound(page)
    assert page.all("b") == []
    assert "<script>alert(1)<" in page.text("main")
    assert "\x1b" not in page.source and "\u202e" not in page.text("main")
    single = page_of(folder)
    assert_sound(single)
    assert evil[:25] in single.text("section", id="r1-settings")


def test_names_that_no_encoding_has_are_shown(tmp_path: Path) -> None:
    if os.name == "nt" or sys.platform == "darwin":
        pytest.skip("file systems there refuse such names")
    folder = runs.write(tmp_path / os.fsdecode(b"mod\xe8le_\xff"), 5, runs.trained(1.0))
    assert_sound(page_of(folder.parent))


def test_the_policy_allows_the_page_and_nothing_else(good: Path) -> None:
    page = page_of(good)
    (policy,) = [
        m.attrib["content"]
        for m in page.all("meta")
        if m.attrib.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = page.all("style")
    digest = base64.b64encode(hashlib.sha256((style.text or "").encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


def test_targets_that_cannot_be_examined_are_on_the_page(good: Path, tmp_path: Path) -> None:
    page = page_of(good, tmp_path / "gone")
    assert_sound(page)
    assert page.text("p", class_="verdict") == "Could not be examined 1 of 2 targets"
    assert "no such file or folder" in page.text("section", id="r2")
    assert "not examined" in page.text("nav") and "Checkpoints" not in page.text("nav")


def test_loose_state_files_are_targets(tmp_path: Path, verify: Verify) -> None:
    (tmp_path / "a.pt").write_bytes(encode_state(runs.trained(1.0)))
    (tmp_path / "b.pt").write_bytes(b"")
    code, out, _ = verify(tmp_path, "--format", "html")
    page = Page(out)
    assert_sound(page)
    assert code == 1 and page.text("h1") == "2 targets"
    assert page.text("p", class_="verdict") == "Not whole 1 error"


def test_checkpoints_of_one_run_are_one_timeline_however_they_are_named(tmp_path: Path) -> None:
    first, second = runs.write(tmp_path, 1, runs.trained(1)), runs.write(tmp_path, 2, None)
    page = page_of(second, first)
    assert page.text("h1") == tmp_path.name
    assert [c.attrib["title"] for c in page.all("a", class_="chip")] == [
        "checkpoint-1: good",
        "checkpoint-2: no state",
    ]
    # Both are targets now, so the older one counts too.
    assert page.text("p", class_="verdict").startswith("Not whole 1 error")
    assert len(page_of(tmp_path, first, f"{tmp_path}/").all("a", class_="chip")) == 2


def test_a_folder_is_called_by_its_name_also_from_inside(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good)
    assert page_of(".").text("title").startswith("checkpoint-500 ·")
    runs.write(good.parent, 600, runs.trained(2.0))
    monkeypatch.chdir(good.parent)
    assert page_of(".").text("title").startswith(f"{good.parent.name} ·")


def test_two_hundred_checkpoints_stay_small_and_readable(tmp_path: Path) -> None:
    for step in range(1, 201):
        folder = tmp_path / f"checkpoint-{step * 500}"
        folder.mkdir()
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps(factories.FLUX_CONFIG))
        state = factories.state("16:bf16", seed=step) if step % 9 else None
        if state:
            (folder / STATE_FILE).write_bytes(encode_state(state))
    page = page_of(tmp_path)
    assert_sound(page)
    assert len(page.source) < 400_000
    assert len(page.all("a", class_="chip")) == 200
    assert len(page.all("ol", class_="small")) == 1
    # A card per rule and message, not per checkpoint.
    assert len(page.all("article", class_="card")) < 12


def test_a_remote_repository_is_read_once_and_linked(
    tmp_path: Path, hub: LoopbackHub, cli: Runner
) -> None:
    files = {
        "transformer/config.json": json.dumps(factories.FLUX_CONFIG),
        "transformer/diffusion_pytorch_model.safetensors": factories.safetensors_bytes(
            {"w": (8, 8)}
        ),
        STATE_FILE: encode_state(runs.trained(2.0)),
    }
    hub.add_repo("alice/model", files=files)
    plain = cli("verify", "alice/model", hub=hub)
    cost = len(hub.requests)
    result = cli("verify", "alice/model", "--format", "html", hub=hub)
    assert (result.returncode, len(hub.requests) - cost) == (plain.returncode, cost)
    page = Page(result.stdout)
    assert_sound(page)
    assert page.text("h1") == "alice/model"
    (link,) = [a for a in page.all("a") if a.attrib["href"].startswith("http")]
    assert link.attrib["href"].startswith(f"{hub.url}/alice/model/tree/")
    assert "128:bf16 128×128 float32 2 " in page.text("section", id="r1-pairs")


def test_neither_the_page_nor_plain_verify_needs_torch(good: Path) -> None:
    code = (
        "import sys; from sla_ckpt.cli import main\n"
        "main._run(['verify', sys.argv[1]])\n"
        "assert not [m for m in sys.modules if m.startswith('sla_ckpt.report')]\n"
        "main._run(['verify', sys.argv[1], '--format', 'html'])\n"
        "assert 'sla_ckpt.report.page' in sys.modules\n"
        "assert not {'torch', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(good)], check=True, stdout=subprocess.DEVNULL)


def test_times_are_reproducible(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert "on 2023-11-14 22:13 UTC" in page_of(good).text("footer")
    assert page_of(good).source == page_of(good).source
