"""Checkpoints of the reliability campaign, and fork servers to run commands on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tools.campaign.cases import Case
from tools.campaign.children import Server
from tools.campaign.kills import COMMANDS, measured


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, Server]]:
    """By command. Started first: a child must not inherit a Hub's sockets."""
    with Server("hub") as light, Server("regen", hub_port=light.hub_port) as heavy:
        yield {command: light if command == "pull" else heavy for command in COMMANDS}


@pytest.fixture(scope="session")
def all_cases(
    servers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Case]]]:
    folder = tmp_path_factory.mktemp("cases")
    with ExitStack() as stack:
        yield {
            command: stack.enter_context(measured(command, servers[command], folder / command))
            for command in COMMANDS
        }


@pytest.fixture(params=[*COMMANDS, "regen over a state", "pull --force"])
def case(request: pytest.FixtureRequest, all_cases: dict[str, list[Case]]) -> Case:
    """Each command, the last two on a checkpoint that has a state already."""
    name: str = request.param
    found = all_cases[name.partition(" ")[0]]
    return found[-1] if " " in name else found[0]


@pytest.fixture
def server(case: Case, servers: dict[str, Server]) -> Server:
    """What runs the case."""
    return servers[case.name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a copy of the checkpoint goes."""
    return tmp_path / "run" / "checkpoint-3"
