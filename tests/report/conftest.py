"""The command as a user runs it, in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sla_ckpt.cli.main import run
from tests.hub.conftest import cli, hub

__all__ = ["cli", "hub", "verify"]

Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """``verify("DIR", "--format", "html")`` -> exit code, stdout, stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run(["verify", *map(str, args)])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call
