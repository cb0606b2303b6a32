"""Discussions and pull requests; a pull request is also the ref refs/pr/N."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from .context import Call, State
from .errors import HubError
from .repos import Commit, PullRequest, Repo, now


def open_pull_request(state: State, repo: Repo, commit: Commit, author: str) -> PullRequest:
    """A pull request whose branch starts at `commit`."""
    number = len(repo.discussions) + 1
    made = PullRequest(number, commit.title, commit.message, author, "open", now())
    repo.discussions.append(made)
    repo.refs[f"refs/pr/{number}"] = commit.id
    state.repos.save(repo)
    return made


async def create(call: Call) -> Response:
    body = await call.json()
    repo, token = call.writable_repo(as_pull_request=True)
    is_pull_request = bool(body.get("pullRequest"))
    number = len(repo.discussions) + 1
    made = PullRequest(
        number,
        body["title"],
        body.get("description", ""),
        token.user,
        "draft" if is_pull_request else "open",
        now(),
        is_pull_request,
    )
    repo.discussions.append(made)
    if is_pull_request:
        repo.refs[f"refs/pr/{number}"] = repo.commit_id("main")
    call.state.repos.save(repo)
    url = f"{call.state.url}/{repo.id}/discussions/{number}"
    return JSONResponse({"num": number, "url": url, "pullRequest": is_pull_request})


async def listing(call: Call) -> Response:
    repo = call.repo()
    items = [_summary(repo, item) for item in reversed(repo.discussions)]
    return JSONResponse({"count": len(items), "start": 0, "discussions": items})


async def details(call: Call) -> Response:
    repo = call.repo()
    item = _find(repo, call.args["num"])
    changes: dict[str, Any] = {"base": "refs/heads/main"}
    if item.merge_commit is not None:
        changes["mergeCommitId"] = item.merge_commit
    return JSONResponse(
        {
            **_summary(repo, item),
            "events": [],
            "changes": changes,
            "filesWithConflicts": [],
            "diff": "",
        }
    )


async def change_status(call: Call) -> Response:
    body = await call.json()
    repo, _ = call.writable_repo(as_pull_request=True)
    item = _find(repo, call.args["num"])
    item.status = body["status"]
    call.state.repos.save(repo)
    event = _event(item, "status-change", {"status": item.status})
    return JSONResponse({"newStatus": event, "newStatusChange": event})


async def comment(call: Call) -> Response:
    body = await call.json()
    repo, _ = call.writable_repo(as_pull_request=True)
    text = {"raw": body["comment"], "html": body["comment"], "updatedAt": now()}
    data = {"edited": False, "hidden": False, "latest": text}
    return JSONResponse({"newMessage": _event(_find(repo, call.args["num"]), "comment", data)})


async def merge(call: Call) -> Response:
    """Merges by putting the pull request's changes on top of main."""
    repo, token = call.writable_repo()
    item = _find(repo, call.args["num"])
    if not item.is_pull_request or item.status not in ("open", "draft"):
        raise HubError(400, "This pull request cannot be merged")
    proposed = repo.at(f"refs/pr/{item.num}")
    main = repo.at("main")
    base = next(
        (c for c in repo.history(proposed.id) if c.id in {x.id for x in repo.history(main.id)}),
        main,
    )
    files = dict(main.files)
    for path in base.files.keys() | proposed.files.keys():
        if base.files.get(path) == proposed.files.get(path):
            continue
        if path in proposed.files:
            files[path] = proposed.files[path]
        else:
            files.pop(path, None)
    merged = call.state.repos.commit(
        repo,
        "refs/heads/main",
        main.id,
        files,
        title=f"{item.title} (#{item.num})",
        author=token.user,
    )
    item.status, item.merge_commit = "merged", merged.id
    call.state.repos.save(repo)
    return JSONResponse({})


def _find(repo: Repo, number: str) -> PullRequest:
    if not 1 <= int(number) <= len(repo.discussions):
        raise HubError(404, "Discussion not found", code="EntryNotFound")
    return repo.discussions[int(number) - 1]


def _summary(repo: Repo, item: PullRequest) -> dict[str, Any]:
    return {
        "num": item.num,
        "title": item.title,
        "author": {"name": item.author},
        "status": item.status,
        "isPullRequest": item.is_pull_request,
        "createdAt": item.created,
        "repo": {"name": repo.id, "type": "model"},
        "repoOwner": {"name": repo.namespace},
        "numComments": 0,
    }


def _event(item: PullRequest, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    author = {"name": item.author}
    return {"id": "0", "type": kind, "createdAt": now(), "author": author, "data": data}
