"""Verify a target: run the rules over it and collect a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sla_ckpt.checkpoint.resolve import list_checkpoints, looks_like_checkpoint, resolve_checkpoint
from sla_ckpt.checkpoint.source import LocalSource, Source
from sla_ckpt.checks.context import Context, VerifyOptions
from sla_ckpt.checks.registry import Rule, select_rules
from sla_ckpt.checks.report import Finding, Report, sort_findings
from sla_ckpt.checks.single_file import SingleFileSource, is_twin
from sla_ckpt.errors import SlaCkptError, TargetNotFoundError, UsageError
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE, TWIN_FILE

#: Files of a checkpoint that are certainly no state: their folder is meant.
_NO_STATE = (".json", ".bin", ".pkl", ".md", ".txt")

Target = TypeVar("Target")
Result = TypeVar("Result")

__all__ = ["VerifyOptions", "open_target", "verify", "verify_many", "verify_source"]


def verify(target: str | Path | Source, options: VerifyOptions | None = None) -> Report:
    """Is this checkpoint whole and consistent?

    Args:
        target: A checkpoint folder, a trainer's output directory (its newest finished checkpoint
            is meant), a ``sla_attention.pt``, a Hub repository ``org/model[@revision][/folder]``
            or its URL, or an open source. A local path wins if it exists.
        options: How to verify.

    Returns:
        The report. Faults of the checkpoint are findings in it, not exceptions.

    Raises:
        TargetNotFoundError: The target does not exist or cannot be opened.
        UsageError: An option makes no sense for this target.
        HubError: The repository cannot be reached.

    Example:
        >>> import sla_ckpt
        >>> report = sla_ckpt.verify("output/checkpoint-500")  # doctest: +SKIP
        >>> report.ok, [finding.code for finding in report.findings]  # doctest: +SKIP
    """
    options = options or VerifyOptions()
    if isinstance(target, str | Path):
        source, note = open_target(target, token=options.token)
        return verify_source(source, options, note=note)
    return verify_source(target, options)


def verify_source(
    source: Source, options: VerifyOptions | None = None, *, note: str | None = None
) -> Report:
    """Verify an open source; see :func:`verify`."""
    return verify_context(Context(source, options or VerifyOptions()), note=note)


def verify_context(context: Context, *, note: str | None = None) -> Report:
    """Verify what a context reads, for who needs more of it than the report; see :func:`verify`."""
    source, options = context.source, context.options
    rules = select_rules(options.select, options.ignore)
    findings = sort_findings(
        finding
        for item in rules
        if source.is_remote or not item.remote_only
        for finding in _run(item, context)
    )
    return Report(
        target=source.label,
        kind=context.checkpoint.kind.value,
        expected=tuple(str(pair) for pair in context.expectation.pairs),
        found=tuple(str(pair) for pair in context.found),
        findings=findings,
        notes=((note,) if note else ()) + _notes(context),
    )


def _notes(context: Context) -> tuple[str, ...]:
    notes = list(context.payload.notes) if context.payload else []
    checkpoint, files = context.checkpoint, context.source.files()
    inside = f"{checkpoint.denoiser.folder}/{STATE_FILE}" if checkpoint.denoiser else STATE_FILE
    if checkpoint.state_path == STATE_FILE and inside.lstrip("/") != STATE_FILE and inside in files:
        notes.append(f"{inside} is there too; {STATE_FILE} at the root is the one that counts")
    if context.options.purpose == "resume":
        loaded = [*checkpoint.trainer_files, checkpoint.state_path]
        notes.append(f"a resume loads: {', '.join(path for path in loaded if path)}")
    if getattr(context.source, "truncated_listing", False):
        notes.append(f"a very large folder: only its first {len(files):,} files were looked at")
    return tuple(notes)


def _run(item: Rule, context: Context) -> Iterator[Finding]:
    for fault in item.check(context):
        level = fault.level or item.level
        fixable = item.fixable if fault.fixable is None else item.fixable and fault.fixable
        yield Finding(item.code, level, fault.message, fault.path, fixable, fault.help)


def verify_many(
    targets: Iterable[str | Path], options: VerifyOptions | None = None, *, jobs: int = 1
) -> Iterator[Report]:
    """Verify several targets, in order; one that cannot be opened gets a report that says so.

    Args:
        targets: As for :func:`verify`.
        options: For all of them.
        jobs: How many at a time.
    """
    options = options or VerifyOptions()

    def one(target: str | Path) -> Report:
        try:
            return verify(target, options)
        except UsageError:
            raise
        except SlaCkptError as error:
            return unreadable(target, error)

    yield from for_each(targets, one, options, jobs=jobs)


def for_each(
    targets: Iterable[Target],
    examine: Callable[[Target], Result],
    options: VerifyOptions,
    *,
    jobs: int = 1,
) -> Iterator[Result]:
    """Examine several targets, some at a time; the results come in the targets' order.

    Raises:
        UsageError: A rule code of the options is wrong: one error, not one per target.
    """
    select_rules(options.select, options.ignore)
    listed: Sequence[Target] = list(targets)
    if jobs <= 1 or len(listed) <= 1:
        yield from map(examine, listed)
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(examine, listed)


def unreadable(target: str | Path, error: SlaCkptError) -> Report:
    """The report of a target that could not be examined."""
    return Report(str(target), "unreadable", problem=error.message, problem_help=error.hint)


def open_target(target: str | Path, *, token: str | None = None) -> tuple[Source, str | None]:
    """Open what the user named; also a note when it stands for something else.

    Raises:
        TargetNotFoundError: No such path, or it cannot be opened.
        HubError: It is a repository that cannot be reached.
    """
    _refuse_empty(target)
    path = expand(target)
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise TargetNotFoundError(
            f"cannot open {target}: {getattr(error, 'strerror', None) or error}",
            hint="check the path and its permissions",
            path=str(target),
        ) from error
    if is_file:
        if path.suffix == ".safetensors" and not is_twin(path):
            return _around_weights(path), f"with what belongs to it in {path.parent}"
        if path.suffix in _NO_STATE:
            return LocalSource(path.parent), f"the folder of {path.name}"
        return SingleFileSource(path), None
    if is_directory:
        checkpoint = resolve_checkpoint(path)
        if checkpoint != path:
            what = "main" if checkpoint.parent.name == "snapshots" else "newest finished checkpoint"
            return LocalSource(checkpoint), f"{what} of {path}"
        return LocalSource(path), None
    if isinstance(target, str) and not path.is_symlink():
        from sla_ckpt.hub.repo import looks_like_repo

        if path.parent != Path() and path.parent.is_dir() and "@" not in target:
            is_repo = looks_like_repo(target)
            raise TargetNotFoundError(
                f"no such file or folder: {target}",
                hint="check the path"
                + (f"; for the Hub repository write hf://{target}" if is_repo else ""),
                path=target,
            )
        if looks_like_repo(target):
            from sla_ckpt.hub.remote import open_remote

            return open_remote(target, token=token), None
    resolve_checkpoint(path)  # raises the error that fits
    raise TargetNotFoundError(f"cannot open {target}", path=str(target))


def _around_weights(path: Path) -> LocalSource:
    """A weight file as a target: its folder, without the adapters that only lie beside it."""
    source = LocalSource(path.parent, label=str(path))
    if "config.json" not in source.files():
        source.leave_out(
            lambda item: (
                item.endswith(".safetensors")
                and item not in (path.name, TWIN_FILE)
                and "/" not in item
            )
        )
    return source


def _refuse_empty(target: str | Path) -> None:
    """An unset variable in a script must not mean the current directory."""
    if isinstance(target, str) and not target.strip():
        raise UsageError("an empty target", hint="name a checkpoint; . is the current directory")


def expand_target(target: str, *, recursive: bool = False) -> list[str]:
    """The targets that one argument stands for.

    A folder of loose state files stands for each of them; with ``recursive``, a folder stands for
    every checkpoint below it.

    Raises:
        TargetNotFoundError: A folder cannot be listed.
    """
    _refuse_empty(target)
    path = expand(target)
    try:
        if not path.is_dir() or (not recursive and looks_like_checkpoint(path.resolve())):
            return [target]
        checkpoints = [str(item.path) for item in list_checkpoints(path)]
        if checkpoints:
            return checkpoints if recursive else [target]
        found = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        if looks_like_checkpoint(path.resolve()):
            return [target]
        loose = [str(item) for item in found if item.suffix in (".pt", ".safetensors")]
        if recursive:
            for folder in found:
                if folder.is_dir() and not folder.is_symlink():
                    below = expand_target(str(folder), recursive=True)
                    is_checkpoint = looks_like_checkpoint(folder.resolve())
                    loose += below if below != [str(folder)] or is_checkpoint else []
    except OSError as error:
        raise TargetNotFoundError(
            f"cannot list {error.filename or path}: {error.strerror or error}",
            hint="check its permissions",
            path=str(path),
        ) from error
    return loose or [target]
