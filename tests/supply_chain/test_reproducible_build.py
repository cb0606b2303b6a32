"""The same sources give the same release, byte for byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "dist", "build", "site", "__pycache__", ".*_cache", ".hypothesis",
    "*.egg-info",
)  # fmt: skip


def built(tree: Path, out: Path, **environment: str) -> dict[str, str]:
    """File name -> sha256 of what ``tools/build.sh`` makes of a tree."""
    fixed = {"PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        ["bash", tree / "tools" / "build.sh", out], env={**os.environ, **fixed, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    assert all(f"{value}  {name}" in done.stdout for name, value in hashes.items())
    return hashes


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sources twice: under another path, with other times and permissions."""
    first = tmp_path_factory.mktemp("first") / "tree"
    second = tmp_path_factory.mktemp("second") / "a" / "longer path" / "tree"
    shutil.copytree(ROOT, first, ignore=NOT_SOURCE)
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    for path in second.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        if path.is_file():
            path.chmod(0o755 if os.access(first / path.relative_to(second), os.X_OK) else 0o600)
    return first, second


def test_two_builds_are_the_same_bytes(trees: tuple[Path, Path], tmp_path: Path) -> None:
    one = built(trees[0], tmp_path / "one")
    two = built(trees[1], tmp_path / "two", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    assert len(one) == 2
    assert one == two
    (source,) = (tmp_path / "one").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    assert built(tree, tmp_path / "three") == one


def test_a_changed_source_is_another_release(trees: tuple[Path, Path], tmp_path: Path) -> None:
    """The comparison is not of two constants."""
    before = built(trees[0], tmp_path / "before")
    module = trees[0] / "sla_ckpt" / "state.py"
    module.write_text(module.read_text() + "\n")
    after = built(trees[0], tmp_path / "after")
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_the_wheel_holds_the_package_and_its_rule_pages_only(
    trees: tuple[Path, Path], tmp_path: Path
) -> None:
    built(trees[1], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "sla_ckpt/checks/pages_data/SLA003.md" in names
    assert "sla_ckpt/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"sla_ckpt"}
