"""What a newcomer and CI install: lower bounds in pyproject, exact files in the lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements-dev.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("linux", "darwin", "win32")


def requirements(extra: str | None) -> list[Requirement]:
    """Of the package or one extra, with those of the extras that it names."""
    lines = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found += [each for name in requirement.extras for each in requirements(name)]
        else:
            found.append(requirement)
    return found


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each pinned version with the hashes of its files."""
    text = LOCK.read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(requirement), hashes))
    return found


def environment(python: str, platform: str) -> dict[str, str]:
    system = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[platform]
    return {
        "python_version": python, "python_full_version": f"{python}.5", "sys_platform": platform,
        "platform_system": system, "os_name": "nt" if platform == "win32" else "posix",
        "platform_machine": "arm64" if platform == "darwin" else "x86_64",
        "platform_python_implementation": "CPython", "implementation_name": "cpython",
    }  # fmt: skip


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_every_dependency_has_a_lower_bound_and_no_upper_one(extra: str | None) -> None:
    for requirement in requirements(extra):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">="}, str(requirement)
        assert requirement.url is None


def test_every_locked_file_has_its_hash() -> None:
    assert len(locked()) > 80
    for requirement, hashes in locked():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]
        assert hashes, str(requirement)
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes)


def test_the_lock_names_no_index() -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host", LOCK.read_text())


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_gives_each_dependency_one_version_that_fits(python: str, platform: str) -> None:
    """All but torch, whose build depends on the machine."""
    where = environment(python, platform)
    pins: dict[str, str] = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(where):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice"
            (pins[name],) = (specifier.version for specifier in requirement.specifier)
    for requirement in [*requirements(None), *requirements("dev")]:
        name = canonicalize_name(requirement.name)
        if name == "torch" or (requirement.marker and not requirement.marker.evaluate(where)):
            continue
        assert name in pins, f"{name} is not locked; run: bash tools/lock.sh"
        assert requirement.specifier.contains(pins[name], prereleases=True), str(requirement)
    assert not [name for name in pins if name.startswith(("torch", "nvidia-", "cuda-"))]
