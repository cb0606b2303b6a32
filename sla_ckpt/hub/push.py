"""Publish a checkpoint so that no revision of the repository lacks its state.

Verify, plan, upload, one commit on the parent that was planned against, read back, verify again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.resolve import resolve_checkpoint
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.checks.report import Finding, Report
from sla_ckpt.checks.verify import verify_source
from sla_ckpt.errors import HubError, UsageError
from sla_ckpt.hub.card import choose_text
from sla_ckpt.hub.client import HubClient, connect
from sla_ckpt.hub.commit import commit, open_request, upload, uses_xet
from sla_ckpt.hub.files import matches
from sla_ckpt.hub.plan import PushContent, PushPlan, collect, make_plan, same_content
from sla_ckpt.hub.preflight import preflight
from sla_ckpt.hub.remote import HubSource, RemoteFile, open_at, source_at
from sla_ckpt.hub.repo import RepoRef, parse_repo
from sla_ckpt.text import count, join_some

#: How often a push plans anew because somebody else pushed meanwhile.
REPLANS = 3
#: Warnings of verify that stop a push: what is published so is published broken.
STOPPING = ("SLA206",)


@dataclass(frozen=True)
class PushOptions:
    """How to publish.

    Attributes:
        revision: Branch to commit to; the default branch when None.
        create_pr: Open a pull request instead of committing to the branch.
        public: Make a new repository public; it is private otherwise.
        path_in_repo: Folder in the repository for all files.
        message: Commit message, its first line.
        description: What follows that line.
        include: Glob patterns to send although they would be left out.
        exclude: Glob patterns to leave out.
        training_state: Also send what only a resume needs.
        ignore: Rule codes whose findings do not stop the push.
        dry_run: Plan only.
        token: Hub token; the user's by default.
    """

    revision: str | None = None
    create_pr: bool = False
    public: bool = False
    path_in_repo: str = ""
    message: str | None = None
    description: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    training_state: bool = False
    ignore: tuple[str, ...] = ()
    dry_run: bool = False
    token: str | None = None


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        plan: What was planned, None when verify stopped it.
        local: Verify's report of the checkpoint.
        blocking: Findings that stopped it.
        commit: The new commit; None when nothing was committed.
        pull_request: URL of the pull request, if one was made.
        remote: Verify's report of the new revision.
        created: Whether the repository was made.
    """

    local: Report
    plan: PushPlan | None = None
    blocking: tuple[Finding, ...] = ()
    commit: str | None = None
    pull_request: str | None = None
    remote: Report | None = None
    created: bool = False

    @property
    def ok(self) -> bool:
        return not self.blocking and (self.remote is None or self.remote.ok)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "ok": self.ok,
            "plan": self.plan.to_dict() if self.plan else None,
            "blocking": [finding.to_dict() for finding in self.blocking],
            "commit": self.commit,
            "pull_request": self.pull_request,
            "created": self.created,
            "local": self.local.to_dict(),
            "remote": self.remote.to_dict() if self.remote else None,
        }


