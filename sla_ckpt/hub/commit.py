"""Send what a plan says and make it one commit, whatever the network does.

The client does not repeat a commit whose answer was lost, rightly: it may have landed. So the head
of the branch (or the pull request) is looked at before trying again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sla_ckpt.errors import HubError
from sla_ckpt.hub.client import ATTEMPTS, HubClient, wait_for_retry
from sla_ckpt.hub.failures import is_transient, status_of
from sla_ckpt.hub.hashes import FileHash, HashCache, stamp_of
from sla_ckpt.hub.plan import LocalFile, PushContent, PushPlan, same_content
from sla_ckpt.hub.remote import RemoteFile, open_at
from sla_ckpt.hub.repo import RepoRef
from sla_ckpt.text import count

#: Seconds. The client repeats requests of an upload itself, over xet for minutes each.
UPLOAD_PATIENCE = 30.0
#: How many of the newest open pull requests are looked at.
REQUESTS = 5


def upload(
    client: HubClient, content: PushContent, plan: PushPlan, *, create_pr: bool
) -> tuple[list[Any], PushPlan]:
    """Send the large files of a plan.

    Returns:
        The operations for :func:`commit`, and the plan with every hash known. ``content`` learns
        them too, for a later plan.

    Raises:
        HubError: The Hub refused or failed, or a file changed while it was sent.
    """
    additions = [_addition(entry.file) for entry in plan.to_send]
    stamps = [_stamp(entry.file) for entry in plan.to_send]
    with client.errors("upload to", plan.ref.repo_id):
        client.retry(
            lambda: client.api.preupload_lfs_files(
                plan.ref.repo_id,
                additions,
                revision=plan.ref.revision,
                create_pr=create_pr or None,
                free_memory=False,
            ),
            patience=UPLOAD_PATIENCE,
        )
    learnt: dict[str, LocalFile] = {}
    with HashCache() as hashes:
        for entry, addition, stamp in zip(plan.to_send, additions, stamps, strict=True):
            info, expected = addition.upload_info, entry.file.hash
            # Hashed by the upload; where a version of the client does not tell, by reading it.
            sent = info.sha256.hex() if expected.is_pending or info.is_hashed else expected.sha256
            if (
                info.size != expected.size
                or stamp != _stamp(entry.file)
                or (not expected.is_pending and sent != expected.sha256)
            ):
                raise HubError(
                    f"{entry.path} changed while it was sent; nothing was committed",
                    hint="wait until the trainer has finished saving, then run the command again",
                )
            if expected.is_pending and isinstance(entry.file.source, Path):
                found = FileHash(expected.size, sent, "")
                hashes.learn(entry.file.source, found, stamp=stamp)
                learnt[entry.path] = replace(entry.file, hash=found)
    content.files.update(learnt)
    entries = tuple(
        replace(entry, file=learnt.get(entry.path, entry.file)) for entry in plan.entries
    )
    return additions, replace(plan, entries=entries)


def _stamp(file: LocalFile) -> list[int]:
    return stamp_of(file.source) if isinstance(file.source, Path) else []


def uses_xet() -> bool:
    """Whether the client sends large files over xet, which hashes them on the way."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def commit(
    client: HubClient,
    plan: PushPlan,
    additions: list[Any],
    *,
    create_pr: bool,
    message: str | None,
    description: str | None = None,
    note: Callable[[str], None],
) -> tuple[str, str | None] | None:
    """Make one commit of a plan, tried again after transient failures.

    Returns:
        Commit id and URL of the pull request, if one was asked for. None when the branch moved.

    Raises:
        HubError: The Hub refused, or kept failing; nothing was committed then.
    """
    repo_id, revision = plan.ref.repo_id, plan.ref.revision
    operations = [*additions, *_deletions(plan)]
    title = message or f"Upload {_describe(plan)} with sla-ckpt"
    for attempt in range(ATTEMPTS):
        try:
            with warnings.catch_warnings():
                # What the Hub remarks about a card's metadata is not about this push.
                warnings.simplefilter("ignore", UserWarning)
                info = client.api.create_commit(
                    repo_id,
                    operations,
                    commit_message=title,
                    commit_description=description,
                    revision=revision,
                    create_pr=create_pr or None,
                    parent_commit=plan.parent,
                )
            return str(info.oid), str(info.pr_url) if info.pr_url else None
        except Exception as error:
            if status_of(error) == 412:
                return None if create_pr else _landed(client, plan)
            again = wait_for_retry(error, attempt)
            # The answer may have been lost after the commit landed.
            looked = open_request if create_pr else _landed
            landed = looked(client, plan) if is_transient(error) else None
            if landed is not None:
                note("the commit had landed, only its answer was lost")
                return landed
            if not again:
                with client.errors("commit to", repo_id):
                    raise
    raise AssertionError("unreachable")


def _landed(client: HubClient, plan: PushPlan) -> tuple[str, None] | None:
    """The branch's head if it moved and holds everything the plan wanted to send."""
    head = open_at(client, plan.ref)
    if head.commit == plan.parent or not _holds(plan, head.listing):
        return None
    return head.commit, None


def open_request(client: HubClient, plan: PushPlan) -> tuple[str, str | None] | None:
    """An open pull request that holds everything the plan wants to send: its head and URL.

    Opening another one for the same files would only confuse.
    """
    with client.errors("read the pull requests of", plan.ref.repo_id):
        requests = client.retry(
            lambda: [
                item
                for item in client.api.get_repo_discussions(plan.ref.repo_id)
                if item.is_pull_request and item.status in ("open", "draft")
            ]
        )
    for request in sorted(requests, key=lambda item: -item.num)[:REQUESTS]:
        head = open_at(client, RepoRef(plan.ref.repo_id, f"refs/pr/{request.num}"))
        if _holds(plan, head.listing):
            return head.commit, request.url
    return None


def _holds(plan: PushPlan, listing: Mapping[str, RemoteFile]) -> bool:
    return not set(plan.removed) & set(listing) and all(
        entry.path in listing and same_content(entry.file.hash, listing[entry.path])
        for entry in plan.entries
    )


def _addition(file: LocalFile) -> Any:
    from huggingface_hub import CommitOperationAdd

    source = file.source if isinstance(file.source, bytes) else str(file.source)
    addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=source)
    if not uses_xet():
        # Saves reading the file a second time; over LFS the server checks what arrives against
        # it. Not over xet, where nobody would.
        addition.upload_info.sha256 = bytes.fromhex(file.hash.sha256)
    return addition


def _deletions(plan: PushPlan) -> list[Any]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(path, is_folder=False) for path in plan.removed]


def _describe(plan: PushPlan) -> str:
    names = [entry.path.rpartition("/")[2] for entry in plan.to_send]
    return names[0] if len(names) == 1 else count(len(names) or len(plan.removed), "file")
