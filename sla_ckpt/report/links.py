"""Where a Hub repository is shown to people."""

from __future__ import annotations

from urllib.parse import quote

from sla_ckpt.checkpoint.source import Source


def source_url(source: Source) -> str | None:
    """The page of a repository at the commit that was read; None for what is local."""
    if not source.is_remote:
        return None
    from sla_ckpt.hub.remote import HubSource

    if not isinstance(source, HubSource):
        return None
    endpoint = source.client.endpoint.rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        return None
    folder = "/".join(("tree", source.commit, source.prefix.rstrip("/"))).rstrip("/")
    return f"{endpoint}/{quote(source.ref.repo_id)}/{quote(folder)}"
