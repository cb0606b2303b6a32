"""A short fuzz of every reader, and proof that the fuzzer sees what it is there to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sla_ckpt.errors import FormatError
from tools.fuzz import campaign, limits
from tools.fuzz.campaign import Campaign, run_campaign
from tools.fuzz.running import Tally, judge, make_input, run_one, warm_up
from tools.fuzz.targets import TARGETS, Target

INPUTS = 3000
ROOT = Path(__file__).parents[2]


def test_every_reader_survives_a_short_campaign(tmp_path: Path) -> None:
    """Our own errors or exactly what torch and safetensors read, in time and memory."""
    output, keep, verdicts = tmp_path / "fuzz.json", tmp_path / "keep", tmp_path / "verdicts"
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "--inputs", str(INPUTS), "--seed", "7",
         "--output", output, "--keep", keep, "--signatures", verdicts],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(output.read_text())
    assert figures == json.loads(done.stdout)
    assert figures["complete"]
    assert figures["inputs"] == INPUTS
    assert figures["targets"].keys() == TARGETS.keys()
    assert figures["findings"] == []
    assert 0 < figures["memory_traced_share_of_bound"] <= 1
    assert not list(keep.iterdir())
    kinds = {name: set(found["outcomes"]) for name, found in figures["targets"].items()}
    # Mutations that are all refused at the door, or all harmless, would test nothing.
    assert {name for name, outcomes in kinds.items() if outcomes == {"clean"}} == set()
    assert {name for name, outcomes in kinds.items() if "clean" not in outcomes} == set()
    assert {"unsafe-pickle", "pickle", "zip", "ambiguous-zip", "crc", "bomb"} <= kinds["state"]
    assert len(list(verdicts.glob("*.txt"))) == figures["different_verdicts"] > 300


def test_an_input_is_a_function_of_seed_and_index() -> None:
    names = tuple(sorted(TARGETS))
    made = [make_input(3, index, names)[1] for index in range(60)]
    assert made == [make_input(3, index, names)[1] for index in range(60)]
    assert made != [make_input(4, index, names)[1] for index in range(60)]
    assert len(set(made)) > 50


def _target(read: Callable[[bytes], Any], oracle: Callable[[bytes, Any], str | None]) -> Target:
    return Target("planted", 1, Random.randbytes, read, oracle)


def _endless(_data: bytes) -> bytes:
    deadline = time.thread_time() + 0.15
    while time.thread_time() < deadline:
        sum(range(1000))
    return b""


def _greedy(_data: bytes) -> int:
    return len(bytearray(200 << 20))


def _raises(error: Exception) -> Callable[[bytes], Any]:
    def read(_data: bytes) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "oracle", "found"),
    [
        (_raises(KeyError("k")), lambda _d, _v: None, "KeyError"),
        (_raises(RecursionError("deep")), lambda _d, _v: None, "RecursionError"),
        (_raises(FormatError("a line of " + "\x01" * 3000)), lambda _d, _v: None, None),
        (len, lambda _d, _v: "torch reads 7", "torch reads 7"),
        pytest.param(
            _greedy,
            lambda _d, _v: None,
            "MemoryError",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's"),
        ),
        (_endless, lambda _d, _v: None, "processor time"),
        (len, lambda _d, _v: None, None),
        (_raises(FormatError("refused")), lambda _d, _v: "never asked", None),
    ],
)
def test_what_counts_as_a_finding(
    read: Callable[[bytes], Any],
    oracle: Callable[[bytes, Any], str | None],
    found: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    tally = Tally()
    run_one(tally, _target(read, oracle), b"1234", 1)
    whats = [finding.what for finding in tally.findings]
    if found is None:
        assert whats == []
    else:
        (what,) = whats
        assert found in what


def test_a_reader_that_reads_otherwise_than_torch_is_found() -> None:
    """The comparison is with the very values, not only with whether torch reads it."""
    warm_up(("state",))
    data = (ROOT / "tests/data/states/own_test_no_tie_1x1/sla_attention.pt").read_bytes()
    state = TARGETS["state"]
    payload: Any = state.read(data)
    assert state.oracle(data, payload) is None
    payload.value["version"] = True
    assert "version" in (state.oracle(data, payload) or "")
    assert "torch refuses" in (state.oracle(data[:-30], payload) or "")
    assert judge(state, data).outcome == "clean"


@pytest.mark.parametrize(("stop", "said"), [(signal.SIGKILL, "dies"), (signal.SIGSTOP, "hangs")])
def test_an_input_that_ends_its_worker_is_one_finding_and_the_rest_is_run(
    stop: signal.Signals, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "_HANG_SECONDS", 2.0)
    started: list[Any] = []
    start = campaign._start

    def remembered(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    def stop_at_work() -> None:
        while not started or started[0].progress.value < 100:
            time.sleep(0.001)
        os.kill(started[0].process.pid, stop)

    monkeypatch.setattr(campaign, "_start", remembered)
    stopper = threading.Thread(target=stop_at_work)
    stopper.start()
    figures = run_campaign(Campaign(5, 0, 1000, 1, ("index", "manifest")))
    stopper.join()
    assert len(started) == 2
    assert figures["inputs"] == 1000
    assert [finding["count"] for finding in figures["findings"]] == [1]
    assert said in figures["findings"][0]["kind"]
    assert 100 <= figures["findings"][0]["index"] < 1000
