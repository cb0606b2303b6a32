"""A loopback Hub over LFS, over xet, or each in turn, and a user who runs commands against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that takes large files over LFS."""
    with LoopbackHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that takes large files over xet."""
    with LoopbackHub(tmp_path / "xet-hub", xet=True) as running:
        yield running


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopbackHub]:
    """Both kinds, one after the other."""
    with LoopbackHub(tmp_path / request.param, xet=request.param == "xet") as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path) -> Runner:
    """Runs `sla-ckpt` as a process: `cli("verify", "alice/model", hub=hub)`."""
    home = tmp_path / "home"
    home.mkdir()
    return Runner(home)