def push(
    repo: str | RepoRef,
    checkpoint: str | Path | None = None,
    options: PushOptions | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int], None] | None = None,
) -> PushResult:
    """Publish a checkpoint with its state in one commit.

    Args:
        repo: ``org/model`` in any form people paste; a revision or folder in it counts.
        checkpoint: Checkpoint folder or output directory; the current directory by default.
        options: How.
        note: Called with one line per stage.
        progress: Called with (path, bytes) while files are hashed.

    Returns:
        What was done. ``blocking`` is not empty when verify stopped it; nothing was sent then.

    Raises:
        HubError: The Hub refused, failed or could not be reached.
        UsageError: Options that contradict each other, or exclude what the model needs.
        TargetNotFoundError: No such checkpoint.
    """
    options = options or PushOptions()
    ref, base = _target(repo, options)
    root = resolve_checkpoint(checkpoint)
    note(f"verifying {root}")
    verify_options = VerifyOptions(purpose="inference", ignore=options.ignore)
    local = verify_source(LocalSource(root), verify_options)
    blocking = tuple(f for f in local.findings if f.level == "error" or f.code in STOPPING)
    if blocking:
        return PushResult(local, blocking=blocking)
    client = connect(options.token)
    account = None if options.dry_run and not client.has_token else _check_token(client, ref)
    exists, head = _open_if_exists(client, ref)
    if exists and account is not None and not options.dry_run:
        note(f"{ref.repo_id} exists, pushing as {account}")
    note(f"hashing the files of {root}")
    content = collect(
        root,
        base=base,
        include=options.include,
        exclude=options.exclude,
        training_state=options.training_state,
        unhashed_unless_in=_listing_for_xet(head, options),
        progress=progress,
    )
    plan, warning = _plan(content, ref, head, root, options)
    if warning:
        note(f"warning: {warning}")
    if head is not None and account is not None and not plan.is_empty:
        plan = preflight(client, plan, create_pr=options.create_pr)
    if options.dry_run or (head is not None and plan.is_empty):
        return PushResult(local, plan)
    if not exists:
        _create(client, ref, public=options.public)
        note(f"made {ref.repo_id} ({'public' if options.public else 'private'})")
    if head is None:
        head = _open_branch(client, ref, note)
        plan, _ = _plan(content, ref, head, root, options)
        plan = preflight(client, plan, create_pr=options.create_pr)
        if plan.is_empty:
            return PushResult(local, plan, created=not exists)
    plan, made, request = _commit(client, content, plan, options, root, note)
    note("reading the new revision back")
    after = open_at(client, RepoRef(ref.repo_id, made))
    _compare(plan, after)
    remote = _verify_remote(after, base, options)
    return PushResult(local, plan, (), made, request, remote, not exists)


def _target(repo: str | RepoRef, options: PushOptions) -> tuple[RepoRef, str]:
    ref = repo if isinstance(repo, RepoRef) else parse_repo(repo)
    if ref.revision and options.revision and ref.revision != options.revision:
        raise UsageError(f"two revisions: {ref.revision} and --revision {options.revision}")
    revision = options.revision or ref.revision
    if options.create_pr and revision not in (None, "main"):
        raise UsageError(
            f"--create-pr opens a pull request against main, not against {revision}",
            hint=f"leave out --create-pr to commit to {revision}",
        )
    base = options.path_in_repo.strip("/") or ref.subfolder
    if "\\" in base or (any(part in ("", ".", "..") for part in base.split("/")) and base):
        raise UsageError(f"--path-in-repo {base!r} is not a folder", hint="use a/b, with slashes")
    return RepoRef(ref.repo_id, revision), base


def _check_token(client: HubClient, ref: RepoRef) -> str:
    """Refuse a missing or read-only token before anything is sent; the account's name."""
    if not client.has_token:
        raise HubError(
            f"cannot push to {ref.repo_id}: there is no Hub token",
            hint="run: hf auth login, or set HF_TOKEN to a token with write access",
        )
    with client.errors("push to", ref.repo_id):
        me: dict[str, Any] = client.retry(lambda: client.api.whoami())
    role = (me.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"cannot push to {ref.repo_id}: this token can only read",
            hint="make a token with write access at hf.co/settings/tokens",
        )
    return str(me.get("name", "?"))


