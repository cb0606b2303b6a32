"""What the wheel carries besides the code: type information, rule pages, man pages, the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integrations.conftest import ROOT
from tools import manpages

SNIPPET = """
import sla_ckpt
from sla_ckpt.plugins import Rule

report = sla_ckpt.verify("checkpoint-500")
reveal_type(report)
reveal_type(report.findings[0].level)
reveal_type(sla_ckpt.read_state)
reveal_type(Rule)
report.no_such_attribute
"""


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel unpacked into it, as an installer would, and nothing else."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("**/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_users_code_is_type_checked_against_it(site: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(SNIPPET)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-numpy.*]\nignore_missing_imports = true\n"
    )
    python = next(site.parents[2].glob("bin/python"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(python), "user.py"],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120,
        env={**os.environ, "MYPYPATH": ""},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "py.typed" in line or "missing library stubs" in line]
    assert 'Revealed type is "sla_ckpt.checks.report.Report"' in lines[0]
    assert "Literal['error']" in lines[1] and "Literal['info']" in lines[1]
    assert "sla_ckpt.state.SLAState" in lines[2]
    assert "sla_ckpt.checks.registry.Rule" in lines[3]
    assert '"Report" has no attribute "no_such_attribute"' in lines[4]
    assert len(lines) == 6 and "Found 1 error in 1 file" in lines[5], done.stdout


def test_it_carries_rule_pages_and_man_pages(wheel: Path, site: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "sla_ckpt/py.typed" in names
    assert "sla_ckpt/checks/pages_data/SLA202.md" in names
    manuals = {name.rpartition("/")[2] for name in names if ".data/data/share/man/man1/" in name}
    assert manuals == set(manpages.pages())
    assert not [name for name in names if name.startswith(("tests/", "tools/", "docs/"))]


def test_man_pages_are_what_the_commands_say() -> None:
    for name, text in manpages.pages().items():
        written = (ROOT / "man" / name).read_text(encoding="ascii")
        assert written == text, "run: python -m tools.manpages"


def test_man_pages_are_correct_roff() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed here")
    for name in manpages.pages():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", str(ROOT / "man" / name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr == ""
        assert "Nothing at error level" in done.stdout


def test_the_module_is_the_command(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = Path(sys.executable).parent / "sla-ckpt"
    for args in (["--version"], ["verify", "--help"], ["rules", "SLA202"], ["nothing"]):
        module = subprocess.run(
            [sys.executable, "-m", "sla_ckpt", *args], capture_output=True, env=env, cwd=tmp_path
        )
        script = subprocess.run([command, *args], capture_output=True, env=env, cwd=tmp_path)
        assert (module.stdout, module.stderr) == (script.stdout, script.stderr)
        assert module.returncode == script.returncode
