"""Making plug-ins look installed, and running commands as processes that see them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "example_plugin"
UNSET = ("NO_COLOR", "FORCE_COLOR", "SLA_CKPT_NO_PLUGINS")


def install_example(site: Path) -> Path:
    """Install the example package with pip, without network, into a folder for PYTHONPATH."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--disable-pip-version-check", "--target", str(site), str(EXAMPLE)],
        check=True, timeout=120,
    )  # fmt: skip
    return site


def announce(
    site: Path, package: str, entries: Mapping[str, Mapping[str, str]], **modules: str
) -> Path:
    """Make a package of single modules look installed.

    Args:
        site: Folder that goes on PYTHONPATH.
        package: Its name; the version is 1.0.
        entries: Entry points: by group, by name.
        modules: Their source by module name.
    """
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for group, names in entries.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in modules.items():
        (site / f"{name}.py").write_text(source, encoding="utf-8")
    return site


def run(
    *args: object, site: Path | None = None, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """``sla-ckpt ARGS`` with the packages of ``site``."""
    clean = {name: value for name, value in os.environ.items() if name not in UNSET}
    path = os.pathsep.join(str(item) for item in (site, ROOT) if item is not None)
    return subprocess.run(
        [sys.executable, "-m", "sla_ckpt", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, "PYTHONPATH": path, **env},
        check=False,
        timeout=120,
    )
