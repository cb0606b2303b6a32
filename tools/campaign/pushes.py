"""push against a Hub that fails at random: every revision whole, a rerun completes, no token shown.

Each run renews a checkpoint (weights and state, or the state alone), sets one to three random
faults, pushes, looks at every revision that the repository ever had, takes the faults away, pushes
again, and looks again.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sla_ckpt.formats.simpletuner import encode_state
from tests import factories
from tools.campaign.children import Done, Server
from tools.campaign.kills import scratch
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"
WORKERS = 6
BLOCK = 20
#: Which requests a fault may meet: every kind that a push makes.
TARGETS = (
    "GET /api/whoami",
    "POST /api/repos/create",
    "GET /api/models/",
    "POST /api/models/.*/paths-info/",
    "POST /api/models/.*/preupload/",
    "POST /alice/model.git/info/lfs",
    "PUT /_lfs/",
    "POST /_cas/",
    "GET /_cas/",
    "GET /api/models/.*/xet-write-token/",
    "POST /api/models/.*/commit/",
    "POST /api/models/.*/branch/",
    "GET /alice/model/resolve/",
    "GET /api/models/.*/tree/",
    "POST /api/validate-yaml",
    ".",
)
STATUSES = (400, 401, 403, 404, 408, 409, 412, 413, 422, 429, 500, 502, 503, 504)


@dataclass
class Tally:
    """What one block counted."""

    xet: bool = False
    runs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    struck: int = 0
    overtaken: int = 0
    killed: int = 0
    outputs: int = 0
    revisions: int = 0
    versions: int = 0
    requests: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)


def campaign(count: int, seed: int, note: Callable[[str], None]) -> dict[str, Any]:
    """``count`` runs, in blocks of 20 with a Hub each; every tenth block takes xet, others LFS."""
    started = time.monotonic()
    blocks = [(n, min(BLOCK, count - n * BLOCK)) for n in range(-(-count // BLOCK))]
    with ExitStack() as stack, ThreadPoolExecutor(WORKERS) as pool:
        # The fork servers first: their children must not inherit a Hub's sockets.
        servers: dict[bool, SimpleQueue[Server]] = {False: SimpleQueue(), True: SimpleQueue()}
        for number in range(WORKERS):
            xet = number == WORKERS - 1
            servers[xet].put(stack.enter_context(Server("hub", xet=xet)))
        jobs = [pool.submit(_block, servers, size, seed, n, note) for n, size in blocks]
        tallies = [job.result() for job in jobs]
    faults = [fault for tally in tallies for fault in tally.faults]
    return {
        "runs": sum(t.runs for t in tallies),
        "runs_over_xet": sum(t.runs for t in tallies if t.xet),
        "faults_set": dict(sum((t.actions for t in tallies), Counter())),
        "requests_that_met_a_fault": sum(t.struck for t in tallies),
        "overtaken_by_another_push": sum(t.overtaken for t in tallies),
        "killed_on_the_way": sum(t.killed for t in tallies),
        "exit_codes_under_faults": dict(sum((t.codes for t in tallies), Counter())),
        "requests": sum(t.requests for t in tallies),
        "revisions_looked_at": sum(t.revisions for t in tallies),
        "versions_published": sum(t.versions for t in tallies),
        "outputs_and_files_searched_for_the_token": sum(t.outputs for t in tallies),
        "faults": faults,
        "seed": seed,
        "wall_seconds": round(time.monotonic() - started, 1),
    }


def _hub(server: Server, folder: Path, *, xet: bool) -> LoopbackHub:
    return LoopbackHub(folder / "hub", xet=xet, port=server.hub_port)


def _block(
    servers: dict[bool, SimpleQueue[Server]],
    count: int,
    seed: int,
    number: int,
    note: Callable[[str], None],
) -> Tally:
    tally = Tally(xet=number % 10 == 0)
    server = servers[tally.xet].get()
    try:
        rng = random.Random(f"{seed}-{number}")
        with scratch() as folder, _hub(server, folder, xet=tally.xet) as hub:
            repository = Repository(hub, server, folder / "work", rng, tally)
            for _ in range(count):
                repository.one_run()
                tally.runs += 1
                if tally.faults and tally.faults[-1]["run"] == tally.runs - 1:
                    note(f"block {number}: {json.dumps(tally.faults[-1], indent=1)}")
        note(f"block {number}: {tally.runs} runs, {dict(tally.codes)}, {len(tally.faults)} faults")
        return tally
    finally:
        servers[tally.xet].put(server)


@dataclass
class Repository:
    hub: LoopbackHub
    server: Server
    folder: Path
    rng: random.Random
    tally: Tally
    known: set[tuple[tuple[str, ...], str]] = field(default_factory=set)
    foreign: int = 0

    def __post_init__(self) -> None:
        self.checkpoint = self.folder / "checkpoint-500"
        self.secret = self.hub.token("write")
        self.env = {
            "HF_TOKEN": self.secret,
            "HOME": str(self.folder / "home"),
            "SLA_CKPT_HTTP_TIMEOUT": "2",
        }

    def one_run(self) -> None:
        self._renew()
        options = self._options()
        before = len(self.hub.all_commits(REPO)) if self.hub.has_repo(REPO) else 0
        described = self._set_faults()
        self.hub.clear_requests()
        try:
            done = self._push(options, overtake=self.rng.random() < 0.1)
            self.tally.codes[f"exit {done.code}"] += 1
            assert done.code in (0, 1, 2, -9), done.text
            assert "Traceback" not in done.stderr, done.text
            self._look()
            self.hub.faults.clear()
            again = self._push(options)
            assert again.code == 0, again.text
            self._look()
            self._arrived(options)
            third = self._push(options) if self.rng.random() < 0.1 else None
            assert third is None or third.code == 0, third and third.text
            self._count(before, options)
        except AssertionError as error:
            text = str(error).replace(str(self.folder), "…").replace(self.hub.url, "http://hub")
            assert self.secret not in text
            self.tally.faults.append(
                {
                    "run": self.tally.runs,
                    "options": options,
                    "faults": described,
                    "what": text[:3000],
                }
            )
            self.hub.faults.clear()

    def _renew(self) -> None:
        seed = self.rng.randrange(1 << 30)
        weights_too = not self.checkpoint.exists() or self.rng.random() < 0.4
        state = factories.state(seed=seed)
        if weights_too:
            factories.write_full_checkpoint(self.checkpoint, state, shards=2)
            folder = self.checkpoint / "transformer"
            factories.write_full_shards(folder, self.rng.randbytes, (128, 512))
        else:
            (self.checkpoint / "sla_attention.pt").write_bytes(encode_state(state))
        self.known.add(self._version({p: self._sha(p) for p in self._files()}))
        self.tally.versions += 1

    def _files(self) -> list[str]:
        found = (p for p in self.checkpoint.rglob("*") if p.is_file())
        return sorted(p.relative_to(self.checkpoint).as_posix() for p in found)

    def _sha(self, path: str) -> str:
        import hashlib

        return hashlib.sha256((self.checkpoint / path).read_bytes()).hexdigest()

    @staticmethod
    def _version(files: dict[str, str]) -> tuple[tuple[str, ...], str]:
        """What must belong together: the hashes of all weights, and of the state."""
        weights = tuple(
            digest
            for path, digest in sorted(files.items())
            if path.endswith(".safetensors") and "/" in path
        )
        return weights, files.get("sla_attention.pt", "")

    def _options(self) -> list[str]:
        kind = self.rng.random()
        if self.hub.has_repo(REPO) and kind < 0.1:
            return ["--create-pr"]
        if kind < 0.2:
            return ["--revision", f"branch-{self.rng.randrange(3)}"]
        return []

    def _set_faults(self) -> list[str]:
        described = []
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            target = self.rng.choice(TARGETS)
            action = self.rng.choice(("status", "status", "drop", "lose", "stall", "corrupt"))
            times = self.rng.choice((1, 1, 1, 2, 3, None))
            skip = self.rng.choice((0, 0, 0, 1, 2, 5))
            options: dict[str, Any] = {
                "times": times,
                "skip": skip,
                "phase": self.rng.choice(("request", "response")),
            }
            if action == "status":
                options["status"] = self.rng.choice(STATUSES)
                if options["status"] in (429, 503) and self.rng.random() < 0.3:
                    options["retry_after"] = self.rng.choice((0, 0.1, 100))
                if self.rng.random() < 0.3:
                    # A server that shows what it was sent must not make us show it.
                    options["message"] = f"bad token Bearer {self.secret} in request"
            if action in ("drop", "stall", "corrupt"):
                options["after"] = self.rng.choice((0, 0, 10, 100, 1000, 50_000))
            if action == "stall":
                options["seconds"] = self.rng.choice((0.5, 2.5))
                options["times"] = 1
            self.hub.faults.add(target, action, **options)
            self.tally.actions[action] += 1
            shown = {k: v for k, v in options.items() if k != "message"}
            described.append(f"{action} {target} {shown}")
        return described

    def _push(self, options: list[str], *, overtake: bool = False) -> Done:
        more = ["--format", "json"] if self.rng.random() < 0.4 else []
        self.server.start(
            *("push", REPO, self.checkpoint, *options, *more),
            root=self.folder / "home",
            env=self.env,
        )
        ended = threading.Event()
        helper = None
        if overtake and self.hub.has_repo(REPO):
            helper = threading.Thread(target=self._overtake, args=(ended,))
            helper.start()
        if self.hub.faults.as_json() and self.rng.random() < 0.1:
            time.sleep(self.rng.uniform(0.1, 1.0))
            self.server.kill()
            self.tally.killed += 1
        try:
            done = self.server.wait(240)
        finally:
            ended.set()
            if helper is not None:
                helper.join()
        self.tally.struck += sum(bool(record.fault) for record in self.hub.requests)
        self.tally.requests += len(self.hub.requests)
        self.hub.clear_requests()
        self._search(done)
        return done

    def _overtake(self, ended: threading.Event) -> None:
        """Somebody else commits to main while this push is on its way."""
        while not ended.is_set():
            if self.hub.matching("POST .*/preupload/"):
                self.foreign += 1
                self.hub.add_files(REPO, {f"notes/{self.foreign}.txt": f"{self.foreign}"})
                self.tally.overtaken += 1
                return
            time.sleep(0.01)

    def _search(self, done: Done) -> None:
        """The token is in no output and in no file that the command left."""
        places = [self.folder / "home", self.server.scratch, self.checkpoint]
        texts = [done.stdout.encode(), done.stderr.encode()]
        texts += [
            path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()
        ]
        self.tally.outputs += len(texts)
        assert not any(self.secret.encode() in text for text in texts), "the token was shown"
        if "--format" in done.args and done.code in (0, 1):
            json.loads(done.stdout)

    def _look(self) -> None:
        """Every revision that ever was is one of the versions that were pushed, whole."""
        if not self.hub.has_repo(REPO):
            return
        for made in self.hub.all_commits(REPO):
            self.tally.revisions += 1
            files = {path: entry.sha256 or entry.oid for path, entry in made.files.items()}
            weights, state = self._version(files)
            if weights or state:
                assert (weights, state) in self.known, f"{made.title}: a mix of versions"

    def _arrived(self, options: list[str]) -> None:
        """The rerun published what is here now."""
        now = self._version({p: self._sha(p) for p in self._files()})
        refs = self.hub.refs(REPO)
        if "--create-pr" in options:
            heads = [ref for ref in refs if ref.startswith("refs/pr/")] + ["main"]
        else:
            heads = [options[1] if options else "main"]
        found = set()
        for head in heads:
            files = self.hub.files(REPO, head)
            found.add(self._version({path: sha for path, (_, sha) in files.items()}))
        assert now in found, "what was pushed is not there"

    def _count(self, before: int, options: list[str]) -> None:
        """One commit for what changed, however often it had to be tried."""
        made = self.hub.all_commits(REPO)
        now = self._version({p: self._sha(p) for p in self._files()})
        parents = {commit.id: commit for commit in made}
        new = []
        for commit in made[before:]:
            files = {path: entry.sha256 or entry.oid for path, entry in commit.files.items()}
            parent = parents.get(commit.parent or "")
            if parent is not None:
                assert dict(parent.files) != dict(commit.files), "a commit that changes nothing"
            if self._version(files) == now and "with sla-ckpt" in commit.title:
                new.append(commit)
        branches = 1 + bool("--create-pr" in options)
        assert len(new) <= branches, f"{len(new)} commits of one version: {[c.title for c in new]}"
