"""Run inputs: each made from (seed, index), read within the bounds, judged, and counted."""

from __future__ import annotations

import hashlib
import re
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import torch

from sla_ckpt.errors import FormatError, SlaCkptError
from tools.fuzz import limits
from tools.fuzz.binary import check_error
from tools.fuzz.targets import TARGETS, Target

#: Of how many inputs one is read a second time under tracemalloc.
TRACED = 200
torch.set_num_threads(1)
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|b'[^']*'|\[[^\]]*\]|-?\d[\d,.]*|0x[0-9a-f]+")


@dataclass
class Finding:
    """An input on which something that must never happen did."""

    target: str
    index: int
    what: str
    where: str = ""

    @property
    def kind(self) -> str:
        return f"{self.target}: {_VARIABLE.sub('_', self.what)[:160]} {self.where}"


@dataclass
class Verdict:
    """What came of one input.

    Attributes:
        outcome: ``"clean"``, or the kind of our error.
        signature: The same, finer: the message without what varies.
        finding: What is wrong with it, if anything is.
        seconds: Of our reader, on the clock.
    """

    outcome: str
    signature: str
    finding: str | None
    where: str
    seconds: float


@dataclass
class Tally:
    """Counts and extremes over many inputs; two can be added up."""

    inputs: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    worst_seconds: float = 0.0
    worst_at: str = ""
    largest_input: int = 0
    traced: int = 0
    traced_peak: int = 0
    traced_share: float = 0.0
    signatures: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        for name, outcomes in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, Counter()) + outcomes
        self.findings += other.findings
        if other.worst_seconds > self.worst_seconds:
            self.worst_seconds, self.worst_at = other.worst_seconds, other.worst_at
        self.largest_input = max(self.largest_input, other.largest_input)
        self.traced += other.traced
        self.traced_peak = max(self.traced_peak, other.traced_peak)
        self.traced_share = max(self.traced_share, other.traced_share)
        for name, found in other.signatures.items():
            self.note_signature(name, *found)

    def note_signature(self, name: str, size: int, index: int) -> None:
        """Keep the smallest input of each signature."""
        if name not in self.signatures or size < self.signatures[name][0]:
            self.signatures[name] = (size, index)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def target_of(seed: int, index: int, names: tuple[str, ...]) -> tuple[Target, Random]:
    """Which target an index goes to, and the randomness of its input."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    rng = Random(int.from_bytes(digest, "little"))
    (name,) = rng.choices(names, [TARGETS[name].weight for name in names])
    return TARGETS[name], rng


def warm_up(names: tuple[str, ...]) -> None:
    """Have everything imported that a reader needs, which is not to count as an input's cost."""
    for name in names:
        rng = Random(0)
        for _ in range(40):
            _read_quietly(TARGETS[name], TARGETS[name].make(rng))


def make_input(seed: int, index: int, names: tuple[str, ...]) -> tuple[Target, bytes]:
    target, rng = target_of(seed, index, names)
    return target, target.make(rng)


def judge(target: Target, data: bytes) -> Verdict:
    """Read one input within the bounds and compare with the other readers.

    Any exception of the reader but our own is a finding, so all are caught here.
    """
    started = time.perf_counter()
    try:
        # A warning would be printed in the middle of a command's output.
        with limits.memory_limited(len(data)), warnings.catch_warnings():
            warnings.simplefilter("error")
            value = target.read(data)
    except SlaCkptError as error:
        kind = error.kind if isinstance(error, FormatError) else type(error).__name__
        signature = f"{type(error).__name__} {kind}: {_VARIABLE.sub('_', error.message)[:100]}"
        seconds = time.perf_counter() - started
        return Verdict(kind, signature, _unfit(error) or _slow(target, data, seconds), "", seconds)
    except Exception as error:
        return _crashed(error, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    try:
        difference = target.oracle(data, value) or _slow(target, data, seconds)
    except Exception as error:
        return _crashed(error, seconds)
    # A report is always made; what counts is whether it finds the checkpoint whole.
    outcome = "clean" if getattr(value, "ok", True) else "reported"
    return Verdict(outcome, _shape(value), difference, "", seconds)


def _slow(target: Target, data: bytes, seconds: float) -> str | None:
    """What to say of an input that took too long, also when it is read again."""
    if seconds < limits.SECONDS:
        return None
    again = limits.processor_seconds(lambda: _read_quietly(target, data))
    return f"{again:.1f} s of processor time" if again >= limits.SECONDS else None


def _unfit(error: SlaCkptError) -> str | None:
    try:
        check_error(error)
    except AssertionError as fault:
        return str(fault)
    return None


def _crashed(error: Exception, seconds: float) -> Verdict:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "sla_ckpt" in frame.filename] or frames
    where = f"{ours[-1].filename.rpartition('sla_ckpt/')[2]}:{ours[-1].lineno}"
    what = f"{type(error).__name__}: {str(error)[:200]}"
    return Verdict("crash", f"crash {where}", what, where, seconds)


def _shape(value: Any) -> str:
    """A coarse description of a clean result, so that different ones are told apart."""
    notes = [_VARIABLE.sub("_", note) for note in getattr(value, "notes", ())]
    codes = sorted({finding.code for finding in getattr(value, "findings", ())})
    return f"read {type(value).__name__} {notes} {codes}"


def run(
    seed: int, start: int, stop: int, names: tuple[str, ...], progress: Any, skip: set[int]
) -> Tally:
    """Run a range of indexes; ``progress.value`` always holds the current one."""
    tally = Tally()
    for index in range(start, stop):
        if index in skip:
            continue
        progress.value = index
        target, data = make_input(seed, index, names)
        run_one(tally, target, data, index)
    return tally


def run_one(tally: Tally, target: Target, data: bytes, index: int) -> Verdict:
    verdict = judge(target, data)
    tally.inputs[target.name] += 1
    tally.outcomes.setdefault(target.name, Counter())[verdict.outcome] += 1
    tally.largest_input = max(tally.largest_input, len(data))
    if verdict.seconds > tally.worst_seconds:
        tally.worst_seconds, tally.worst_at = verdict.seconds, f"{target.name} {index}"
    if verdict.finding:
        tally.findings.append(Finding(target.name, index, verdict.finding, verdict.where))
    tally.note_signature(f"{target.name} {verdict.signature}", len(data), index)
    if index % TRACED == 0:
        _trace(tally, target, data, index)
    return verdict


def _trace(tally: Tally, target: Target, data: bytes, index: int) -> None:
    peak = limits.traced_peak(lambda: _read_quietly(target, data))
    tally.traced += 1
    tally.traced_peak = max(tally.traced_peak, peak)
    share = peak / limits.memory_bound(len(data))
    tally.traced_share = max(tally.traced_share, share)
    if share > 1:
        tally.findings.append(Finding(target.name, index, f"{peak:,} bytes for {len(data):,}"))


def _read_quietly(target: Target, data: bytes) -> None:
    try:
        target.read(data)
    except Exception:
        # Judged already; only its memory is of interest here.
        return
