"""Plug-ins that fail: one line that names the package, and verify goes on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, verify
from sla_ckpt.checks import registry
from sla_ckpt.errors import PluginWarning
from sla_ckpt.formats.layouts import names
from sla_ckpt.pairs.table import UnknownModelError, expected_head_dims
from tests import factories
from tests.plugins.installing import announce, run

RULE = """
from sla_ckpt.plugins import Fault, Rule

def check(context):
    {body}

RULE = Rule(code="{code}", level="warning", title="a rule", check=check)
"""


def rule(code: str = "BAD001", body: str = "return ()") -> str:
    return RULE.format(code=code, body=body)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path / "checkpoint-500", trainer=True)


Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make ``bad-sla`` look installed in this process: ``install(group, name, source)``.

    The entry point's object is ``OBJECT`` of a module with that source. What the process
    remembers about plug-ins is forgotten before and after.
    """
    caches = (registry._plugin_rules, names.layouts, names._plugin_patterns)
    for cache in caches:
        cache.cache_clear()

    def do(group: str, name: str, source: str) -> None:
        entries = {group: {name: "bad_sla:OBJECT"}}
        site = announce(tmp_path / "site", "bad-sla", entries, bad_sla=source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "bad_sla", raising=False)

    yield do
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("BAD001", "raise RuntimeError('boom\\nsecond line')", "does not load: RuntimeError: boom"),
        ("BAD001", "import sys\nsys.exit(3)", "does not load: SystemExit: 3"),
        ("BAD001", "def broken(:\n", "does not load: SyntaxError"),
        ("BAD001", "import no_such_module", "does not load: ModuleNotFoundError"),
        ("BAD001", "x = 1", "does not load: AttributeError"),
        ("BAD001", "RULE = 7", "is a int, not a sla_ckpt.plugins.Rule"),
        ("BAD001", rule("BAD002"), "names a rule with another code, 'BAD002'"),
        ("SLA999", rule("SLA999"), "is no code for a plug-in"),
        ("bad1", rule("bad1"), "is no code for a plug-in"),
        ("SLA202", rule("SLA202"), "SLA202 is built in"),
        ("BAD001", rule().replace('"warning"', '"fatal"'), "has the level 'fatal'"),
        ("BAD001", rule().replace("title=", "fixable=True, title="), "says it is fixable"),
    ],
)
def test_a_rule_that_cannot_be_is_left_out_with_a_warning(
    install: Install, good: Path, name: str, source: str, said: str
) -> None:
    expected = verify(good)
    registry._plugin_rules.cache_clear()
    install("sla_ckpt.rules", name, source.replace("RULE =", "OBJECT ="))
    with pytest.warns(PluginWarning, match=re.escape(said)) as caught:
        report = verify(good)
    assert report == expected
    (warning,) = caught
    assert f"plug-in {name} of bad-sla 1.0" in str(warning.message)


def test_the_command_line_shows_it_as_one_line_and_goes_on(good: Path, tmp_path: Path) -> None:
    source = "raise RuntimeError('boom\\nsecond line')"
    entries = {"sla_ckpt.rules": {"BAD001": "bad_sla:RULE"}}
    done = run("verify", good, site=announce(tmp_path / "site", "bad-sla", entries, bad_sla=source))
    assert done.returncode == 0
    assert "good" in done.stdout
    assert done.stderr == (
        "warning: plug-in BAD001 of bad-sla 1.0 does not load: RuntimeError: boom second line\n"
    )


def test_a_module_that_prints_does_not_spoil_json(good: Path, tmp_path: Path) -> None:
    source = "print('hello from import')\n" + rule()
    site = announce(
        tmp_path / "site", "loud", {"sla_ckpt.rules": {"BAD001": "loud:RULE"}}, loud=source
    )
    done = run("verify", good, "--json", site=site)
    assert json.loads(done.stdout)["ok"] is True
    assert "hello from import" in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ZeroDivisionError('by zero')", "ZeroDivisionError: by zero"),
        ("yield Fault('one'); raise KeyError('k')", "KeyError: 'k'"),
        ("return 5", "TypeError"),
        ("yield 'text'", "it yielded a str, not a Fault"),
        ("yield Fault(7)", "are texts"),
        ("yield Fault('x', level='fatal')", "has the level 'fatal'"),
        ("from sla_ckpt.errors import HubError; raise HubError('gone')", "HubError: gone"),
    ],
)
def test_a_rule_that_fails_is_a_warning_among_the_findings(
    install: Install, good: Path, body: str, said: str
) -> None:
    install("sla_ckpt.rules", "BAD001", rule(body=body).replace("RULE =", "OBJECT ="))
    report = verify(good)
    findings = [item for item in report.findings if item.code == "BAD001"]
    assert report.ok
    assert findings[-1].level == "warning"
    assert "this rule of bad-sla 1.0 failed" in findings[-1].message
    assert said in findings[-1].message
    assert "--ignore BAD001" in str(findings[-1].help)
    assert len(findings) == (2 if "'one'" in body else 1), "what it found before is kept"
    ignored = verify(good, VerifyOptions(ignore=("BAD001",)))
    assert all(item.code != "BAD001" for item in ignored.findings)


