"""What the page is about: the targets, each with its report and its state's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sla_ckpt.checkpoint.resolve import (
    NamedCheckpoint,
    list_checkpoints,
    looks_like_checkpoint,
    parse_checkpoint_name,
)
from sla_ckpt.checks.context import Context, VerifyOptions
from sla_ckpt.checks.report import Report
from sla_ckpt.checks.summary import StateSummary, summarise
from sla_ckpt.checks.verify import for_each, open_target, unreadable, verify_context
from sla_ckpt.errors import FormatError, SlaCkptError, TargetNotFoundError, UsageError
from sla_ckpt.paths import expand
from sla_ckpt.report.links import source_url

Verdict = Literal["good", "warnings", "errors", "unexamined"]
StateStatus = Literal["readable", "unreadable", "missing", "unknown"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One checkpoint, or whatever else the target is.

    Attributes:
        name: How the page calls it: the folder's name within a run, else the target.
        report: What verify says.
        state: The state's numbers, None without a readable state.
        status: Whether the state is there and readable.
        named: Step and kind, of a local ``checkpoint-N`` folder.
        judged: Whether it is a target of the command, and not only shown beside one.
        url: Its page on the Hub, of a repository.
    """

    name: str
    report: Report
    state: StateSummary | None
    status: StateStatus
    named: NamedCheckpoint | None
    judged: bool
    url: str | None

    @property
    def step(self) -> int | None:
        return self.named.step if self.named else None

    @property
    def unfinished(self) -> bool:
        """The trainer has not finished writing it (``checkpoint-N-tmp``)."""
        return self.named is not None and self.named.temporary

    @property
    def verdict(self) -> Verdict:
        if self.report.problem is not None:
            return "unexamined"
        if self.report.errors:
            return "errors"
        return "warnings" if self.report.warnings else "good"


@dataclass(frozen=True, eq=False)
class Run:
    """What is shown together: the checkpoints of one training run, or one other target.

    Attributes:
        title: The output directory, or the target.
        snapshots: Oldest checkpoint first.
    """

    title: str
    snapshots: tuple[Snapshot, ...]

    @property
    def judged(self) -> tuple[Snapshot, ...]:
        return tuple(item for item in self.snapshots if item.judged)

    @property
    def latest(self) -> Snapshot:
        """The checkpoint whose pairs and settings are shown in full."""
        finished = [item for item in self.judged or self.snapshots if not item.unfinished]
        return (finished or list(self.snapshots))[-1]


@dataclass(frozen=True)
class _Job:
    target: str
    run: str
    title: str
    named: NamedCheckpoint | None
    judged: bool


def collect(
    targets: Iterable[str], options: VerifyOptions | None = None, *, jobs: int = 1
) -> tuple[Run, ...]:
    """Verify targets and gather what the page shows.

    An output directory brings all its checkpoints along, although only the newest is judged;
    checkpoints of the same output directory are shown as one run.

    Args:
        targets: As for :func:`sla_ckpt.checks.verify.verify_many`.
        options: For all of them.
        jobs: How many at a time.

    Raises:
        UsageError: An option makes no sense.
        TargetNotFoundError: An output directory cannot be listed.
    """
    options = options or VerifyOptions()
    planned: dict[str, _Job] = {}
    for target in targets:
        for job in _plan(target):
            key = str(job.named.path.resolve()) if job.named else job.target
            known = planned.get(key)
            if known is None:
                planned[key] = job
            elif job.judged and not known.judged:
                planned[key] = replace(known, judged=True)
    snapshots = for_each(planned.values(), lambda job: _examine(job, options), options, jobs=jobs)
    runs: dict[str, tuple[str, list[Snapshot]]] = {}
    for job, snapshot in zip(planned.values(), snapshots, strict=True):
        runs.setdefault(job.run, (job.title, []))[1].append(snapshot)
    return tuple(Run(title, tuple(_in_order(items))) for title, items in runs.values())


def judged_reports(runs: Iterable[Run]) -> tuple[Report, ...]:
    """The reports of the command's targets: those that decide its exit code."""
    return tuple(item.report for run in runs for item in run.judged)


def _in_order(snapshots: list[Snapshot]) -> list[Snapshot]:
    return sorted(snapshots, key=lambda item: item.step if item.step is not None else -1)


def _plan(target: str) -> Iterator[_Job]:
    """The checkpoints to look at for one target."""
    path = expand(target)
    try:
        if not path.is_dir():
            yield _Job(target, target, target, None, True)
            return
        resolved = path.resolve()
        run = str(resolved)
        if (named := parse_checkpoint_name(resolved)) is not None:
            title = str(path.parent) if path.name == resolved.name else str(resolved.parent)
            yield _Job(target, str(resolved.parent), title, replace(named, path=path), True)
            return
        found = [] if looks_like_checkpoint(resolved) else list_checkpoints(path)
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot list {target}: {error.strerror or error}",
            hint="check its permissions",
            path=target,
        ) from error
    finished = [item for item in found if not item.temporary]
    if not finished:
        yield _Job(target, target, target, None, True)
    for item in found:
        newest = bool(finished) and item is finished[-1]
        # The newest is opened by the target's own name, as every other format does.
        yield _Job(target if newest else str(item.path), run, str(path), item, newest)


def _examine(job: _Job, options: VerifyOptions) -> Snapshot:
    name = job.named.path.name if job.named else job.target
    if job.named and name in ("", ".", ".."):
        name = job.named.path.resolve().name
    url: str | None = None
    try:
        source, note = open_target(job.target, token=options.token)
        url = source_url(source)
        context = Context(source, options)
        report = verify_context(context, note=note)
        state, status = _state(context)
    except UsageError:
        raise
    except SlaCkptError as error:
        report, state, status = unreadable(job.target, error), None, "unknown"
    return Snapshot(name, report, state, status, job.named, job.judged, url)


def _state(context: Context) -> tuple[StateSummary | None, StateStatus]:
    try:
        return summarise(context), "readable"
    except FormatError:
        return None, "unreadable"
    except TargetNotFoundError:
        checkpoint = context.checkpoint
        there = checkpoint.state_path is not None or checkpoint.twin_path is not None
        return None, "unreadable" if there else "missing"
