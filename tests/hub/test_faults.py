"""push and pull while the Hub and the network misbehave, over LFS and over xet.

Whatever happens: no revision of the repository holds weights without their state, or with the
state of other weights; and nothing is sent twice that need not be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sla_ckpt.formats.simpletuner import encode_state
from tests import factories
from tests.hub.running import Runner
from tools.loopback_hub import Fault, LoopbackHub

REPO = "alice/model"
UPLOAD = "^(PUT /_lfs/[0-9a-f]{64}$|POST /_cas/v1/xorbs/)"
COMMIT = "^POST /api/models/alice/model/commit/"
SHORT = {"SLA_CKPT_HTTP_TIMEOUT": "1.5"}


@dataclass
class Local:
    """A checkpoint in two random shards, and the versions of it that were made."""

    root: Path
    versions: int = 0

    def renew(self) -> None:
        """New weights and a new state."""
        self.versions += 1
        factories.write_full_checkpoint(self.root, factories.state(seed=self.versions), shards=2)
        factories.write_full_shards(self.root / "transformer", os.urandom)

    def renew_state(self) -> None:
        self.versions += 1
        state = encode_state(factories.state(seed=self.versions))
        (self.root / "sla_attention.pt").write_bytes(state)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    made = Local(tmp_path / "checkpoint-500")
    made.renew()
    return made


def revisions(hub: LoopbackHub) -> set[tuple[tuple[str, ...], str | None]]:
    """For every revision that ever was: hashes of its weights, and of its state."""
    found = set()
    for commit in hub.all_commits(REPO):
        weights = tuple(
            entry.sha256 or entry.oid
            for path, entry in sorted(commit.files.items())
            if path.startswith("transformer/") and path.endswith(".safetensors")
        )
        state = commit.files.get("sla_attention.pt")
        if weights or state:
            found.add((weights, state and state.sha256))
    return found


def assert_whole(hub: LoopbackHub, versions: int) -> None:
    """Every revision with weights has two shards and a state, and there are `versions` of them."""
    found = revisions(hub)
    assert all(len(weights) == 2 and state for weights, state in found)
    assert len(found) == versions


def uploaded(hub: LoopbackHub) -> int:
    """Bytes that arrived in uploads of file content."""
    return sum(record.bytes_received for record in hub.matching(UPLOAD))


def titles(hub: LoopbackHub) -> list[str]:
    return [commit.title for commit in hub.commits(REPO)]


def wait_for(fault: Fault, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not fault.hits:
        assert time.monotonic() < end, "the fault was never met"
        time.sleep(0.01)


def ok(done: object) -> None:
    code, text = done.returncode, f"{done.stdout}\n{done.stderr}"  # type: ignore[attr-defined]
    assert code == 0, text
    assert "Traceback" not in text


def refused(done: object, *words: str) -> None:
    """Exit code 2 and one error line with its hint; no traceback."""
    assert done.returncode == 2, done  # type: ignore[attr-defined]
    stderr: str = done.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr, stderr


def test_a_push_lands_in_one_commit_and_a_second_one_sends_nothing(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)
    assert uploaded(any_hub) < 2.1 * factories.SHARD_BYTES + 200_000
    any_hub.clear_requests()
    again = cli("push", REPO, local.root, hub=any_hub)
    ok(again)
    assert "nothing changed" in again.stdout
    assert len(titles(any_hub)) == 2
    assert uploaded(any_hub) == 0
    any_hub.clear_requests()
    local.renew_state()
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert uploaded(any_hub) < 300_000, "only the small files are sent"
    assert len(titles(any_hub)) == 3


def test_kill_9_during_the_upload_leaves_nothing_and_a_rerun_finishes(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    ok(cli("push", REPO, local.root, hub=any_hub))
    local.renew()
    any_hub.clear_requests()
    stalled = any_hub.faults.add(UPLOAD, "stall", after=200_000, times=None)
    process = cli.start("push", REPO, local.root, hub=any_hub)
    wait_for(stalled)
    process.kill()
    process.communicate()
    any_hub.faults.clear()
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert_whole(any_hub, 2)


def test_after_kill_9_what_had_arrived_is_not_sent_again(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    any_hub.add_repo(REPO)
    stalled = any_hub.faults.add(COMMIT, "stall", times=None)
    process = cli.start("push", REPO, local.root, hub=any_hub)
    wait_for(stalled)
    process.kill()
    process.communicate()
    any_hub.faults.clear()
    assert len(titles(any_hub)) == 1
    any_hub.clear_requests()
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert uploaded(any_hub) == 0, "both shards were stored by the first run"
    assert_whole(any_hub, 1)


def test_kill_9_after_the_commit_landed_needs_no_second_one(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    stalled = any_hub.faults.add(COMMIT, "stall", phase="response", times=None)
    process = cli.start("push", REPO, local.root, hub=any_hub)
    wait_for(stalled)
    end = time.monotonic() + 10
    while len(titles(any_hub)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    any_hub.faults.clear()
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)


@pytest.mark.parametrize(
    "lose",
    [
        lambda hub: hub.faults.add(COMMIT, "lose"),
        lambda hub: hub.faults.add(COMMIT, status=504, phase="response"),
    ],
    ids=["connection", "504"],
)
def test_a_lost_commit_answer_is_noticed(
    any_hub: LoopbackHub, cli: Runner, local: Local, lose: Callable[[LoopbackHub], Fault]
) -> None:
    fault = lose(any_hub)
    done = cli("push", REPO, local.root, hub=any_hub)
    ok(done)
    assert fault.hits == 1
    assert len(titles(any_hub)) == 2, "one commit, not two"
    assert any_hub.commits(REPO)[0].id[:12] in done.stdout
    assert_whole(any_hub, 1)


def test_a_lost_answer_to_a_pull_request_opens_no_second_one(
    hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    hub.add_repo(REPO)
    hub.faults.add(COMMIT, "lose")
    done = cli("push", REPO, local.root, "--create-pr", hub=hub)
    ok(done)
    assert [ref for ref in hub.refs(REPO) if ref.startswith("refs/pr/")] == ["refs/pr/1"]
    assert "discussions/1" in done.stdout
    assert len(titles(hub)) == 1
    assert_whole(hub, 1)


def test_a_commit_cut_before_it_landed_is_sent_again(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    any_hub.faults.add(COMMIT, "drop")
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)
    assert uploaded(any_hub) < 2.1 * factories.SHARD_BYTES + 200_000


def test_a_push_that_was_overtaken_plans_anew(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    any_hub.add_repo(REPO)
    held = any_hub.faults.add(COMMIT, "stall", seconds=1)
    process = cli.start("push", REPO, local.root, hub=any_hub)
    wait_for(held)
    any_hub.add_files(REPO, {"notes.txt": "faster", "README.md": "# Mine\n\nMy own words.\n"})
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stdout + stderr
    files = any_hub.files(REPO)
    assert {"notes.txt", "sla_attention.pt"} <= set(files)
    assert b"My own words." in any_hub.read(REPO, "README.md")
    assert len(titles(any_hub)) == 3
    assert_whole(any_hub, 1)
    assert uploaded(any_hub) < 2.1 * factories.SHARD_BYTES + 200_000, (
        "large files are not sent again"
    )


def test_an_overtaken_push_never_mixes_two_states(
    hub: LoopbackHub, cli: Runner, local: Local, tmp_path: Path
) -> None:
    """Two people push different checkpoints at once: each revision is one or the other."""
    other = Local(tmp_path / "other", versions=7)
    other.renew()
    ok(cli("push", REPO, local.root, hub=hub))
    local.renew()
    held = hub.faults.add(COMMIT, "stall", seconds=4)
    process = cli.start("push", REPO, local.root, hub=hub)
    wait_for(held)
    ok(cli("push", REPO, other.root, hub=hub))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stdout + stderr
    assert_whole(hub, 3)


@pytest.mark.parametrize(
    "request_of",
    ["GET /api/whoami", "POST /api/repos/create", "/preupload/", COMMIT, "GET /api/models/"],
)
def test_a_rate_limit_is_waited_for(
    hub: LoopbackHub, cli: Runner, local: Local, request_of: str
) -> None:
    fault = hub.faults.add(request_of, status=429, retry_after=1)
    ok(cli("push", REPO, local.root, hub=hub))
    assert fault.hits == 1
    limited, following, *_ = hub.matching(request_of)
    assert limited.status == 429
    assert following.started - limited.started >= 0.95
    assert len(titles(hub)) == 2
    assert_whole(hub, 1)


def test_a_rate_limit_that_stays_says_what_to_do(
    hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    hub.faults.add(COMMIT, status=429, times=None)
    refused(cli("push", REPO, local.root, hub=hub), "rate limit", "run the command again")
    assert len(titles(hub)) == 1


def test_an_upload_cut_midway_goes_on(any_hub: LoopbackHub, cli: Runner, local: Local) -> None:
    fault = any_hub.faults.add(UPLOAD, "drop", after=300_000)
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert fault.hits == 1
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)


def test_an_upload_that_keeps_failing_leaves_no_commit(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    any_hub.faults.add(UPLOAD, status=400, message="Odd", times=None)
    refused(cli("push", REPO, local.root, hub=any_hub), REPO)
    assert len(titles(any_hub)) == 1
    assert_whole(any_hub, 0)


@pytest.mark.parametrize("request_of", ["GET /api/whoami", "GET /api/models/", COMMIT])
def test_a_stalled_request_times_out_and_is_tried_again(
    hub: LoopbackHub, cli: Runner, local: Local, request_of: str
) -> None:
    fault = hub.faults.add(request_of, "stall", phase="request")
    ok(cli("push", REPO, local.root, hub=hub, env=SHORT, timeout=25))
    assert fault.hits == 1
    assert len(titles(hub)) == 2
    assert_whole(hub, 1)


def test_a_stalled_upload_times_out_and_is_tried_again(
    hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    fault = hub.faults.add(UPLOAD, "stall", after=100_000)
    ok(cli("push", REPO, local.root, hub=hub, env=SHORT, timeout=25))
    assert fault.hits == 1
    assert_whole(hub, 1)


def test_a_hub_that_never_answers_does_not_hang_the_command(
    hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    hub.faults.add("whoami", "stall", times=None)
    env = {"SLA_CKPT_HTTP_TIMEOUT": "0.3"}
    refused(cli("push", REPO, local.root, hub=hub, env=env, timeout=20), REPO)
    assert not hub.has_repo(REPO)


def test_pull_goes_on_after_a_cut_and_a_flipped_byte(
    any_hub: LoopbackHub, cli: Runner, local: Local, tmp_path: Path
) -> None:
    ok(cli("push", REPO, local.root, hub=any_hub))
    content = "GET /(_cdn/|_cas/v1/xorbs/)"
    any_hub.faults.add(content, "drop", phase="response", after=300_000)
    ok(cli("pull", REPO, tmp_path / "down", hub=any_hub, token="read"))
    for path in ("sla_attention.pt", "transformer/config.json"):
        assert (tmp_path / "down" / path).read_bytes() == (local.root / path).read_bytes()
    any_hub.faults.add(content, "corrupt", after=50_000)
    done = cli("pull", REPO, tmp_path / "again", hub=any_hub, token="read")
    ok(done)
    for path in (local.root / "transformer").iterdir():
        assert (tmp_path / "again/transformer" / path.name).read_bytes() == path.read_bytes()


def test_pull_refuses_bytes_that_stay_wrong(
    hub: LoopbackHub, cli: Runner, local: Local, tmp_path: Path
) -> None:
    ok(cli("push", REPO, local.root, hub=hub))
    hub.faults.add("GET /_cdn/", "corrupt", after=50_000, times=None)
    refused(cli("pull", REPO, tmp_path / "down", hub=hub), "sha256")
    assert not (tmp_path / "down/transformer").exists()
    assert not (tmp_path / "down/sla_attention.pt").exists()


def test_pull_killed_midway_leaves_nothing_in_place_and_resumes(
    hub: LoopbackHub, cli: Runner, local: Local, tmp_path: Path
) -> None:
    ok(cli("push", REPO, local.root, hub=hub))
    stalled = hub.faults.add("GET /_cdn/.*00002-of", "stall", phase="response", after=500_000)
    hub.clear_requests()
    process = cli.start("pull", REPO, tmp_path / "down", hub=hub)
    wait_for(stalled)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        first = [r for r in hub.matching("GET /_cdn/.*00001-of") if r.seconds and r.status == 200]
        if first:
            break
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert not (tmp_path / "down/sla_attention.pt").exists()
    assert not (tmp_path / "down/transformer").exists()
    hub.clear_requests()
    ok(cli("pull", REPO, tmp_path / "down", hub=hub))
    ok(cli("verify", tmp_path / "down", hub=hub))
    assert not hub.matching("GET /_cdn/.*00001-of"), "the complete file is not fetched again"


def test_remote_verify_of_24_gb_costs_less_than_a_megabyte(hub: LoopbackHub, cli: Runner) -> None:
    names = {
        index: f"transformer/diffusion_pytorch_model-{index:05d}-of-00010.safetensors"
        for index in range(1, 11)
    }
    weight_map: dict[str, str] = {}
    files: dict[str, bytes | str] = {}
    hub.add_repo(REPO, private=True)
    elements = 1_200_000_000
    for index, name in names.items():
        header = (
            b'{"__metadata__":{"format":"pt"},'
            + b'"block%d.weight":{"dtype":"BF16","shape":[%d],"data_offsets":[0,%d]}}'
            % (index, elements, 2 * elements)
        )
        header += b" " * (-len(header) % 8)
        head = len(header).to_bytes(8, "little") + header
        hub.add_virtual_file(REPO, name, len(head) + 2 * elements, head)
        weight_map[f"block{index}.weight"] = name.rpartition("/")[2]
    files["transformer/config.json"] = factories.json.dumps(factories.FLUX_CONFIG)
    files["transformer/diffusion_pytorch_model.safetensors.index.json"] = factories.json.dumps(
        {"metadata": {"total_size": 24_000_000_000}, "weight_map": weight_map}
    )
    files["sla_attention.pt"] = encode_state(factories.state())
    files["README.md"] = "---\ntags: [sla, sparse-linear-attention]\n---\n# A model\n"
    hub.add_files(REPO, files)
    hub.clear_requests()
    done = cli("verify", REPO, hub=hub, token="read")
    ok(done)
    assert hub.bytes_sent + hub.bytes_received < 1_000_000
    hub.add_files(REPO, {"sla_attention.pt": None})
    missing = cli("verify", REPO, hub=hub, token="read")
    assert missing.returncode == 1
    assert "SLA401" in missing.stdout


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "no Hub token"), ("read", "can only read"), ("hf_" + "x" * 34, "token")],
    ids=["none", "read-only", "wrong"],
)
def test_a_token_that_cannot_push_is_refused_before_any_upload(
    hub: LoopbackHub, cli: Runner, local: Local, token: str | None, words: str
) -> None:
    refused(cli("push", REPO, local.root, hub=hub, token=token), words)
    assert uploaded(hub) == 0
    assert not hub.has_repo(REPO)


def test_a_state_that_the_repo_ignores_is_not_dropped_in_silence(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    any_hub.add_repo(REPO, files={".gitignore": "*.pt\n"})
    refused(cli("push", REPO, local.root, hub=any_hub), "sla_attention.pt", "ignore")
    assert_whole(any_hub, 0)


def test_no_network_is_one_line(hub: LoopbackHub, cli: Runner, local: Local) -> None:
    hub.add_repo(REPO)
    hub.stop()
    for command in (["push", REPO, local.root], ["pull", REPO, "down"]):
        refused(cli(*command, hub=hub), "cannot be reached")
    verified = cli("verify", REPO, hub=hub)
    assert verified.returncode == 2
    assert "cannot be reached" in verified.stdout  # in its report, one target of several


def test_remote_verify_survives_a_rate_limit_and_a_cut(
    hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    ok(cli("push", REPO, local.root, hub=hub))
    hub.faults.add("/resolve/", status=429, retry_after=0, times=3)
    hub.faults.add("/resolve/.*config.json", "drop", times=2)
    hub.faults.add("GET /_cdn/", "drop", phase="response", after=100, times=2)
    ok(cli("verify", REPO, hub=hub, token="read"))


def test_no_progress_bars_in_a_pipe(
    any_hub: LoopbackHub, cli: Runner, local: Local, tmp_path: Path
) -> None:
    pushed = cli("push", REPO, local.root, hub=any_hub)
    pulled = cli("pull", REPO, tmp_path / "down", hub=any_hub)
    for done in (pushed, pulled):
        ok(done)
        assert "\x1b" not in done.stdout + done.stderr
        assert "%|" not in done.stderr


@pytest.mark.parametrize("quota", ["file", "quota"])
def test_limits_of_the_hub_are_one_line(
    hub: LoopbackHub, cli: Runner, local: Local, quota: str
) -> None:
    if quota == "file":
        hub.settings.max_file_size = 1000
        words = "limit"
    else:
        hub.settings.quota = 1000
        words = "quota"
    refused(cli("push", REPO, local.root, hub=hub), words)
    assert uploaded(hub) == 0
    assert_whole(hub, 0)


def test_a_file_that_changes_during_the_push_is_not_committed(
    any_hub: LoopbackHub, cli: Runner, local: Local
) -> None:
    """The trainer saves the next step into the folder while the push runs."""
    ok(cli("push", REPO, local.root, hub=any_hub))
    local.renew()
    held = any_hub.faults.add("/preupload/", "stall", seconds=1)
    process = cli.start("push", REPO, local.root, hub=any_hub)
    wait_for(held)
    local.renew()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stdout + stderr
    assert "Traceback" not in stderr
    assert len(titles(any_hub)) == 2
    assert_whole(any_hub, 1)
    ok(cli("push", REPO, local.root, hub=any_hub))
    assert_whole(any_hub, 2)
