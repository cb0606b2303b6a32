"""Endpoints about the files of a revision: tree, paths-info, preupload, card check."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
from typing import Any
from urllib.parse import parse_qs

import yaml
from starlette.responses import JSONResponse, Response

from .context import Call
from .errors import HubError
from .paging import page
from .repos import Commit

REGULAR_LIMIT = 10 * 2**20  # bytes; above this a file is never stored in git itself


async def tree(call: Call) -> Response:
    commit = call.repo().at(call.args["rev"])
    folder = (call.args.get("path") or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    recursive = call.flag("recursive")
    items: dict[str, dict[str, Any]] = {}
    for path, entry in commit.files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = prefix + "/".join(parts[:depth])
            items.setdefault(parent, _folder(parent))
        if recursive or len(parts) == 1:
            items[path] = call.entry_json(path, entry)
    if folder and not items:
        message = f'{folder} does not exist on "{call.args["rev"]}"'
        raise HubError(404, message, code="EntryNotFound")
    if call.flag("expand"):
        for item in items.values():
            item["lastCommit"] = {"id": commit.id, "title": commit.title, "date": commit.date}
    return page(call, [items[path] for path in sorted(items)])


async def paths_info(call: Call) -> Response:
    commit = call.repo().at(call.args["rev"])
    if "json" in call.request.headers.get("content-type", ""):
        paths = (await call.json())["paths"]
    else:
        paths = parse_qs((await call.request.body()).decode()).get("paths", [])
    found = []
    for path in paths:
        if path in commit.files:
            found.append(call.entry_json(path, commit.files[path]))
        elif any(name.startswith(f"{path.rstrip('/')}/") for name in commit.files):
            found.append(_folder(path.rstrip("/")))
    return JSONResponse(found)


async def preupload(call: Call) -> Response:
    """How each file is to be sent, and which ones the repo's .gitignore leaves out."""
    repo, _ = call.writable_repo(as_pull_request=call.flag("create_pr"))
    commit = repo.at(call.args["rev"])
    body = await call.json()
    if len(body["files"]) > 256:
        raise HubError(413, "Too many files in one preupload request (limit: 256)")
    ignored = body.get("gitIgnore")
    if ignored is None:
        ignored = _text(call, commit, ".gitignore")
    lfs_patterns = lfs_patterns_of(_text(call, commit, ".gitattributes"))
    files = []
    for item in body["files"]:
        path, size = item["path"], item["size"]
        large = is_large(path, size, base64.b64decode(item.get("sample", "")), lfs_patterns)
        answer = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": is_ignored(path, ignored),
        }
        entry = commit.files.get(path)
        if entry is not None:
            answer["oid"] = entry.sha256 or entry.oid
        files.append(answer)
    return JSONResponse({"files": files})


def is_large(path: str, size: int, sample: bytes, patterns: list[str]) -> bool:
    """Whether a file goes to LFS: by .gitattributes, by size, or because it is binary."""
    if size == 0:
        return False
    name = path.rsplit("/", 1)[-1]
    if any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(path, p) for p in patterns):
        return True
    return size > REGULAR_LIMIT or b"\0" in sample


def lfs_patterns_of(gitattributes: str) -> list[str]:
    lines = (line.split() for line in gitattributes.splitlines())
    return [line[0] for line in lines if len(line) > 1 and "filter=lfs" in line[1:]]


def is_ignored(path: str, gitignore: str) -> bool:
    """The common part of .gitignore: names, globs, rooted paths, folders, `!` to take back."""
    ignored = False
    parts = path.split("/")
    for line in gitignore.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        keep = rule.startswith("!")
        rule = rule.removeprefix("!")
        only_folders = rule.endswith("/")
        rule = rule.rstrip("/")
        if "/" in rule:
            candidates = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            rule = rule.removeprefix("/")
        else:
            candidates = parts
        if only_folders:
            candidates = candidates[:-1]
        if any(fnmatch.fnmatchcase(candidate, rule) for candidate in candidates):
            ignored = not keep
    return ignored


async def validate_yaml(call: Call) -> Response:
    """Checks the metadata block of a model card, as the Hub does before a commit."""
    content = str((await call.json()).get("content", ""))
    errors: list[str] = []
    warnings: list[str] = []
    metadata: Any = None
    lines = content.splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        block = "\n".join(lines[1 : lines.index("---", 1)])
        try:
            metadata = yaml.safe_load(block)
        except yaml.YAMLError as error:
            errors.append(f"YAML Metadata Error: {str(error).splitlines()[0]}")
    if not errors and not metadata:
        warnings.append("YAML Metadata Warning: empty or missing yaml metadata in repo card")
    elif not errors and not isinstance(metadata, dict):
        errors.append("YAML Metadata Error: the metadata must be a mapping")
    elif not errors:
        errors += _metadata_errors(metadata)
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return JSONResponse(answer, status_code=400 if errors else 200)


def _metadata_errors(metadata: dict[str, Any]) -> list[str]:
    errors = [f'"{key}" must not be null' for key, value in metadata.items() if value is None]
    for key in ("license", "pipeline_tag", "library_name"):
        if key in metadata and not isinstance(metadata[key], str):
            errors.append(f'"{key}" must be a string')
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    models = metadata.get("base_model", [])
    for model in models if isinstance(models, list) else [models]:
        named = (
            isinstance(model, str) and model.count("/") <= 1 and not model.startswith((".", "/"))
        )
        if not named:
            errors.append(f'"base_model" with value "{model}" is not valid. Use a model id')
    return errors


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _text(call: Call, commit: Commit, path: str) -> str:
    entry = commit.files.get(path)
    if entry is None or entry.sha256 is not None:
        return ""
    return call.state.objects.blob(entry.oid).decode(errors="replace")
