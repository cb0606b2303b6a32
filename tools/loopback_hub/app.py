"""The routes, and the application that dispatches to them.

Revisions and paths are told apart in the raw, still quoted path (`refs%2Fpr%2F1`), which is why
the table below is matched by regular expressions rather than by Starlette's router.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import api_commit, api_files, api_repos, discussions, download, lfs, xet_api
from .admin import Handler, admin_handlers
from .context import Call, State
from .errors import HubError
from .faults import FaultInjector, Faults
from .traffic import RequestLog, Traffic

REPO = r"(?P<repo>[^/]+(?:/|%2F)[^/]+)"
REV = r"(?P<rev>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)"
MODEL = rf"/api/models/{REPO}"
SHA256 = r"(?P<oid>[0-9a-f]{64})"
HASH = r"(?P<hash>[0-9a-f]{64})"

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", r"/api/whoami-v2", api_repos.whoami),
    ("POST", r"/api/validate-yaml", api_files.validate_yaml),
    ("POST", r"/api/repos/create", api_repos.create_repo),
    ("DELETE", r"/api/repos/delete", api_repos.delete_repo),
    ("GET", r"/api/models", api_repos.list_models),
    ("PUT", rf"{MODEL}/settings", api_repos.change_settings),
    ("GET", rf"{MODEL}/auth-check", api_repos.auth_check),
    ("GET", rf"{MODEL}/refs", api_repos.list_refs),
    ("GET", rf"{MODEL}/commits/{REV}", api_repos.list_commits),
    ("POST", rf"{MODEL}/branch/(?P<name>.+)", api_repos.create_branch),
    ("DELETE", rf"{MODEL}/branch/(?P<name>.+)", api_repos.delete_branch),
    ("POST", rf"{MODEL}/tag/(?P<name>.+)", api_repos.create_tag),
    ("DELETE", rf"{MODEL}/tag/(?P<name>.+)", api_repos.delete_tag),
    ("GET", rf"{MODEL}/tree/{REV}(?:/(?P<path>.*))?", api_files.tree),
    ("POST", rf"{MODEL}/paths-info/{REV}", api_files.paths_info),
    ("POST", rf"{MODEL}/preupload/{REV}", api_files.preupload),
    ("POST", rf"{MODEL}/commit/{REV}", api_commit.commit),
    ("GET", rf"{MODEL}/discussions", discussions.listing),
    ("POST", rf"{MODEL}/discussions", discussions.create),
    ("GET", rf"{MODEL}/discussions/(?P<num>\d+)", discussions.details),
    ("POST", rf"{MODEL}/discussions/(?P<num>\d+)/status", discussions.change_status),
    ("POST", rf"{MODEL}/discussions/(?P<num>\d+)/comment", discussions.comment),
    ("POST", rf"{MODEL}/discussions/(?P<num>\d+)/merge", discussions.merge),
    ("GET", rf"{MODEL}/xet-(?P<kind>read|write)-token/{REV}", xet_api.xet_token),
    ("GET", rf"{MODEL}(?:/revision/{REV})?", api_repos.repo_info),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs.batch),
    ("PUT", rf"/_lfs/{SHA256}", lfs.put_object),
    ("PUT", rf"/_lfs/{SHA256}/part/(?P<part>\d+)", lfs.put_part),
    ("POST", rf"/_lfs/{SHA256}/complete", lfs.complete),
    ("POST", rf"/_lfs/{SHA256}/verify", lfs.verify),
    ("GET", rf"/_cdn/{SHA256}/[^/]*", download.cdn),
    ("POST", rf"/_cas/v1/xorbs/default/{HASH}", xet_api.put_xorb),
    ("GET", rf"/_cas/v1/xorbs/default/{HASH}", xet_api.get_xorb),
    ("POST", r"/_cas/v1/shards", xet_api.put_shard),
    ("GET", rf"/_cas/v1/reconstructions/{HASH}", xet_api.reconstruction),
    ("POST", r"(?:/_cas)?/v1/telemetry", xet_api.telemetry),
    ("GET", rf"/{REPO}/resolve/{REV}/(?P<path>.+)", download.resolve),
]


def build_app(state: State, faults: Faults, log: RequestLog) -> ASGIApp:
    """The whole server as an ASGI application; the log is outermost, so it sees the faults too."""
    on_faults, on_requests = admin_handlers(faults, log)
    table = [
        *ROUTES,
        ("GET|POST|DELETE", r"/_admin/faults", on_faults),
        ("GET|DELETE", r"/_admin/requests", on_requests),
    ]
    routes = [
        (methods.split("|"), re.compile(pattern), handler) for methods, pattern, handler in table
    ]

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await _answer(request)
        except HubError as error:
            await _drain(request)
            response = _error_response(error)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(request: Request) -> Response:
        path = request.scope["raw_path"].decode()
        method = "GET" if request.method == "HEAD" else request.method
        for methods, pattern, handler in routes:
            match = pattern.fullmatch(path) if method in methods else None
            if match is not None:
                args = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                return await handler(Call(state, request, args))
        raise HubError(404, f"No route for {request.method} {path}")

    return Traffic(FaultInjector(dispatch, faults), log)


def _error_response(error: HubError) -> Response:
    text = error.message.encode("ascii", "replace").decode()
    headers = {"X-Error-Message": text, **error.headers}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message, **error.body}, error.status, headers)


async def _drain(request: Request) -> None:
    """Takes in what is left of the body, or the client may not get to read the answer."""
    try:
        async for _ in request.stream():
            pass
    except (ClientDisconnect, RuntimeError):  # RuntimeError: it was read before
        return
