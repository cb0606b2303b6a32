"""push while the Hub fails at random: a seeded sample of the campaign in tools/campaign."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tools.campaign.children import Server
from tools.campaign.pushes import Repository, Tally
from tools.loopback_hub import LoopbackHub


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")
def test_every_revision_is_whole_and_a_rerun_finishes(tmp_path: Path) -> None:
    tally = Tally()
    with (
        Server("hub") as server,
        LoopbackHub(tmp_path / "hub", port=server.hub_port) as hub,
    ):
        repository = Repository(hub, server, tmp_path / "work", random.Random("suite"), tally)
        for _ in range(8):
            repository.one_run()
            tally.runs += 1
    assert tally.faults == []
    assert tally.struck > 3
    assert tally.revisions > 8
    assert len(tally.codes) > 1
