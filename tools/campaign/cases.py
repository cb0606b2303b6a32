"""The four writing commands, each with a checkpoint to work on and what it may leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.checks.verify import verify
from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState
from tests import factories
from tools.campaign.children import Done, Server
from tools.campaign.forkserver import LOCK
from tools.loopback_hub import LoopbackHub

DATA = Path(__file__).parents[2] / "tests" / "data"
Contents = dict[str, str]


def is_ours(path: str) -> bool:
    """Working files of ours: the lock, temporary files, staging folders."""
    return any(part.startswith(".sla_ckpt") for part in path.split("/")) or path.endswith(".tmp")


def is_backup(path: str) -> bool:
    return ".bak-" in path.rpartition("/")[2]


def contents(root: Path) -> Contents:
    """Path -> sha256 of everything below a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def live(found: Mapping[str, str]) -> Contents:
    """What a trainer or a loader sees: no working files, no backups."""
    return {p: digest for p, digest in found.items() if not is_ours(p) and not is_backup(p)}


def error_codes(root: Path) -> frozenset[str]:
    """What verify calls an error."""
    report = verify(root, VerifyOptions(tokens=4096))
    return frozenset(f.code for f in report.findings if f.level == "error")


@dataclass
class Case:
    """One command on one kind of checkpoint.

    Attributes:
        name: migrate, fix, regen or pull.
        before: The checkpoint before the command; never changed.
        args: The command line, ``{}`` for the checkpoint.
        server: Which fork server runs it.
        env: Further environment.
        may_vanish: Files that a killed run may leave absent (and a rerun brings back).
        rerun_codes: How a rerun may end.
        repeatable: Whether a rerun gives the same bytes wherever the first run died.
        reference: What a whole run leaves; from :meth:`measure`.
        seconds: How long a whole run took from its first change of a file on.
        events: How many changes of the file system it made.
        whole: The whole run.
    """

    name: str
    before: Path
    args: tuple[str, ...]
    server: str = "cli"
    env: Mapping[str, str] = field(default_factory=dict)
    may_vanish: frozenset[str] = frozenset()
    rerun_codes: tuple[int, ...] = (0,)
    repeatable: bool = True
    old: Contents = field(default_factory=dict)
    reference: Contents = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()
    seconds: float = 0.0
    events: int = 0
    whole: Done | None = None

    def fresh(self, root: Path) -> Path:
        """A copy of the checkpoint at ``root``."""
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        if self.before.exists():
            shutil.copytree(self.before, root)
        return root

    def command(self, root: Path) -> list[str]:
        return [word.replace("{}", str(root)) for word in self.args]

    def run(self, server: Server, root: Path, **options: object) -> Done:
        return server.run(*self.command(root), root=root, env=self.env, **options)  # type: ignore[arg-type]

    def measure(self, server: Server, root: Path) -> Done:
        """A whole run: what it leaves, how many changes it makes, how long they take."""
        self.fresh(root)
        self.old = live(contents(root)) if root.exists() else {}
        errors_before = error_codes(root) if self.old else frozenset()
        self.run(server, root)  # the first one is slower
        self.fresh(root)
        start = time.monotonic()
        server.start(*self.command(root), root=root, env=self.env, announce=True, log=True)
        assert server.wait_for_write(), server.wait().text
        begun = time.monotonic()
        done = server.wait()
        assert done.code == 0, done.text
        self.seconds = done.seconds - (begun - start)
        # A sync of the folder above is written down, but it is no change below.
        self.events = sum(paths != ("..",) for _, paths, _ in done.events)
        self.whole = done
        found = contents(root)
        self.reference = live(found)
        assert not [path for path in found if is_ours(path)], sorted(found)
        self.allowed = errors_before | error_codes(root)
        return done

    def check_killed(self, root: Path, *, rewritten: bool = False) -> str:
        """Whether what a killed run left is whole; the kind of it (old, new, between, absent).

        ``rewritten`` says that a backup may be of another writer's result.
        """
        found = contents(root) if root.exists() else {}
        seen = live(found)
        for path, digest in seen.items():
            known = {self.old.get(path), self.reference.get(path)}
            assert digest in known or not self.repeatable, f"{path} is neither old nor new"
        for path in self.old.keys() - self.may_vanish:
            assert path in seen or path not in self.reference, f"{path} is gone"
        for path, digest in self.old.items():
            if self.reference.get(path) == digest:
                assert seen[path] == digest, f"{path} changed"
        for path in filter(is_backup, found):
            if is_ours(path) or rewritten:
                continue
            original = path.partition(".bak-")[0]
            assert found[path] == self.old.get(original), f"{path} is not the old {original}"
        if not seen:
            return "absent"
        if seen == self.old:
            return "old"
        return "new" if seen == self.reference else "between"

    def check_rerun(self, done: Done, root: Path) -> None:
        """Whether the command, run again, came to its end and left nothing of the killed run."""
        assert done.code in self.rerun_codes, done.text
        assert "Traceback" not in done.stderr, done.text
        found = contents(root)
        # A run with nothing to write takes no lock; the lock file of a killed one is harmless.
        left = [path for path in found if is_ours(path) and path != LOCK]
        left += [str(path) for path in root.rglob(".sla_ckpt*") if path.is_dir()]
        assert not left, f"left behind: {left}"
        if self.repeatable:
            assert live(found) == self.reference, done.text
        else:
            assert live(found).keys() == self.reference.keys()
        assert error_codes(root) <= self.allowed, done.text


