"""Users, their tokens, and what each may do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import HubError
from .objects import new_file
from .repos import Repo

ROLES = ("read", "write", "fineGrained")
DEFAULT_USER = "alice"
DEFAULT_ORG = "acme"


@dataclass(frozen=True)
class Token:
    """`scopes` (fine-grained only) maps a user, organisation or repo to permissions such as
    `repo.content.read` and `repo.write`."""

    value: str
    user: str
    role: str
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Accounts:
    """Who exists; kept in `root/accounts.json` so that tokens outlive a restart."""

    def __init__(self, root: Path) -> None:
        self._path = root / "accounts.json"
        self._users: dict[str, tuple[str, ...]] = {DEFAULT_USER: (DEFAULT_ORG,)}
        self._tokens: dict[str, Token] = {}
        if self._path.exists():
            state = json.loads(self._path.read_bytes())
            self._users = {name: tuple(orgs) for name, orgs in state["users"].items()}
            for raw in state["tokens"]:
                self._tokens[raw["value"]] = Token(**{**raw, "scopes": _scopes(raw["scopes"])})

    def add_user(self, name: str, orgs: tuple[str, ...] = ()) -> None:
        self._users[name] = tuple(orgs)
        self._save()

    def issue(self, user: str, role: str, scopes: Mapping[str, tuple[str, ...]]) -> Token:
        """The same user, role and scopes always get the same token."""
        if role not in ROLES:
            raise ValueError(f"a token's role is one of {', '.join(ROLES)}, not {role!r}")
        seed = json.dumps([user, role, sorted((k, list(v)) for k, v in scopes.items())])
        value = "hf_" + hashlib.sha256(seed.encode()).hexdigest()[:34]
        token = Token(value, user, role, _scopes(scopes))
        self._users.setdefault(user, ())
        self._tokens[value] = token
        self._save()
        return token

    def revoke(self, value: str) -> None:
        del self._tokens[value]
        self._save()

    def orgs(self, user: str) -> tuple[str, ...]:
        return self._users.get(user, ())

    def identify(self, authorization: str | None) -> Token | None:
        """The token of a request, None without one. Raises HubError 401 for an unknown one."""
        if not authorization:
            return None
        token = self._tokens.get(authorization.removeprefix("Bearer ").strip())
        if token is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def may_read(self, token: Token | None, repo: Repo) -> bool:
        if not repo.private:
            return True
        if token is None or not self._belongs(token, repo.namespace):
            return False
        return token.role != "fineGrained" or bool(_granted(token, repo.id, repo.namespace))

    def may_pass_gate(self, token: Token | None, repo: Repo) -> bool:
        if not repo.gated:
            return True
        if token is None:
            return False
        return token.user in repo.allowed or self._belongs(token, repo.namespace)

    def may_write(self, token: Token, namespace: str, repo_id: str | None = None) -> bool:
        """Whether a repo may be changed or, without `repo_id`, created in `namespace`."""
        if not self._belongs(token, namespace):
            return False
        if token.role == "fineGrained":
            return "repo.write" in _granted(token, repo_id, namespace)
        return token.role == "write"

    def may_propose(self, token: Token, repo: Repo) -> bool:
        """Whether a pull request may be opened: reading rights and a token that can write."""
        if token.role == "fineGrained":
            granted = _granted(token, repo.id, repo.namespace)
            return "repo.write" in granted or "discussion.write" in granted
        return token.role == "write"

    def describe(self, token: Token) -> dict[str, Any]:
        """The body of whoami-v2."""
        access: dict[str, Any] = {
            "displayName": "loopback",
            "role": token.role,
            "createdAt": "2026-01-01T00:00:00.000Z",
        }
        if token.role == "fineGrained":
            access["fineGrained"] = {
                "canReadGatedRepos": True,
                "global": [],
                "scoped": [
                    {
                        "entity": {"_id": name, "type": self._kind(name), "name": name},
                        "permissions": list(permissions),
                    }
                    for name, permissions in token.scopes.items()
                ],
            }
        orgs = [
            {"type": "org", "id": f"org-{org}", "name": org, "fullname": org, "roleInOrg": "write"}
            for org in self.orgs(token.user)
        ]
        return {
            "type": "user",
            "id": f"user-{token.user}",
            "name": token.user,
            "fullname": token.user,
            "email": f"{token.user}@localhost",
            "emailVerified": True,
            "isPro": False,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": access},
        }

    def _kind(self, name: str) -> str:
        if "/" in name:
            return "model"
        return "user" if name in self._users else "org"

    def _belongs(self, token: Token, namespace: str) -> bool:
        return namespace == token.user or namespace in self.orgs(token.user)

    def _save(self) -> None:
        state = {
            "users": self._users,
            "tokens": [asdict(token) for token in self._tokens.values()],
        }
        with new_file(self._path) as out:
            out.write(json.dumps(state).encode())


def _scopes(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(permissions) for name, permissions in raw.items()}


def _granted(token: Token, repo_id: str | None, namespace: str) -> set[str]:
    names = [namespace] if repo_id is None else [namespace, repo_id]
    return {permission for name in names for permission in token.scopes.get(name, ())}
