"""The commit endpoint: one request, one commit, all files or none."""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.responses import JSONResponse, Response

from .api_files import REGULAR_LIMIT
from .context import Call
from .discussions import open_pull_request
from .errors import HubError
from .repos import Entry


async def commit(call: Call) -> Response:
    as_pull_request = call.flag("create_pr")
    repo, token = call.writable_repo(as_pull_request=as_pull_request)
    header, operations = _parse(await call.request.body())
    revision = call.args["rev"]
    ref = repo.ref(revision)
    if ref is None:
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    tip, expected = repo.refs[ref], header.get("parentCommit")
    if expected and not tip.startswith(expected):
        if not as_pull_request:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tip = repo.commit_id(expected)
    files = dict(repo.commits[tip].files)
    added: dict[str, int] = {}
    for operation in operations:
        _apply(call, files, added, operation["key"], operation["value"])
    call.state.check_limits(repo.namespace, added)
    made = call.state.repos.commit(
        repo,
        None if as_pull_request else ref,
        tip,
        files,
        title=header["summary"],
        message=header.get("description", ""),
        author=token.user,
    )
    answer: dict[str, Any] = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{call.state.url}/{repo.id}/commit/{made.id}",
    }
    if as_pull_request:
        number = open_pull_request(call.state, repo, made, token.user).num
        answer["pullRequestUrl"] = f"{call.state.url}/{repo.id}/discussions/{number}"
    return JSONResponse(answer)


def _parse(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        items = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise HubError(400, f"Invalid ndjson: {error}") from error
    if not items or items[0].get("key") != "header":
        raise HubError(400, "The first line must be the header")
    return items[0]["value"], items[1:]


def _apply(
    call: Call, files: dict[str, Entry], added: dict[str, int], key: str, value: dict[str, Any]
) -> None:
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"])
        if len(data) > REGULAR_LIMIT:
            raise HubError(413, f"{path} is too large for a regular file; use LFS")
        files[path] = Entry(len(data), call.state.objects.add_blob(data))
    elif key == "lfsFile":
        sha256 = value["oid"]
        size = call.state.stored_size(sha256)
        if size is None:
            raise HubError(
                400, f"Your push was rejected: LFS pointer of {path} points to a missing object"
            )
        files[path] = Entry.large(sha256, size)
        added[sha256] = size
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"{path} does not exist", code="EntryNotFound")
    elif key == "deletedFolder":
        prefix = f"{path.rstrip('/')}/"
        for name in [name for name in files if name.startswith(prefix)]:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation {key}")