def test_of_two_rules_with_one_code_the_first_package_wins(good: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for package in ("alpha", "beta"):
        source = rule("TWO001", f"yield Fault('from {package}')")
        entries = {"sla_ckpt.rules": {"TWO001": f"{package}:RULE"}}
        announce(site, package, entries, **{package: source})
    done = run("verify", good, "--json", site=site)
    messages = [item["message"] for item in json.loads(done.stdout)["findings"]]
    assert "from alpha" in messages and "from beta" not in messages
    assert "beta 1.0 is left out: TWO001 is already there, from alpha 1.0" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("bad", "7", "not a sla_ckpt.plugins.Layout"),
        ("fastvideo", "Layout('x', 'a.{layer}.{tensor}')", "is built in"),
        ("simpletuner", "Layout('x', 'a.{layer}.{tensor}')", "is built in"),
        ("Bad Name", "Layout('x', 'a.{layer}.{tensor}')", "is no name for a layout"),
        ("bad", "Layout('x', 'a.{tensor}')", "once each"),
        ("bad", "Layout('x', 'a.{layer}.{tensor}.{other}')", "once each"),
        ("bad", "Layout('x', 'layers.{layer}.sla.proj_l.{tensor}')", "names of a layout"),
        ("bad", "Layout('x', 'a.{layer}.{tensor}', '.gguf')", "has the suffix '.gguf'"),
    ],
)
def test_a_layout_that_cannot_be_is_left_out(
    install: Install, name: str, value: str, said: str
) -> None:
    source = f"from sla_ckpt.plugins import Layout\nOBJECT = {value}\n"
    install("sla_ckpt.layouts", name, source)
    with pytest.warns(PluginWarning, match=rf"bad-sla 1\.0.*{said}"):
        found = names.layouts()
    assert set(found) == {"turbodiffusion", "turbowan", "sglang", "fastvideo", "mindie"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('width')", "KeyError: 'width'"),
        ("return ('128',)", "is no head_dim"),
        ("return (0,)", "is no head_dim"),
        ("return None", "TypeError"),
    ],
)
def test_head_dims_that_fail_leave_the_class_unknown(
    install: Install, body: str, said: str
) -> None:
    install("sla_ckpt.pairs", "OddModel", f"def OBJECT(config):\n    {body}\n")
    with (
        pytest.warns(PluginWarning, match=rf"OddModel of bad-sla 1\.0 is left out: .*{said}"),
        pytest.raises(UnknownModelError),
    ):
        expected_head_dims({"_class_name": "OddModel"})


def test_plain_verify_imports_no_plug_in_code_beyond_the_rules(good: Path, tmp_path: Path) -> None:
    """Layouts, families and pairs of known models stay unimported: they would only cost time."""
    entries = {
        "sla_ckpt.layouts": {"lazy": "lazy_sla:LAYOUT"},
        "sla_ckpt.families": {"LazyModel": "lazy_sla:ADAPTER"},
        "sla_ckpt.pairs": {"LazyModel": "lazy_sla:head_dims"},
    }
    source = "raise RuntimeError('imported although nothing asked for it')"
    site = announce(tmp_path / "site", "lazy-sla", entries, lazy_sla=source)
    done = run("verify", good, "--json", site=site)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("listing", ["[sla_ckpt.rules]\nno equals sign\n", "[a]\nx\n"])
def test_malformed_metadata_of_any_package_is_one_warning(
    good: Path, tmp_path: Path, listing: str
) -> None:
    info = tmp_path / "site" / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(listing)
    done = run("verify", good, "--json", site=info.parent)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"] is True
    (line,) = done.stderr.splitlines()
    assert "plug-ins are left out, because an installed package has unreadable metadata" in line


def test_a_package_without_a_name_is_told_as_such(good: Path, tmp_path: Path) -> None:
    info = tmp_path / "site" / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[sla_ckpt.rules]\nBAD001 = no_such_module:RULE\n")
    done = run("verify", good, site=info.parent)
    assert done.returncode == 0
    assert "plug-in BAD001 of an unnamed package does not load" in done.stderr
