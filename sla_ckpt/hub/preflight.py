"""What the Hub will say to a plan, asked before the first byte of a file is sent.

Two requests that huggingface_hub makes too, but one of them after the upload and the other
without telling which files it drops.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from urllib.parse import quote

from sla_ckpt.errors import HubError
from sla_ckpt.hub.client import HubClient
from sla_ckpt.hub.plan import README, LocalFile, PushPlan
from sla_ckpt.text import join_some

#: The Hub takes this many files in one question.
BATCH = 256
SAMPLE_BYTES = 512
IGNORED = "dropped by the repository's .gitignore"


def preflight(client: HubClient, plan: PushPlan, *, create_pr: bool) -> PushPlan:
    """The plan as the Hub will take it.

    Asks whether this token may write, which files the repository's .gitignore drops, and whether
    the card's metadata is accepted.

    Raises:
        HubError: No write access, a needed file would be dropped, or the metadata is refused.
    """
    _check_card(client, plan)
    dropped = {
        path for batch in _batches(plan) for path in _ignored(client, plan, batch, create_pr)
    }
    if not dropped:
        return plan
    needed = sorted(e.path for e in plan.entries if e.path in dropped and e.file.required)
    if needed:
        raise HubError(
            f"{plan.ref.repo_id}: its .gitignore drops what the model needs: {join_some(needed)}",
            hint="correct .gitignore in the repository, then push again; nothing was sent",
        )
    return replace(
        plan,
        entries=tuple(entry for entry in plan.entries if entry.path not in dropped),
        left_out={**plan.left_out, **dict.fromkeys(sorted(dropped), IGNORED)},
    )


def _batches(plan: PushPlan) -> Iterator[list[LocalFile]]:
    files = iter([entry.file for entry in plan.to_send])
    while batch := list(islice(files, BATCH)):
        yield batch


def _ignored(
    client: HubClient, plan: PushPlan, files: list[LocalFile], create_pr: bool
) -> list[str]:
    revision = quote(plan.ref.revision or "main", safe="")
    path = f"/api/models/{plan.ref.repo_id}/preupload/{revision}"
    body = {
        "files": [
            {"path": file.path, "sample": _sample(file), "size": file.hash.size} for file in files
        ]
    }
    with client.errors("push to", plan.ref.repo_id):
        answer = client.post(path + ("?create_pr=1" if create_pr else ""), body)
    return [item["path"] for item in answer.get("files", []) if item.get("shouldIgnore")]


def _sample(file: LocalFile) -> str:
    if isinstance(file.source, bytes):
        head = file.source[:SAMPLE_BYTES]
    else:
        with file.source.open("rb") as handle:
            head = handle.read(SAMPLE_BYTES)
    return base64.b64encode(head).decode("ascii")


def _check_card(client: HubClient, plan: PushPlan) -> None:
    card = next((entry.file for entry in plan.to_send if entry.path == README), None)
    if card is None or not isinstance(card.source, bytes):
        return
    body = {"content": card.source.decode(), "repoType": "model"}
    with client.errors("check the card of", plan.ref.repo_id):
        answer = client.post("/api/validate-yaml", body, accept=(400,))
    errors = [str(item.get("message", item)) for item in answer.get("errors", [])]
    if errors:
        raise HubError(
            f"README.md: the Hub refuses its metadata: {join_some(errors)}",
            hint="correct the block between the two --- lines; nothing was sent",
        )
