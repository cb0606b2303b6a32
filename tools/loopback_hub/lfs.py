"""Git LFS: the batch endpoint, uploads (whole or in parts), verification."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from .context import Call
from .errors import HubError


async def batch(call: Call) -> Response:
    repo = call.repo()
    body = await call.json()
    token = call.signed_in()
    accounts = call.state.accounts
    if not (
        accounts.may_write(token, repo.namespace, repo.id) or accounts.may_propose(token, repo)
    ):
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
    settings = call.state.settings
    limit = settings.max_file_size
    missing = {o["oid"]: o["size"] for o in body["objects"] if not call.state.is_stored(o["oid"])}
    call.state.check_limits(
        repo.namespace, {k: v for k, v in missing.items() if limit is None or v <= limit}
    )
    objects: list[dict[str, Any]] = []
    multipart = False
    for item in body["objects"]:
        oid, size = item["oid"], item["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if limit is not None and size > limit:
            message = f"File size exceeds the limit of {limit} bytes per file"
            answer["error"] = {"code": 422, "message": message}
        elif oid in missing:
            href = f"{call.state.url}/_lfs/{oid}"
            upload: dict[str, Any] = {"href": href}
            if settings.part_size is not None and size > settings.part_size:
                multipart = True
                count = -(-size // settings.part_size)
                urls = {str(n): f"{href}/part/{n}" for n in range(1, count + 1)}
                header = {"chunk_size": str(settings.part_size), **urls}
                upload = {"href": f"{href}/complete", "header": header}
            verify = {"href": f"{call.state.url}/_lfs/{oid}/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return JSONResponse(
        {"transfer": "multipart" if multipart else "basic", "objects": objects},
        media_type="application/vnd.git-lfs+json",
    )


async def put_object(call: Call) -> Response:
    """The URL is the permission, as with the Hub's presigned ones; no token is sent here."""
    oid = call.args["oid"]
    target = call.state.objects.lfs_path(oid)
    await call.state.objects.receive(target, call.request.stream(), oid)
    return Response(headers={"ETag": f'"{oid}"'})


async def put_part(call: Call) -> Response:
    objects = call.state.objects
    target = objects.part_path(call.args["oid"], int(call.args["part"]))
    digest = await objects.receive(target, call.request.stream(), None)
    return Response(headers={"ETag": f'"{digest}"'})


async def complete(call: Call) -> Response:
    body = await call.json()
    call.state.objects.join_parts(call.args["oid"], len(body["parts"]))
    return JSONResponse({"success": True})


async def verify(call: Call) -> Response:
    body = await call.json()
    if call.state.objects.lfs_size(call.args["oid"]) != body["size"]:
        raise HubError(404, "Object not found")
    return JSONResponse({})
