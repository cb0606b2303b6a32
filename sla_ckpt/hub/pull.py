"""Fetch a checkpoint with its state, check every byte, verify the result.

Files arrive in a staging folder inside the target and move to their places when all are complete
and their hashes are right, the state first: an interrupted pull leaves the target as it was, and
the next one goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.checks.report import Report
from sla_ckpt.checks.verify import verify_source
from sla_ckpt.errors import HubError, TargetNotFoundError, UsageError, WriteError
from sla_ckpt.fsio import directory_lock, fsync_directory
from sla_ckpt.hub.client import HubClient, connect
from sla_ckpt.hub.files import Role, case_collisions, choose, role_of
from sla_ckpt.hub.hashes import HashCache
from sla_ckpt.hub.plan import same_content
from sla_ckpt.hub.remote import HubSource, RemoteFile, open_at
from sla_ckpt.hub.repo import RepoRef, parse_repo
from sla_ckpt.paths import expand
from sla_ckpt.text import count, join_some

STAGING = ".sla_ckpt_pull"
PARALLEL = 4
#: Left free beside what arrives: the temporary files of the download itself are in the sum.
SPARE_BYTES = 64 * 1024 * 1024


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
) -> PullResult:
    """Fetch a checkpoint from the Hub.

    Args:
        repo: ``org/model[@revision][/folder]`` in any form people paste.
        directory: Target folder; ``./model`` (the repository's name) by default. Files of a folder
            in the repository are put at the target's root.
        options: What to fetch.
        note: Called with one line per stage.

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
    chosen, left_out = _choose(source, options)
    _check_names(chosen, ref)
    present, wanted = _compare_local(source, target, chosen, options)
    fetched = {path: files[path] for path in wanted}
    if options.dry_run:
        return PullResult(ref, root.commit, target, fetched, present, left_out, None)
    _make_directory(target)
    with directory_lock(target):
        if wanted:
            note(
                f"fetching {count(len(wanted), 'file')}, {sum(fetched.values()):,} bytes "
                f"of {ref.repo_id}@{root.commit[:8]}"
            )
            _check_space(target, sum(fetched.values()))
            _fetch_all(client, source, target, wanted)
            _place(target, wanted, source.prefix)
    note(f"verifying {target}")
    purpose: Literal["inference", "resume"] | None = (
        "inference" if options.purpose == "inference" else None
    )
    report = verify_source(
        LocalSource(target), VerifyOptions(purpose=purpose, ignore=options.ignore)
    )
    return PullResult(ref, root.commit, target, fetched, present, left_out, report)


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
    )
    excluded = [p for p in left_out if role_of(p) is Role.STATE]
    if excluded:
        raise UsageError(
            f"--exclude would leave out what the model needs: {join_some(excluded)}",
            hint="a model without its state is broken",
        )
    return chosen, left_out


def _check_names(paths: list[str], ref: RepoRef) -> None:
    """Names in a repository are somebody else's input: none may leave the target folder."""
    for path in paths:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in path or ":" in parts[0]:
            raise HubError(f"{ref.repo_id} has a file with an unsafe name: {path!r}")
        if parts[0] == STAGING:
            raise HubError(f"{ref.repo_id} has a file in a reserved folder: {path!r}")
    collisions = case_collisions(paths)
    if collisions:
        one, other = collisions[0]
        raise HubError(
            f"{ref.repo_id}: {one} and {other} differ only by case: one would overwrite the other",
            hint="leave one out with --exclude",
        )


def _compare_local(
    source: HubSource, target: Path, chosen: list[str], options: PullOptions
) -> tuple[tuple[str, ...], list[str]]:
    """Files that are there already, and those to fetch."""
    present, wanted, differing = [], [], []
    with HashCache() as hashes:
        for path in chosen:
            local = target / path
            try:
                if local.is_file():
                    if same_content(hashes.hash(local), source.remote_file(path)):
                        present.append(path)
                        continue
                    differing.append(path)
                elif local.exists():
                    raise WriteError(f"{local} is in the way: it is not a file")
            except OSError as error:
                raise WriteError(f"cannot look at {local}: {error.strerror or error}") from error
            wanted.append(path)
    if differing and not options.force:
        raise WriteError(
            f"{target} has {count(len(differing), 'file')} that differ from the repository: "
            f"{join_some(differing)}",
            hint="use another folder, or --force to replace them",
        )
    return tuple(present), wanted


def _make_directory(target: Path) -> None:
    try:
        (target / STAGING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make {target}: {error.strerror or error}",
            hint="choose another folder",
            path=str(target),
        ) from error


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    staged = sum(f.stat().st_size for f in (target / STAGING).rglob("*") if f.is_file())
    if free + staged < needed + SPARE_BYTES:
        raise WriteError(
            f"not enough space for {target}: {needed:,} bytes are needed, {free:,} are free",
            hint="free some space or choose a folder on another disk",
        )


def _fetch_all(client: HubClient, source: HubSource, target: Path, wanted: list[str]) -> None:
    staging = target / STAGING

    def download(full: str, *, force: bool) -> None:
        with client.errors("fetch", f"{source.ref.repo_id}/{full}"):
            client.retry(
                lambda: client.api.hf_hub_download(
                    source.ref.repo_id,
                    full,
                    revision=source.commit,
                    local_dir=staging,
                    force_download=force,
                )
            )

    def one(path: str) -> None:
        full = source.prefix + path
        for again in (False, True):
            download(full, force=again)
            if _is_right(staging / full, source.remote_file(path)):
                return
        raise HubError(
            f"{source.ref.repo_id}/{full}: the bytes that arrived are not those it lists (sha256)",
            hint="run the command again; if it stays, the file on the Hub is damaged",
        )

    ordered = sorted(wanted, key=lambda path: role_of(path) is not Role.STATE)
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        for future in [pool.submit(one, path) for path in ordered]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_right(local: Path, remote: RemoteFile) -> bool:
    with HashCache() as hashes:
        return same_content(hashes.hash(local), remote)


def _place(target: Path, wanted: list[str], prefix: str) -> None:
    """Move everything to its place, the state first, each file in one step."""
    staging = target / STAGING
    ordered = sorted(wanted, key=lambda path: role_of(path) is not Role.STATE)
    try:
        for path in ordered:
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            (staging / (prefix + path)).replace(destination)
        for folder in {(target / path).parent for path in ordered}:
            fsync_directory(folder)
        shutil.rmtree(staging)
    except OSError as error:
        raise WriteError(
            f"cannot write to {target}: {error.strerror or error}",
            hint="run the command again; what was fetched is kept",
            path=str(target),
        ) from error
