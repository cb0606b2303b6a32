"""What a push would send: compare the checkpoint with the repository, file by file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sla_ckpt.checkpoint.layout import Checkpoint, discover
from sla_ckpt.checkpoint.source import MAX_DEPTH, LocalSource
from sla_ckpt.errors import HubError, TargetNotFoundError, UsageError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import encode_twin, read_twin
from sla_ckpt.hub.card import CardFacts, CardText, update_card
from sla_ckpt.hub.files import (
    Role,
    case_collisions,
    choose,
    matches,
    required_of,
    role_of,
    superseded,
)
from sla_ckpt.hub.front_matter import check_metadata
from sla_ckpt.hub.hashes import FileHash, HashCache, hash_bytes, stamp_of
from sla_ckpt.hub.remote import RemoteFile
from sla_ckpt.hub.repo import RepoRef
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState
from sla_ckpt.text import join_some

Change = Literal["new", "changed", "unchanged"]
#: The Hub refuses single files beyond this.
MAX_FILE_BYTES = 50 * 10**9
README = "README.md"
#: Files hashed at a time; hashing leaves the interpreter free.
HASHERS = 4
#: From here on reading a file costs more than the bookkeeping for not reading it; the Hub never
#: stores files of this size in git itself.
LARGE = 64 * 1024 * 1024


@dataclass(frozen=True)
class LocalFile:
    """One file to publish.

    Attributes:
        path: Path in the repository.
        source: Local file, or the bytes themselves for generated files.
        hash: Its hashes and size.
        required: Whether the model is not whole without it.
    """

    path: str
    source: Path | bytes
    hash: FileHash
    required: bool


@dataclass(frozen=True)
class PushContent:
    """What a checkpoint looks like when published, before any comparison.

    Attributes:
        checkpoint: The local checkpoint.
        files: By path in the repository; the card is not among them, it depends on the repository.
        left_out: Local path -> why it is not sent.
        state: The state to publish, with its origin.
        base: Folder in the repository, ``""`` for the root.
    """

    checkpoint: Checkpoint
    files: dict[str, LocalFile]
    left_out: Mapping[str, str]
    state: SLAState
    base: str


@dataclass(frozen=True)
class PlannedFile:
    """One line of a plan."""

    path: str
    change: Change
    file: LocalFile


@dataclass(frozen=True)
class PushPlan:
    """What one commit would hold.

    Attributes:
        ref: The repository and branch.
        parent: The commit the plan was made against; None for a new repository.
        entries: Every file, changed or not.
        left_out: Local path -> why it is not sent.
        removed: Shards and indexes in the repository that the new weights replace.
    """

    ref: RepoRef
    parent: str | None
    entries: tuple[PlannedFile, ...]
    left_out: Mapping[str, str]
    removed: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the repository already is what this plan wants."""
        return not self.to_send and not self.removed

    @property
    def to_send(self) -> tuple[PlannedFile, ...]:
        return tuple(entry for entry in self.entries if entry.change != "unchanged")

    @property
    def bytes_to_send(self) -> int:
        return sum(entry.file.hash.size for entry in self.to_send)

    def to_dict(self) -> dict[str, Any]:
        return {
            "repo": self.ref.repo_id,
            "revision": self.ref.revision,
            "parent": self.parent,
            "bytes_to_send": self.bytes_to_send,
            "files": [
                {
                    "path": entry.path,
                    "change": entry.change,
                    "size": entry.file.hash.size,
                    "sha256": entry.file.hash.sha256 or None,
                }
                for entry in self.entries
            ],
            "removed": list(self.removed),
            "left_out": dict(self.left_out),
        }