def _open_if_exists(client: HubClient, ref: RepoRef) -> tuple[bool, HubSource | None]:
    """Whether there is a repository, and it at the branch's head if there is the branch."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with client.errors("read", ref.repo_id):
        try:
            return True, source_at(client, ref)
        except RevisionNotFoundError:
            return True, None
        except RepositoryNotFoundError:
            return False, None


def _create(client: HubClient, ref: RepoRef, *, public: bool) -> None:
    """Make the repository."""
    with client.errors("create", ref.repo_id):
        # exist_ok also makes a repetition after a lost answer harmless.
        client.retry(lambda: client.api.create_repo(ref.repo_id, private=not public, exist_ok=True))


def _open_branch(client: HubClient, ref: RepoRef, note: Callable[[str], None]) -> HubSource:
    """The branch's head, the branch made from the default one when it is not there."""
    _, opened = _open_if_exists(client, ref)
    if opened is None and ref.revision is not None:
        branch = ref.revision
        with client.errors("make a branch of", ref.repo_id):
            client.retry(
                lambda: client.api.create_branch(ref.repo_id, branch=branch, exist_ok=True)
            )
        note(f"made branch {branch}")
        _, opened = _open_if_exists(client, ref)
    return opened if opened is not None else open_at(client, ref)


def _plan(
    content: PushContent, ref: RepoRef, head: HubSource | None, root: Path, options: PushOptions
) -> tuple[PushPlan, str | None]:
    """The plan against a head, and a remark about whose README it takes."""
    readme = f"{content.base}/README.md" if content.base else "README.md"
    local = remote = None
    if head is not None and readme in head.listing:
        remote = _decode_card(head.read(readme))
    if (root / "README.md").is_file() and "README.md" not in content.left_out:
        local = _decode_card((root / "README.md").read_bytes())
    card = choose_text(local, remote, prefer_local=matches("README.md", options.include))
    if head is None:
        return make_plan(content, ref, None, {}, card), card.warning
    return make_plan(content, ref, head.commit, head.listing, card), card.warning


def _decode_card(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HubError(
            "README.md is not UTF-8 text", hint="save it as UTF-8, then push again"
        ) from error


def _commit(
    client: HubClient,
    content: PushContent,
    plan: PushPlan,
    options: PushOptions,
    root: Path,
    note: Callable[[str], None],
) -> tuple[PushPlan, str, str | None]:
    """Commit the plan; plan anew when the branch moved. (plan, commit, pull request URL)"""
    for _ in range(REPLANS + 1):
        size = plan.bytes_to_send
        note(f"sending {count(len(plan.to_send), 'file')}, {size:,} bytes")
        additions, plan = upload(client, content, plan, create_pr=options.create_pr)
        if options.create_pr and (there := open_request(client, plan)) is not None:
            note("an open pull request holds this already")
            return plan, *there
        done = commit(
            client,
            plan,
            additions,
            create_pr=options.create_pr,
            message=options.message,
            description=options.description,
            note=note,
        )
        if done is not None:
            return plan, *done
        note("somebody else pushed meanwhile, planning anew")
        head = open_at(client, plan.ref)
        plan, _ = _plan(content, plan.ref, head, root, options)
        plan = preflight(client, plan, create_pr=options.create_pr)
        if plan.is_empty:
            return plan, head.commit, None
    raise HubError(
        f"{plan.ref.repo_id} changes faster than this push can follow",
        hint="run the command again when nobody else is pushing",
    )


def _listing_for_xet(
    head: HubSource | None, options: PushOptions
) -> Mapping[str, RemoteFile] | None:
    """The repository's files if what is not among them is hashed by xet; None if by us."""
    if options.dry_run or not uses_xet():
        return None
    return head.listing if head is not None else {}


def _compare(plan: PushPlan, after: HubSource) -> None:
    """Every file of the plan must be at the new revision, with the same bytes."""
    wrong = [
        entry.path
        for entry in plan.entries
        if entry.path not in after.listing
        or not same_content(entry.file.hash, after.listing[entry.path])
    ]
    wrong += [path for path in plan.removed if path in after.listing]
    if wrong:
        raise HubError(
            f"{plan.ref.repo_id} at {after.commit[:8]} does not hold what was sent: "
            f"{join_some(wrong)}",
            hint="run the command again; if it stays, report it to the Hub",
        )


def _verify_remote(after: HubSource, base: str, options: PushOptions) -> Report:
    source = after.subsource(base) if base else after
    return verify_source(source, VerifyOptions(purpose="inference", ignore=options.ignore))