def trainer_checkpoint(folder: Path) -> Path:
    """A trainer's checkpoint in which state, optimizer and manifest are to be repaired."""
    shutil.copytree(DATA / "checkpoints" / "out_full" / "checkpoint-3", folder)
    saved = factories.state("16:bf16")
    # Settings that a file lacks are SLA101.
    (folder / STATE_FILE).write_bytes(encode_state(SLAState(saved.pairs, None)))
    (folder / "random_states_0.pkl").write_bytes(b"\x80\x02}.")
    shutil.copy(DATA / "checkpoints" / "optimizer_trap" / "checkpoint-3" / "optimizer.bin", folder)
    manifest = folder / "checkpoint_manifest.json"
    listed = json.loads(manifest.read_bytes())
    listed["files"] = [name for name in listed["files"] if name != STATE_FILE]
    manifest.write_text(json.dumps(listed))
    return folder


def migrate_case(folder: Path) -> Case:
    return Case(
        "migrate",
        trainer_checkpoint(folder / "before" / "checkpoint-3"),
        ("migrate", "{}", "--to", "safetensors"),
    )


def fix_case(folder: Path) -> Case:
    return Case(
        "fix",
        trainer_checkpoint(folder / "before" / "checkpoint-3"),
        ("verify", "{}", "--fix", "--tokens", "4096"),
    )


def regen_case(folder: Path, *, present: bool) -> Case:
    """A tiny Flux model that lost its state, or has a worse one with its twin."""
    from sla_ckpt.formats.twin import write_state
    from tests.regen.lost_state import make_calls, make_lost_checkpoint, true_state

    checkpoint = make_lost_checkpoint(folder / "before")
    calls = make_calls(folder / "calls.safetensors", count=4)
    (checkpoint / "checkpoint_manifest.json").write_text(json.dumps({"version": 1, "files": []}))
    if present:
        write_state(checkpoint, true_state(seed=99))
    return Case(
        "regen",
        checkpoint,
        (
            *("regen", "{}", "--device", "cpu", "--inputs", str(calls), "--topk", "0.5"),
            *("--evaluations", "3", "--draws", "1"),
        ),
        server="regen",
        may_vanish=frozenset({TWIN_FILE}),
        rerun_codes=(0, 1),
        repeatable=False,
    )


def publish(hub: LoopbackHub, repo: str, folder: Path, seed: int) -> Path:
    """A checkpoint in two shards of random weights, put into the Hub's repository."""
    import random

    root = folder / f"published-{seed}"
    factories.write_full_checkpoint(root, factories.state(seed=seed), shards=2)
    factories.write_full_shards(root / "transformer", random.Random(seed).randbytes)
    files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    hub.add_files(repo, files)
    return root


def pull_case(hub: LoopbackHub, folder: Path, *, over: bool) -> Case:
    """A pull into a new folder, or with --force over an older revision."""
    repo = f"alice/{'two' if over else 'one'}"
    hub.add_repo(repo)
    before = folder / "before" / "model"
    if over:
        shutil.copytree(publish(hub, repo, folder, 1), before)
    publish(hub, repo, folder, 2)
    return Case(
        "pull",
        before,
        ("pull", repo, "{}", *(["--force"] if over else [])),
        env={"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"},
    )


def inodes(root: Path) -> dict[str, int]:
    return {
        path.relative_to(root).as_posix(): os.lstat(path).st_ino
        for path in root.rglob("*")
        if path.is_file()
    }
