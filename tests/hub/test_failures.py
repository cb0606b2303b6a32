"""Everything that goes wrong on the way to the Hub ends in one line with the next step."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import HubError, WriteError
from sla_ckpt.hub.client import connect
from sla_ckpt.hub.failures import is_transient, redact
from tests.factories import write_full_checkpoint
from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_full_checkpoint(tmp_path / "checkpoint-500")


def assert_one_line(done: Done, *says: str, next_step: str = "") -> None:
    """Exit 2; one error line, one line with the next step, no traceback, nothing on stdout."""
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "  next:"))]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 2 and lines[0].startswith("error:"), done.stderr
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
    for text in says:
        assert text in lines[0], done.stderr
    assert next_step in lines[1], done.stderr
    assert not done.stdout


def test_no_token(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    assert_one_line(
        cli("push", REPO, checkpoint, hub=hub, token=None),
        "there is no Hub token",
        next_step="hf auth login",
    )


def test_an_empty_token_is_none_and_a_newline_is_stripped(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    done = cli("push", REPO, checkpoint, hub=hub, token="")
    assert_one_line(done, "there is no Hub token")
    done = cli("push", REPO, checkpoint, hub=hub, token=hub.token("write") + "\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["push", "pull", "verify"])
def test_a_wrong_token(hub: LoopbackHub, cli: Runner, checkpoint: Path, command: str) -> None:
    hub.add_repo(REPO, private=True)
    token = hub.token("write", user="mallory")
    hub.revoke(token)
    target = (REPO, checkpoint) if command == "push" else (REPO,)
    done = cli(command, *target, hub=hub, token=token)
    if command == "verify":
        assert done.returncode == 2 and "does not accept this token" in done.stdout + done.stderr
    else:
        assert_one_line(done, "does not accept this token", next_step="hf auth login")
    assert token not in done.stdout + done.stderr


def test_a_read_only_token(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    done = cli("push", REPO, checkpoint, hub=hub, token="read")
    assert_one_line(done, "can only read", next_step="write access")
    assert not hub.has_repo(REPO)


def test_a_fine_grained_token_without_the_right(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    token = hub.token("fineGrained", scopes={"alice/other": ("repo.write",)})
    done = cli("push", REPO, checkpoint, hub=hub, token=token)
    assert_one_line(done, REPO, "right", next_step="write access")
    assert not hub.matching("PUT |/commit/")


def test_a_fine_grained_token_that_may_write_but_not_create(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    token = hub.token("fineGrained", scopes={REPO: ("repo.write", "repo.content.read")})
    done = cli("push", REPO, checkpoint, hub=hub, token=token)
    assert done.returncode == 0, done.stderr


def test_somebody_elses_repository(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    hub.add_user("bob")
    hub.add_repo("bob/model")
    done = cli("push", "bob/model", checkpoint, hub=hub)
    assert_one_line(done, "bob/model", next_step="write access")
    done = cli("push", "bob/new", checkpoint, hub=hub)
    assert_one_line(done, "bob/new")


@pytest.mark.parametrize("token", [None, "read"])
@pytest.mark.parametrize("private", [True, False], ids=["private", "missing"])
def test_private_or_missing_says_both_and_whether_a_token_was_sent(
    hub: LoopbackHub, cli: Runner, token: str | None, private: bool
) -> None:
    hub.add_user("bob")
    if private:
        hub.add_repo("bob/model", private=True, files={"config.json": b"{}"})
    done = cli("pull", "bob/model", hub=hub, token=token)
    said = "this token may not see it" if token else "no token was sent"
    assert_one_line(done, "bob/model", "does not exist", said)


def test_a_gated_repository(hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    hub.add_user("bob")
    hub.add_repo("bob/model", gated=True, files={"config.json": b"{}", "a.txt": b"x"})
    done = cli("pull", "bob/model", hub=hub, token="read")
    assert_one_line(done, "is gated", next_step="ask for access")
    hub.allow("bob/model", "alice")
    assert "gated" not in cli("pull", "bob/model", hub=hub, token="read").stderr


@pytest.mark.parametrize("revision", ["nope", "0" * 40])
def test_a_revision_that_is_not_there(hub: LoopbackHub, cli: Runner, revision: str) -> None:
    hub.add_repo(REPO, files={"config.json": b"{}"})
    assert_one_line(cli("pull", f"{REPO}@{revision}", hub=hub), "no such revision")


def test_a_folder_that_is_not_there(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo(REPO, files={"config.json": b"{}"})
    assert_one_line(cli("pull", f"{REPO}/nope", hub=hub), "no folder nope")


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("command", ["push", "pull"])
def test_no_network(hub: LoopbackHub, cli: Runner, checkpoint: Path, command: str) -> None:
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{_closed_port()}"}
    target = (REPO, checkpoint) if command == "push" else (REPO,)
    done = cli(command, *target, hub=hub, env=env)
    assert_one_line(done, "cannot be reached", next_step="network")


def test_offline_mode(hub: LoopbackHub, cli: Runner) -> None:
    done = cli("pull", REPO, hub=hub, env={"HF_HUB_OFFLINE": "1"})
    assert_one_line(done, "offline", next_step="HF_HUB_OFFLINE")


STALLS: Mapping[str, str] = {
    "whoami": "GET /api/whoami",
    "info": "GET /api/models/",
    "batch": "/info/lfs/objects/batch",
    "put": "PUT ",
    "commit": "POST .*/commit/",
}


@pytest.mark.parametrize("name", STALLS)
def test_a_server_that_never_answers_does_not_hang_the_command(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, name: str
) -> None:
    hub.add_repo(REPO)
    hub.faults.add(STALLS[name], "stall", seconds=60, times=1)
    started = time.monotonic()
    done = cli("push", REPO, checkpoint, hub=hub, env={"SLA_CKPT_HTTP_TIMEOUT": "0.7"})
    assert done.returncode == 0, done.stderr  # it tries again after the timeout
    assert time.monotonic() - started < 30


def test_a_server_that_never_answers_at_all(hub: LoopbackHub, cli: Runner) -> None:
    hub.faults.add("GET /api/models/", "stall", seconds=60, times=None)
    done = cli("pull", REPO, hub=hub, env={"SLA_CKPT_HTTP_TIMEOUT": "0.3"})
    assert_one_line(done, "did not answer in time", next_step="network")


def test_a_timeout_that_is_no_number(hub: LoopbackHub, cli: Runner) -> None:
    done = cli("pull", REPO, hub=hub, env={"SLA_CKPT_HTTP_TIMEOUT": "soon"})
    assert_one_line(done, "SLA_CKPT_HTTP_TIMEOUT")


def test_the_rate_limit_says_when_to_come_back(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "status", status=429, retry_after=1800, times=None)
    started = time.monotonic()
    done = cli("push", REPO, checkpoint, hub=hub)
    assert_one_line(done, "rate limit", next_step="30 minutes")
    assert time.monotonic() - started < 20


def test_a_short_retry_after_is_obeyed(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "status", status=429, retry_after=1)
    assert cli("push", REPO, checkpoint, hub=hub).returncode == 0
    first, second = hub.matching("POST .*/commit/")
    assert second.started - first.started >= 1


def test_the_quota(any_hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    any_hub.settings.quota = 1000
    done = cli("push", REPO, checkpoint, hub=any_hub)
    assert_one_line(done, "quota", next_step="free")


def test_a_file_over_the_hubs_limit(any_hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    any_hub.settings.max_file_size = 1000
    done = cli("push", REPO, checkpoint, hub=any_hub)
    assert_one_line(done, "limit", next_step="smaller shards")


@pytest.mark.parametrize("status", [500])
def test_a_hub_that_is_down(hub: LoopbackHub, cli: Runner, checkpoint: Path, status: int) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "status", status=status, times=None)
    assert_one_line(cli("push", REPO, checkpoint, hub=hub), f"HTTP {status}", next_step="later")


FAULTS: Mapping[str, dict[str, Any]] = {
    "info drops": {"match": "GET /api/models/", "action": "drop", "phase": "response"},
    "batch 500": {"match": "objects/batch", "action": "status", "status": 500},
    "put 500": {"match": "PUT ", "action": "status", "status": 500},
    "put drops": {"match": "PUT ", "action": "drop", "after": 100},
    "verify 500": {"match": "/verify", "action": "status", "status": 500},
    "commit drops": {"match": "POST .*/commit/", "action": "drop", "after": 10},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_overcome(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, name: str
) -> None:
    hub.add_repo(REPO)
    hub.faults.add(**FAULTS[name])
    done = cli("push", REPO, checkpoint, hub=hub)
    assert done.returncode == 0, done.stderr
    assert len(hub.all_commits(REPO)) == 2


@pytest.mark.parametrize("match", ["xet-write-token", "POST .*/xorbs/", "POST .*/shards"])
def test_a_fault_of_xet_that_stays_is_one_line(
    xet_hub: LoopbackHub, cli: Runner, checkpoint: Path, match: str
) -> None:
    xet_hub.add_repo(REPO)
    xet_hub.faults.add(match, "status", status=403, times=None)
    assert_one_line(cli("push", REPO, checkpoint, hub=xet_hub), REPO)
    assert len(xet_hub.all_commits(REPO)) == 1


def test_the_token_is_in_no_traceback_and_no_representation(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "status", status=400, times=None)
    env = {"SLA_CKPT_TRACEBACK": "1", "HF_DEBUG": "0"}
    cli("push", REPO, checkpoint, hub=hub, env=env)  # the runner searches the output
    token = hub.token("write")
    assert token not in repr(connect(token))


def test_text_from_the_server_is_redacted() -> None:
    assert "hf_abcdefgh" not in redact("Authorization: Bearer hf_abcdefgh12345 hf_abcdefgh")


def test_an_empty_explicit_token_is_refused() -> None:
    from sla_ckpt.errors import UsageError

    with pytest.raises(UsageError, match="--token is empty"):
        connect("  ")
    assert issubclass(HubError, Exception)


def test_what_was_repeated_for_long_is_not_repeated_again() -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        raise ConnectionError("cut")

    client = connect("hf_x")
    with pytest.raises(ConnectionError):
        client.retry(fail, patience=0.01)
    assert calls == 1


def test_a_full_disk_is_not_taken_for_a_broken_connection() -> None:
    """httpx has a WriteError too, and that one may pass."""
    error = WriteError("cannot write")
    error.__cause__ = OSError(28, "No space left on device")
    assert not is_transient(error)
    assert is_transient(ConnectionResetError("cut"))
