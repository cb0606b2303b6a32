"""The main job on a real, tiny checkpoint: verify, break, verify, regenerate, push, pull, verify.

Run it through tools/demo.sh, which sets everything up. Everything happens in a temporary folder
and on 127.0.0.1; nothing is downloaded and nothing leaves the machine.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from examples.practice_run import make_caches, make_checkpoint
from sla_ckpt import SLASettings, SLAState, encode_state, read_state
from sla_ckpt.state import PairKey

#: 1024 pixels square at 16 pixels a token would take minutes on a CPU; 384 take seconds.
RESOLUTION = "384x384"


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def sla_ckpt(*args: str | Path, expect: int, env: dict[str, str] | None = None) -> None:
    """Run the command line as a user would and insist on its exit code."""
    words = [str(arg) for arg in args]
    print(f"\n$ sla-ckpt {' '.join(words)}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "sla_ckpt", *words], env={**os.environ, **(env or {})}, check=False
    )
    if result.returncode != expect:
        raise SystemExit(f"demo failed: exit code {result.returncode}, expected {expect}")


def malicious_state() -> bytes:
    """A torch-like zip whose pickle would run a command if anything executed it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"cos\nsystem\n(S'echo pwned'\ntR.")
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
    return buffer.getvalue()


def break_in_five_ways(good: Path, folder: Path) -> list[tuple[str, Path]]:
    """Copies of the checkpoint, each with one thing wrong that happens in real life."""
    state = read_state(good / "sla_attention.pt")
    (key, projection), *_ = state.pairs.items()
    wrong_dtype = SLAState({PairKey(key.head_dim, "fp16"): projection}, state.settings)
    dense = SLASettings(blkq=32)

    def state_bytes(data: bytes) -> Callable[[Path], None]:
        return lambda copy: (copy / "sla_attention.pt").write_bytes(data) and None

    def lose_a_shard(copy: Path) -> None:
        sorted((copy / "transformer").glob("*-00002-of-*.safetensors"))[0].unlink()

    data = (good / "sla_attention.pt").read_bytes()
    ways: list[tuple[str, Callable[[Path], None]]] = [
        ("the upload was cut short", state_bytes(data[: len(data) // 2])),
        ("saved for fp16, needed for bf16", state_bytes(encode_state(wrong_dtype))),
        (
            "trained with blkq 32, as a documentation example has it",
            state_bytes(encode_state(SLAState(state.pairs, dense))),
        ),
        ("somebody else's file, with a command in its pickle", state_bytes(malicious_state())),
        ("one shard of the weights was not copied", lose_a_shard),
    ]
    broken = []
    for number, (what, damage) in enumerate(ways, 1):
        copy = folder / "broken" / f"checkpoint-{number}"
        shutil.copytree(good, copy)
        damage(copy)
        broken.append((what, copy))
    return broken


def lose_and_regenerate(checkpoint: Path) -> None:
    """Delete the state, see what verify says, regenerate it from the caches beside the run."""
    import torch

    (checkpoint / "sla_attention.pt").unlink()
    sla_ckpt("verify", checkpoint, expect=1)
    device = [] if torch.cuda.is_available() else ["--device", "cpu"]
    effort = ["--steps", "1", "--draws", "1", "--evaluations", "6"]
    sla_ckpt("regen", checkpoint, *effort, *device, expect=0)
    sla_ckpt("verify", checkpoint, expect=0)


def publish_and_fetch(checkpoint: Path, folder: Path) -> None:
    """push, push again, remote verify, pull, verify; the real Hub client, a Hub of our own."""
    from tools.loopback_hub.server import LoopbackHub

    with LoopbackHub(folder / "hub") as hub:
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token("write", user="alice"),
            "HF_HOME": str(folder / "hf-home"),
            "HF_HUB_DISABLE_XET": "1",
            "SLA_CKPT_CACHE": str(folder / "sla-ckpt-cache"),
        }
        repo, fetched = "alice/tiny-flux-sla", folder / "fetched"
        sla_ckpt("push", repo, checkpoint, "--dry-run", expect=0, env=env)
        sla_ckpt("push", repo, checkpoint, expect=0, env=env)
        sla_ckpt("push", repo, checkpoint, expect=0, env=env)
        sla_ckpt("verify", repo, "--against", checkpoint, expect=0, env=env)
        sla_ckpt("pull", repo, fetched, expect=0, env=env)
        sla_ckpt("verify", fetched, expect=0)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sla-ckpt-demo-") as root:
        folder = Path(root)
        title("a tiny Flux checkpoint trained with SLA")
        checkpoint = make_checkpoint(folder)
        make_caches(folder)
        sla_ckpt("verify", checkpoint, "--resolution", RESOLUTION, expect=0)
        sla_ckpt("inspect", checkpoint, expect=0)
        title("five ways in which such checkpoints break")
        for what, copy in break_in_five_ways(checkpoint, folder):
            print(f"\n-- {what}", flush=True)
            sla_ckpt("verify", copy, expect=1)
        title("the file is lost, and comes back")
        lose_and_regenerate(checkpoint)
        title("published and fetched, through a Hub on 127.0.0.1")
        publish_and_fetch(checkpoint, folder)
        title("done: every step gave the exit code it should")


if __name__ == "__main__":
    main()
