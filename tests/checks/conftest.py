"""Checkpoints that the tests of the rules break."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import factories


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path / "checkpoint-500", trainer=True)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path, shards=3)
