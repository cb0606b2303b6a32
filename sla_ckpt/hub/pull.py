"""Fetch a checkpoint with its state, check every byte, verify the result.

Files arrive in a staging folder inside the target and move to their places when all are complete
and their hashes are right, the state first: an interrupted pull leaves the target as it was, and
the next one goes on where it stopped. A pull that is killed while it moves the files leaves a mark
that verify reports (SLA301) until the next one has finished.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sla_ckpt.checkpoint.layout import CheckpointKind, discover
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.checks.report import Report
from sla_ckpt.checks.verify import verify_source
from sla_ckpt.errors import FormatError, TargetNotFoundError, UsageError
from sla_ckpt.formats.twin import read_twin, write_state
from sla_ckpt.fsio import backup, directory_lock
from sla_ckpt.hub.client import connect
from sla_ckpt.hub.download import fetch_all
from sla_ckpt.hub.files import Role, choose, role_of
from sla_ckpt.hub.placing import (
    STAGING,
    check_collisions,
    check_names,
    check_space,
    compare_local,
    make_directory,
    place,
    remove_staging,
)
from sla_ckpt.hub.remote import HubSource, open_at
from sla_ckpt.hub.repo import RepoRef, parse_repo
from sla_ckpt.hub.rules import model_folders
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE, TWIN_FILE
from sla_ckpt.text import count, join_some


@dataclass(frozen=True)
class PullOptions:
    """What to fetch.

    Attributes:
        revision: Branch, tag or commit; the default branch when None.
        purpose: ``"inference"`` leaves out what only a resume needs.
        include: Glob patterns to fetch although they would be left out.
        exclude: Glob patterns to leave out.
        force: Replace local files that differ.
        ignore: Rule codes that do not count in the final verification.
        dry_run: List only.
        token: Hub token; the user's by default.
    """

    revision: str | None = None
    purpose: Literal["inference", "resume"] = "inference"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    force: bool = False
    ignore: tuple[str, ...] = ()
    dry_run: bool = False
    token: str | None = None


@dataclass(frozen=True)
class PullResult:
    """What a pull did.

    Attributes:
        ref: What was asked for.
        commit: The commit it stood for.
        directory: Where the files are.
        fetched: Path -> bytes, of what was transferred (or would be).
        present: Paths that were there already, with the right content.
        left_out: Path -> why.
        report: Verify's report of the result; None after a dry run.
    """

    ref: RepoRef
    commit: str
    directory: Path
    fetched: dict[str, int]
    present: tuple[str, ...]
    left_out: dict[str, str]
    report: Report | None

    @property
    def ok(self) -> bool:
        return self.report is None or self.report.ok

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "ok": self.ok,
            "repo": self.ref.repo_id,
            "commit": self.commit,
            "directory": str(self.directory),
            "fetched": self.fetched,
            "present": list(self.present),
            "left_out": self.left_out,
            "report": self.report.to_dict() if self.report else None,
        }


def pull(
    repo: str | RepoRef,
    directory: str | Path | None = None,
    options: PullOptions | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda count, total: None,
) -> PullResult:
    """Fetch a checkpoint from the Hub.

    Args:
        repo: ``org/model[@revision][/folder]`` in any form people paste.
        directory: Target folder; ``./model`` (the repository's name) by default. Files of a folder
            in the repository are put at the target's root, with the state from the nearest folder
            above if it has none itself.
        options: What to fetch.
        note: Called with one line per stage.
        tick: Called with (bytes that arrived, bytes of all files), from several threads.

    Returns:
        What arrived, and verify's report of it.

    Raises:
        HubError: The Hub refused, failed, or sent other bytes than it lists.
        WriteError: No space, a read-only folder, or a local file that differs (without ``force``).
        LockedError: Another process writes to the target.
    """
    options = options or PullOptions()
    ref = _with_revision(repo if isinstance(repo, RepoRef) else parse_repo(repo), options)
    client = connect(options.token)
    root = open_at(client, ref)
    source = root.subsource(ref.subfolder) if ref.subfolder else root
    files = source.files()
    if not files:
        raise TargetNotFoundError(
            f"{ref.repo_id} has no folder {ref.subfolder}"
            if ref.subfolder
            else f"{ref.repo_id} is empty",
            hint="check the path in the repository" if ref.subfolder else "push to it first",
        )
    target = expand(directory) if directory is not None else Path(_default_name(ref))
    check_names(files, ref)
    beside = _state_beside(root, source)
    if not beside and not {STATE_FILE, TWIN_FILE} & {path.rpartition("/")[2] for path in files}:
        note(f"warning: {source.label} has no {STATE_FILE}; see what is said at the end")
    _refuse_folder_of_checkpoints(source, ref)
    chosen, left_out = _choose(source, options)
    paths = {**{path: source.prefix + path for path in chosen}, **beside}
    check_collisions(paths, ref)
    present, wanted, differing = compare_local(root, target, paths, force=options.force)
    fetched = {path: root.listing[full].size for path, full in wanted.items()}
    if options.dry_run:
        return PullResult(ref, root.commit, target, fetched, present, left_out, None)
    make_directory(target)
    with directory_lock(target):
        if wanted:
            note(
                f"fetching {count(len(wanted), 'file')}, {sum(fetched.values()):,} bytes "
                f"of {ref.repo_id}@{root.commit[:8]}"
            )
            check_space(target, sum(fetched.values()))
            total = sum(fetched.values())
            parts = fetch_all(
                client, root, target / STAGING, wanted, lambda size: tick(size, total)
            )
            for path in differing:
                if role_of(path) is Role.STATE:
                    backup(target / path)
            place(target, parts)
        _write_state_of_lone_twin(target, note)
        remove_staging(target)
    note(f"verifying {target}")
    purpose: Literal["inference", "resume"] | None = (
        "inference" if options.purpose == "inference" else None
    )
    report = verify_source(
        LocalSource(target), VerifyOptions(purpose=purpose, ignore=options.ignore)
    )
    return PullResult(ref, root.commit, target, fetched, present, left_out, report)


def _state_beside(root: HubSource, source: HubSource) -> dict[str, str]:
    """The state of a folder that has none itself: in the nearest folder above. Name -> path.

    ``org/model/transformer`` is the denoiser alone; its state is at the root.
    """
    prefix = source.prefix
    if {STATE_FILE, TWIN_FILE} & set(source.files()):
        return {}
    while prefix:
        prefix = prefix[: prefix.rstrip("/").rfind("/") + 1]
        found = {n: prefix + n for n in (STATE_FILE, TWIN_FILE) if prefix + n in root.listing}
        if found:
            return found
    return {}


def _refuse_folder_of_checkpoints(source: HubSource, ref: RepoRef) -> None:
    """A repository whose checkpoints are in folders: which one is meant must be said."""
    if {STATE_FILE, TWIN_FILE} & set(source.files()):
        return
    if discover(source).kind is not CheckpointKind.UNKNOWN:
        return
    folders = {p.rpartition("/")[0] for p in source.files() if p.endswith(f"/{STATE_FILE}")}
    folders |= model_folders(source.files())
    if not folders:
        return
    newest = max(folders, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [-1])
    raise UsageError(
        f"{source.label} is not a checkpoint itself; it has {join_some(sorted(folders))}",
        hint=f"name one: sla-ckpt pull "
        f"{RepoRef(ref.repo_id, ref.revision, source.prefix + newest)}",
    )


def _write_state_of_lone_twin(target: Path, note: Callable[[str], None]) -> None:
    """SimpleTuner loads the ``.pt`` only; a repository may hold just the safer twin."""
    if (target / STATE_FILE).exists() or not (target / TWIN_FILE).is_file():
        return
    try:
        state = read_twin(target / TWIN_FILE)
    except FormatError:
        return  # verify says what is wrong with it
    write_state(target, state)
    note(f"wrote {STATE_FILE} from {TWIN_FILE}")


def _with_revision(ref: RepoRef, options: PullOptions) -> RepoRef:
    if ref.revision and options.revision and ref.revision != options.revision:
        raise UsageError(f"two revisions: {ref.revision} and --revision {options.revision}")
    return RepoRef(ref.repo_id, options.revision or ref.revision, ref.subfolder)


def _default_name(ref: RepoRef) -> str:
    return ref.subfolder.rpartition("/")[2] or ref.repo_id.partition("/")[2]


def _choose(source: HubSource, options: PullOptions) -> tuple[list[str], dict[str, str]]:
    files = source.files()
    chosen, left_out = choose(
        files,
        include=options.include,
        exclude=options.exclude,
        training_state=options.purpose == "resume",
        ema=options.purpose == "resume",
    )
    excluded = [p for p in left_out if role_of(p) is Role.STATE]
    if excluded:
        raise UsageError(
            f"--exclude would leave out what the model needs: {join_some(excluded)}",
            hint="a model without its state is broken",
        )
    return chosen, left_out
