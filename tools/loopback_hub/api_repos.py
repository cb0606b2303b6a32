"""Endpoints about users and repos: whoami, create, info, refs, branches, tags, history."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from .context import Call
from .errors import HubError
from .paging import page
from .repos import Repo, now


async def whoami(call: Call) -> Response:
    return JSONResponse(call.state.accounts.describe(call.signed_in()))


async def create_repo(call: Call) -> Response:
    body = await call.json()
    token = call.signed_in()
    name, namespace = body["name"], body.get("organization") or token.user
    if "/" in name:
        namespace, name = name.split("/", 1)
    repo_id = f"{namespace}/{name}"
    if not call.state.accounts.may_write(token, namespace):
        raise HubError(
            403,
            f'You don\'t have the rights to create a model under the namespace "{namespace}"',
        )
    answer = {"url": f"{call.state.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if call.state.repos.get(repo_id) is not None:
        raise HubError(409, "You already created this model repo", body=answer)
    private = body.get("visibility") == "private" or bool(body.get("private"))
    call.state.repos.create(repo_id, private=private, gated=False, author=token.user)
    return JSONResponse(answer)


async def delete_repo(call: Call) -> Response:
    body = await call.json()
    token = call.signed_in()
    namespace = body.get("organization") or token.user
    repo = call.state.repos.get(f"{namespace}/{body['name']}")
    if repo is None:
        raise HubError(404, "Repository not found", code="RepoNotFound")
    if not call.state.accounts.may_write(token, namespace, repo.id):
        raise HubError(403, "Forbidden")
    call.state.repos.delete(repo)
    return JSONResponse({})


async def change_settings(call: Call) -> Response:
    repo, _ = call.writable_repo()
    body = await call.json()
    if "private" in body or "visibility" in body:
        repo.private = body.get("visibility") == "private" or bool(body.get("private"))
    if "gated" in body:
        repo.gated = bool(body["gated"])
    call.state.repos.save(repo)
    return JSONResponse({"private": repo.private, "gated": repo.gated})


async def list_models(call: Call) -> Response:
    token = call.token()
    author, search = call.query.get("author"), call.query.get("search", "").lower()
    found = [
        _summary(call, repo)
        for repo in call.state.repos
        if (author is None or repo.namespace == author)
        and search in repo.id.lower()
        and call.state.accounts.may_read(token, repo)
    ]
    return page(call, sorted(found, key=lambda item: str(item["id"])))


async def repo_info(call: Call) -> Response:
    repo = call.repo()
    commit = repo.at(call.args.get("rev") or "main")
    siblings: list[dict[str, Any]] = []
    for path, entry in sorted(commit.files.items()):
        item: dict[str, Any] = {"rfilename": path}
        if call.flag("blobs"):
            item |= {"size": entry.size, "blobId": entry.oid}
            if entry.sha256 is not None:
                item["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
        siblings.append(item)
    return JSONResponse(
        {
            **_summary(call, repo),
            "sha": commit.id,
            "lastModified": commit.date,
            "disabled": False,
            "cardData": {},
            "siblings": siblings,
        }
    )


async def auth_check(call: Call) -> Response:
    repo = call.repo()
    require_gate_passed(call, repo)
    return JSONResponse({})


async def list_refs(call: Call) -> Response:
    repo = call.repo()

    def named(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in repo.refs.items()
            if ref.startswith(prefix)
        ]

    answer: dict[str, Any] = {
        "branches": named("refs/heads/"),
        "tags": named("refs/tags/"),
        "converts": [],
    }
    if call.flag("include_prs"):
        answer["pullRequests"] = named("refs/pr/")
    return JSONResponse(answer)


async def list_commits(call: Call) -> Response:
    repo = call.repo()
    return page(
        call,
        [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in repo.history(call.args["rev"])
        ],
    )


async def create_branch(call: Call) -> Response:
    return await _create_ref(call, "refs/heads/", call.args["name"])


async def create_tag(call: Call) -> Response:
    body = await call.json()
    repo, _ = call.writable_repo()
    ref = f"refs/tags/{body['tag']}"
    if ref in repo.refs:
        raise HubError(409, "Tag reference exists already")
    repo.refs[ref] = repo.commit_id(call.args["name"])
    call.state.repos.save(repo)
    return JSONResponse({})


async def delete_branch(call: Call) -> Response:
    return _delete_ref(call, f"refs/heads/{call.args['name']}")


async def delete_tag(call: Call) -> Response:
    return _delete_ref(call, f"refs/tags/{call.args['name']}")


def require_gate_passed(call: Call, repo: Repo) -> None:
    """Raises HubError (GatedRepo) unless this caller was let through the repo's gate."""
    token = call.token()
    if call.state.accounts.may_pass_gate(token, repo):
        return
    if token is None:
        message = f"Access to model {repo.id} is restricted. You must be authenticated to access it"
        raise HubError(401, message, code="GatedRepo")
    raise HubError(
        403,
        f"Access to model {repo.id} is restricted and you are not in the authorized list. "
        f"Visit {call.state.url}/{repo.id} to ask for access.",
        code="GatedRepo",
    )


async def _create_ref(call: Call, prefix: str, name: str) -> Response:
    repo, _ = call.writable_repo()
    body = await call.json()
    if prefix + name in repo.refs:
        raise HubError(409, "Reference already exists")
    repo.refs[prefix + name] = repo.commit_id(body.get("startingPoint") or "main")
    call.state.repos.save(repo)
    return JSONResponse({})


def _delete_ref(call: Call, ref: str) -> Response:
    repo, _ = call.writable_repo()
    if repo.refs.pop(ref, None) is None:
        raise HubError(404, "Reference not found", code="RevisionNotFound")
    call.state.repos.save(repo)
    return JSONResponse({})


def _summary(call: Call, repo: Repo) -> dict[str, Any]:
    head = repo.at("main")
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": head.id,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "createdAt": repo.created,
        "lastModified": head.date or now(),
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
