"""What the folder of a page holds: small but real checkpoints, and a Hub on 127.0.0.1.

A page names what it starts from with ``<!-- docs: given NAME -->``:

| name | what is there |
|---|---|
| ``nothing`` | links to examples/ and tools/, as in a checkout |
| ``checkout`` | the pages as well, copied, and all that they are made from |
| ``run`` | a run: output/checkpoint-500 with the trainer's files, cache/ |
| ``checkpoint`` | the same without the trainer's files, as for inference |
| ``older run`` | the same, its settings as an older trainer wrote them |
| ``published`` | output/checkpoint-500 and, on the Hub, the same as org/model |
| ``upload without state`` | as ``checkpoint``, and org/model on the Hub lacks the state |
| ``pipeline`` | on the Hub: the pipelines org/model (with SLA) and org/base, and org/lora |
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.docs.blocks import ROOT
from tools.loopback_hub import LoopbackHub

HEAD_DIM = 128


class Sandbox:
    """Makes folders for pages below ``root``; what is slow to make is made once and copied.

    Attributes:
        hub: The running Hub; each page meets an empty one under the same address.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hubs = 0
        self.hub = self._start_hub(0)
        self._port = int(self.hub.url.rpartition(":")[2])
        self.token = ""

    def close(self) -> None:
        self.hub.stop()

    def enter(self, page: str, given: str) -> Path:
        """An empty Hub and a new folder for ``page``, filled as ``given`` says."""
        self.hub.stop()
        self.hub = self._start_hub(self._port)
        self.hub.add_user("me", ["org"])
        self.token = self.hub.token("write", user="me")
        home = self._root / f"page-{self._hubs}" / "home" / "me"
        home.mkdir(parents=True)
        for name in ("examples", "tools"):
            (home / name).symlink_to(ROOT / name)
        _GIVEN[given](self, home)
        return home

    def _start_hub(self, port: int) -> LoopbackHub:
        self._hubs += 1
        return LoopbackHub(self._root / f"hub-{self._hubs}", port=port).start()

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder ``name``, made at the first call."""
        folder = self._root / "made" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            with contextlib.redirect_stdout(io.StringIO()):
                make(folder)
        return folder

    def publish(self, repo: str, folder: Path) -> None:
        """A repository with the files of a folder, put there without any client."""
        paths = (path for path in folder.rglob("*") if path.is_file())
        self.hub.add_repo(repo, files={p.relative_to(folder).as_posix(): p for p in paths})


def _run(
    sandbox: Sandbox, home: Path, *, name: str = "run", older: bool = False, trainer: bool = True
) -> None:
    from examples.practice_run import make_caches, make_checkpoint

    def make(folder: Path) -> None:
        make_checkpoint(folder, head_dim=HEAD_DIM, older=older, trainer=trainer)
        make_caches(folder)

    made = sandbox.made(name, make)
    shutil.copytree(made, home, dirs_exist_ok=True)


def _checkout(sandbox: Sandbox, home: Path) -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / page, home)
    shutil.copytree(ROOT / "docs", home / "docs")
    for name in ("benchmarks", "sla_ckpt", "tests"):
        (home / name).symlink_to(ROOT / name)


def _published(sandbox: Sandbox, home: Path) -> None:
    from sla_ckpt.hub.push import PushOptions, push

    _run(sandbox, home)
    push("org/model", home / "output", PushOptions(token=sandbox.token))


def _upload_without_state(sandbox: Sandbox, home: Path) -> None:
    _run(sandbox, home, name="checkpoint", trainer=False)
    state = home / "output" / "checkpoint-500" / "sla_attention.pt"
    data = state.read_bytes()
    state.unlink()
    sandbox.publish("org/model", state.parent)
    state.write_bytes(data)


def _pipeline(sandbox: Sandbox, home: Path) -> None:
    from tools.docs.pipelines import make_base, make_lora, make_sla_pipeline

    sandbox.publish("org/model", sandbox.made("pipeline", make_sla_pipeline))
    sandbox.publish("org/base", sandbox.made("base", make_base))
    sandbox.publish("org/lora", sandbox.made("lora", make_lora))


_GIVEN: dict[str, Callable[[Sandbox, Path], None]] = {
    "nothing": lambda sandbox, home: None,
    "checkout": _checkout,
    "run": _run,
    "checkpoint": functools.partial(_run, name="checkpoint", trainer=False),
    "older run": functools.partial(_run, name="older run", older=True),
    "published": _published,
    "upload without state": _upload_without_state,
    "pipeline": _pipeline,
}


def environment(sandbox: Sandbox, root: Path) -> dict[str, str]:
    """The variables under which blocks run: the loopback Hub, no user settings, one thread."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ
    }
    return {
        **kept,
        "HOME": str(root),
        "HF_HOME": str(root / "hf-home"),
        "HF_ENDPOINT": sandbox.hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "SLA_CKPT_CACHE": str(root / "sla-ckpt-cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