def collect(
    root: Path,
    *,
    base: str = "",
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    training_state: bool = False,
    unhashed_unless_in: Mapping[str, RemoteFile] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> PushContent:
    """Choose and hash the files of a checkpoint, the twin made if it is missing or stale.

    Args:
        root: The checkpoint.
        base: Folder in the repository.
        include: Glob patterns to send although they would be left out.
        exclude: Glob patterns to leave out.
        training_state: Also what only a resume needs.
        unhashed_unless_in: The repository's files. A large file that cannot be among them stays
            unhashed: xet hashes while it sends, and reading it before would be for nothing.
        progress: Called with (path, bytes), from several threads.

    Raises:
        UsageError: A pattern leaves out a file that the model needs, or matches nothing.
        HubError: Names that collide where case does not count, a file over the Hub's limit.
        FormatError: The state cannot be read.
        TargetNotFoundError: A file vanished or changed while it was read.
    """
    source = LocalSource(root)
    if source.truncated_listing:
        raise HubError(
            f"{root} has more files than a checkpoint ever has",
            hint="name the checkpoint's own folder",
        )
    checkpoint = discover(source)
    for pattern in include:
        if not any(matches(path, (pattern,)) for path in source.files()):
            raise UsageError(f"--include {pattern!r} matches no file of {root}")
    chosen, left_out = choose(
        source.files(), include=include, exclude=exclude, training_state=training_state
    )
    for path, why in source.broken.items():
        if role_of(path) not in (Role.STATE, Role.MODEL, Role.CARD) or matches(path, exclude):
            left_out[path] = why
        else:
            raise TargetNotFoundError(
                f"cannot read {path}: {why}", hint="repair it, or leave it out with --exclude"
            )
    deep = [path for path in source.directories if path.count("/") >= MAX_DEPTH - 1]
    left_out.update({f"{path}/": f"nested deeper than {MAX_DEPTH} levels" for path in deep})
    needed = required_of(source.files())
    excluded = sorted(path for path in needed if path not in chosen and matches(path, exclude))
    if excluded:
        raise UsageError(
            f"--exclude would leave out what the model needs: {join_some(excluded)}",
            hint="a model without it is broken for everyone who downloads it",
        )
    _check_names(chosen, base)
    prefix = f"{base}/" if base else ""
    files: dict[str, LocalFile] = {}
    to_hash = [path for path in chosen if path != README]
    listing = unhashed_unless_in
    with HashCache() as hashes, ThreadPoolExecutor(HASHERS) as pool:

        def digest_of(path: str) -> FileHash:
            local = source.local_path(path)
            if listing is not None:
                pending = _leave_pending(hashes, local, listing.get(prefix + path))
                if pending is not None:
                    return pending
            return hashes.hash(local, lambda size: progress(path, size) if progress else None)

        for path, digest in zip(to_hash, pool.map(digest_of, to_hash), strict=True):
            if digest.size > MAX_FILE_BYTES:
                raise HubError(
                    f"{path} has {digest.size:,} bytes, more than the Hub takes in one file",
                    hint="save the weights in smaller shards (max_shard_size of save_pretrained)",
                )
            local = source.local_path(path)
            files[prefix + path] = LocalFile(prefix + path, local, digest, path in needed)
    state = _add_twin(checkpoint, source, files, prefix)
    return PushContent(checkpoint, files, left_out, state, base)


def _leave_pending(hashes: HashCache, local: Path, remote: RemoteFile | None) -> FileHash | None:
    size = stamp_of(local)[2]
    if size < LARGE or (remote is not None and remote.size == size):
        return None
    return hashes.known(local) or FileHash(size, "", "")


def _add_twin(
    checkpoint: Checkpoint, source: LocalSource, files: dict[str, LocalFile], prefix: str
) -> SLAState:
    """Put the state at the root of what is published, with a twin that matches it."""
    state_path = checkpoint.state_path or STATE_FILE
    data = source.read(state_path)
    state = read_state(data, name=state_path)
    if checkpoint.twin_path is not None:
        twin = read_twin(source.read(checkpoint.twin_path), name=checkpoint.twin_path)
        if twin.equals(state):
            state = twin
            if state_path == STATE_FILE and checkpoint.twin_path == TWIN_FILE:
                return state
    digest = hash_bytes(data)
    for path in (state_path, checkpoint.twin_path):
        if path is not None:
            files.pop(prefix + path, None)
    files[prefix + STATE_FILE] = LocalFile(prefix + STATE_FILE, data, digest, True)
    made = encode_twin(state, pt_sha256=digest.sha256)
    files[prefix + TWIN_FILE] = LocalFile(prefix + TWIN_FILE, made, hash_bytes(made), True)
    return state


def _check_names(paths: list[str], base: str) -> None:
    collisions = case_collisions(paths)
    if collisions:
        one, other = collisions[0]
        raise HubError(
            f"{one} and {other} differ only by case: on many systems one overwrites the other",
            hint="rename or delete one of them",
        )
    strange = [path for path in paths if "\\" in path or any(ord(c) < 32 for c in path)]
    if strange:
        raise HubError(f"{strange[0]!r} is not a name for a file on the Hub", hint="rename it")


def make_plan(
    content: PushContent,
    ref: RepoRef,
    parent: str | None,
    listing: Mapping[str, RemoteFile],
    card: CardText,
) -> PushPlan:
    """Compare with a repository's listing.

    Args:
        content: The local side.
        ref: Where it goes.
        parent: The repository's head.
        listing: Its files.
        card: The README to build on.

    Raises:
        FormatError: The README's metadata or markers are broken.
        HubError: A name collides with one in the repository where case does not count.
    """
    files = dict(content.files)
    readme = _card_file(content, ref, card)
    files[readme.path] = readme
    for one, other in case_collisions([*files, *listing]):
        if (one in files) != (other in files):
            raise HubError(
                f"{ref.repo_id}: {one} and {other} would differ only by case",
                hint="rename the local file, or delete the other one in the repository first",
            )
    entries = tuple(
        PlannedFile(path, _change(file, listing.get(path)), file)
        for path, file in sorted(files.items())
    )
    removed = tuple(superseded(files, listing))
    return PushPlan(ref, parent, entries, content.left_out, removed)


def _card_file(content: PushContent, ref: RepoRef, card: CardText) -> LocalFile:
    prefix = f"{content.base}/" if content.base else ""
    denoiser = content.checkpoint.denoiser
    facts = CardFacts(
        repo_id=ref.repo_id,
        folder=content.base,
        kind=content.checkpoint.kind,
        class_name=denoiser.class_name if denoiser else None,
        state=content.state,
        hashes={name: content.files[prefix + name].hash.sha256 for name in (STATE_FILE, TWIN_FILE)},
    )
    text = update_card(card.text, facts, mark=card.mark)
    check_metadata(text)
    data = text.encode()
    return LocalFile(prefix + README, data, hash_bytes(data), True)


def _change(file: LocalFile, remote: RemoteFile | None) -> Change:
    if remote is None:
        return "new"
    return "unchanged" if same_content(file.hash, remote) else "changed"


def same_content(local: FileHash, remote: RemoteFile) -> bool:
    """Whether a remote file holds the same bytes, by the hash the Hub has of it."""
    if remote.size != local.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == local.sha256
    return remote.blob_id is not None and remote.blob_id == local.git
