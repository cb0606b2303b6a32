"""``sla-ckpt pull`` as a process against the loopback Hub."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.errors import WriteError
from sla_ckpt.formats.simpletuner import encode_state, read_state
from sla_ckpt.formats.twin import encode_twin
from sla_ckpt.hub.download import fetch
from sla_ckpt.hub.remote import RemoteFile
from sla_ckpt.state import STATE_FILE, TWIN_FILE
from tests.factories import (
    safetensors_bytes,
    state,
    write_denoiser,
    write_full_checkpoint,
    write_lora,
)
from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with some weights, as a trainer leaves it."""
    folder = write_full_checkpoint(tmp_path / "out" / "checkpoint-500")
    (folder / WEIGHTS).write_bytes(safetensors_bytes({"w": (600, 700)}, "BF16"))
    (folder / "optimizer.bin").write_bytes(b"\x80\x02}.")
    (folder / "training_state.json").write_text('{"global_step": 500}')
    names = sorted(files_of(folder))
    (folder / "checkpoint_manifest.json").write_text(json.dumps({"version": 1, "files": names}))
    (folder / ".guard").write_text("complete\n")
    return folder


def upload(hub: LoopbackHub, folder: Path, prefix: str = "", repo: str = REPO) -> None:
    hub.add_repo(repo, files={prefix + path: data for path, data in files_of(folder).items()})


def pull(cli: Runner, hub: LoopbackHub, *args: object, code: int = 0, **more: Any) -> Any:
    done = cli("pull", *args, "--format", "json", hub=hub, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_what_was_pushed_comes_back_byte_for_byte(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    pushed = cli("push", REPO, checkpoint, "--include-training-state", hub=any_hub)
    assert pushed.returncode == 0, pushed.stderr
    result = pull(cli, any_hub, REPO, tmp_path / "back", "--for", "resume")
    back, original = files_of(tmp_path / "back"), files_of(checkpoint)
    assert {path: back[path] for path in original} == original
    assert set(back) - set(original) == {TWIN_FILE, "README.md"}
    assert result["report"]["ok"] and result["commit"] == any_hub.commits(REPO)[0].id


def test_inference_leaves_training_state_and_ema_on_the_hub(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    write_denoiser(checkpoint / "transformer_ema")
    upload(hub, checkpoint)
    result = pull(cli, hub, REPO, tmp_path / "back")
    assert set(files_of(tmp_path / "back")) == {STATE_FILE, WEIGHTS, "transformer/config.json"}
    assert result["left_out"]["optimizer.bin"] == "training state"
    assert "EMA" in result["left_out"]["transformer_ema/config.json"]
    pull(cli, hub, REPO, tmp_path / "more", "--include", "transformer_ema/*")
    assert "transformer_ema/config.json" in files_of(tmp_path / "more")


def test_the_target_is_named_after_the_repository(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    pull(cli, hub, REPO, cwd=tmp_path)
    assert (tmp_path / "model" / STATE_FILE).is_file()


def test_a_revision_and_a_folder(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint, prefix="checkpoint-500/")
    old = hub.commits(REPO)[0].id
    hub.add_files(REPO, {f"checkpoint-500/{STATE_FILE}": encode_state(state(seed=9))})
    first = pull(cli, hub, f"{REPO}@{old}/checkpoint-500", tmp_path / "old")
    pull(cli, hub, f"{hub.url}/{REPO}/tree/main/checkpoint-500", tmp_path / "new")
    assert first["commit"] == old
    assert files_of(tmp_path / "old")[STATE_FILE] == files_of(checkpoint)[STATE_FILE]
    assert read_state(tmp_path / "new" / STATE_FILE).equals(state(seed=9))
    pull(cli, hub, f"{REPO}/checkpoint-500", tmp_path / "old2", "--revision", old)
    assert files_of(tmp_path / "old2") == files_of(tmp_path / "old")


def test_a_denoiser_folder_brings_the_state_from_beside_it(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    result = pull(cli, hub, f"{REPO}/transformer", tmp_path / "back")
    assert result["report"]["ok"]
    assert set(files_of(tmp_path / "back")) == {
        STATE_FILE,
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_several_checkpoints_and_none_at_the_root_asks_which(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    files = files_of(checkpoint)
    hub.add_repo(
        REPO,
        files={f"checkpoint-{n}/{path}": data for n in (5, 10) for path, data in files.items()},
    )
    error = pull(cli, hub, REPO, tmp_path / "back", code=2)
    assert f"{REPO}/checkpoint-10" in error and not (tmp_path / "back").exists()


def test_dry_run_lists_and_writes_nothing(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    done = cli("pull", REPO, tmp_path / "back", "--dry-run", hub=hub)
    assert done.returncode == 0 and STATE_FILE in done.stdout and "would fetch" in done.stdout
    assert "optimizer.bin (training state)" in done.stdout
    assert not (tmp_path / "back").exists()


def test_a_second_pull_fetches_nothing(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    pull(cli, hub, REPO, tmp_path / "back")
    before = files_of(tmp_path / "back")
    hub.clear_requests()
    result = pull(cli, hub, REPO, tmp_path / "back")
    assert not result["fetched"] and len(result["present"]) == 3
    assert not hub.matching("/resolve/|/_cdn/") and files_of(tmp_path / "back") == before


def test_a_different_local_file_is_not_overwritten_unless_told(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    target = tmp_path / "back"
    target.mkdir()
    (target / STATE_FILE).write_bytes(b"mine")
    error = pull(cli, hub, REPO, target, code=2)
    assert STATE_FILE in error and "--force" in error
    assert files_of(target) == {STATE_FILE: b"mine"}
    pull(cli, hub, REPO, target, "--force")
    after = files_of(target)
    assert after[STATE_FILE] == files_of(checkpoint)[STATE_FILE]
    assert [data for path, data in after.items() if ".bak-" in path] == [b"mine"]


def test_a_repository_without_the_state_names_the_command_to_run(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / STATE_FILE).unlink()
    upload(hub, checkpoint)
    done = cli("pull", REPO, tmp_path / "back", hub=hub)
    assert done.returncode == 1, done.stderr
    assert "SLA001" in done.stdout and f"sla-ckpt regen {tmp_path / 'back'}" in done.stdout
    assert STATE_FILE in done.stderr.splitlines()[0]  # said before the download starts


def test_a_twin_alone_gives_the_state_file_back(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / STATE_FILE).unlink()
    (checkpoint / TWIN_FILE).write_bytes(encode_twin(state(), pt_sha256="0" * 64))
    upload(hub, checkpoint)
    assert pull(cli, hub, REPO, tmp_path / "back")["report"]["ok"]
    assert read_state(tmp_path / "back" / STATE_FILE).equals(state())


def test_a_lora_with_its_state(hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    upload(hub, write_lora(tmp_path / "lora", state()))
    assert pull(cli, hub, REPO, tmp_path / "back")["report"]["kind"] == "lora"


def test_an_interrupted_download_goes_on_where_it_stopped(
    any_hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    folder = write_full_checkpoint(tmp_path / "checkpoint-1")
    (folder / WEIGHTS).write_bytes(safetensors_bytes({"w": (2000, 2000)}, "BF16"))
    size = (folder / WEIGHTS).stat().st_size
    cli("push", REPO, folder, hub=any_hub)
    target = tmp_path / "back"
    any_hub.faults.add("GET .*_cdn.*diffusion_pytorch", "stall", phase="response", after=size // 2)
    process = cli.start("pull", REPO, target, hub=any_hub)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size >= size // 4 for path in target.rglob("*") if path.is_file()):
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not (target / WEIGHTS).exists()
    any_hub.faults.clear()
    any_hub.clear_requests()
    pull(cli, any_hub, REPO, target)
    assert (target / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert any_hub.bytes_sent < size * 0.8
    assert not [path for path in target.iterdir() if path.name.startswith(".sla")]


@pytest.mark.parametrize("after", [0, 300_000])
def test_a_connection_that_breaks_is_taken_up_again(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path, after: int
) -> None:
    upload(hub, checkpoint)
    hub.faults.add("GET .*_cdn.*diffusion_pytorch", "drop", phase="response", after=after, times=2)
    pull(cli, hub, REPO, tmp_path / "back")
    assert files_of(tmp_path / "back")[WEIGHTS] == files_of(checkpoint)[WEIGHTS]


def test_a_stalled_download_ends(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.faults.add("GET .*_cdn.*diffusion_pytorch", "stall", phase="response", after=1000, times=1)
    pull(cli, hub, REPO, tmp_path / "back", env={"SLA_CKPT_HTTP_TIMEOUT": "0.7"})
    assert files_of(tmp_path / "back")[WEIGHTS] == files_of(checkpoint)[WEIGHTS]


def test_wrong_bytes_are_fetched_again_and_never_placed(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    corrupt = {"match": "GET .*_cdn.*diffusion_pytorch", "action": "corrupt", "after": 5000}
    hub.faults.add(**corrupt)
    pull(cli, hub, REPO, tmp_path / "back")
    assert files_of(tmp_path / "back")[WEIGHTS] == files_of(checkpoint)[WEIGHTS]
    hub.faults.add(**corrupt, times=None)
    error = pull(cli, hub, REPO, tmp_path / "bad", code=2)
    assert "sha256" in error and "next:" in error
    assert (
        not (tmp_path / "bad" / WEIGHTS).exists() and not (tmp_path / "bad" / STATE_FILE).exists()
    )


def test_a_full_disk_is_seen_before_the_download(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.add_virtual_file(REPO, "transformer/huge.safetensors", 10**13)
    hub.clear_requests()
    error = pull(cli, hub, REPO, tmp_path / "back", code=2)
    assert "space" in error and "next:" in error
    assert not hub.matching("GET .*/resolve/.*safetensors")


def test_a_disk_that_fills_up_during_the_download(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    """The shell's file size limit stands for a full disk: the write fails midway."""
    upload(hub, checkpoint)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "from sla_ckpt.cli.main import run\n"
        "run(['pull', sys.argv[1], sys.argv[2]])\n"
    )
    done = cli.script(code, REPO, tmp_path / "back", hub=hub)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1 and "next:" in done.stderr
    assert not (tmp_path / "back" / STATE_FILE).exists()


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/etc/evil", "a\\evil"])
def test_a_name_that_leaves_the_folder_is_refused(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    upload(hub, checkpoint)
    hub.add_files(REPO, {name: "x"})
    assert "unsafe name" in pull(cli, hub, REPO, tmp_path / "in" / "back", code=2)
    assert not (tmp_path / "in").exists() and not (tmp_path / "evil.txt").exists()


def test_names_that_differ_by_case_are_refused(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.add_files(REPO, {"SLA_attention.pt": "x"})
    assert "differ only by case" in pull(cli, hub, REPO, tmp_path / "back", code=2)
    assert not (tmp_path / "back").exists()


def test_a_name_too_long_for_the_disk_is_named(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.add_files(REPO, {"n" * 300 + ".txt": "x", "m" * 240 + ".txt": "x"})
    error = pull(cli, hub, REPO, tmp_path / "back", code=2)
    assert "nnnn" in error and "long" in error
    pull(cli, hub, REPO, tmp_path / "back", "--exclude", "nnn*")
    assert (tmp_path / "back" / ("m" * 240 + ".txt")).is_file()


def test_a_file_in_the_way(hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path) -> None:
    upload(hub, checkpoint)
    (tmp_path / "back").write_text("a file")
    assert "next:" in pull(cli, hub, REPO, tmp_path / "back", code=2)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "transformer").write_text("a file")
    assert "next:" in pull(cli, hub, REPO, tmp_path / "two", code=2)


def test_nothing_is_written_through_a_link(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    shared, target = tmp_path / "shared", tmp_path / "back"
    shared.mkdir()
    target.mkdir()
    (shared / "blob").write_bytes(b"shared")
    (target / STATE_FILE).symlink_to(shared / "blob")
    pull(cli, hub, REPO, target, "--force")
    assert (shared / "blob").read_bytes() == b"shared"
    assert not (target / STATE_FILE).is_symlink()
    shutil.rmtree(target / "transformer")
    (target / "transformer").symlink_to(shared)
    error = pull(cli, hub, REPO, target, code=2)
    assert "link" in error and set(files_of(shared)) == {"blob"}


def test_two_pulls_into_one_folder_do_not_mix(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.faults.add("GET .*_cdn.*diffusion_pytorch", "stall", seconds=2, phase="response")
    first = cli.start("pull", REPO, tmp_path / "back", hub=hub)
    deadline = time.monotonic() + 20
    while not hub.matching("_cdn.*diffusion_pytorch"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "another sla-ckpt process" in pull(cli, hub, REPO, tmp_path / "back", code=2)
    first.communicate(timeout=20)
    assert first.returncode == 0
    assert files_of(tmp_path / "back")[WEIGHTS] == files_of(checkpoint)[WEIGHTS]


def test_a_completion_guard_is_placed_last(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    target = tmp_path / "back"
    pull(cli, hub, REPO, target, "--for", "resume")
    placed = [path.stat().st_ctime_ns for path in (target / WEIGHTS, target / STATE_FILE)]
    assert (target / ".guard").stat().st_ctime_ns >= max(placed)


def test_on_a_terminal_a_bar_shows_what_arrives(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    code = (
        "import os, pty, sys\n"
        "out = bytearray()\n"
        "def read(fd):\n"
        "    data = os.read(fd, 65536)\n"
        "    out.extend(data)\n"
        "    return data\n"
        "status = pty.spawn([sys.executable, '-m', 'sla_ckpt', 'pull', *sys.argv[1:]], read)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    done = cli.script(code, REPO, tmp_path / "back", hub=hub, env={"TERM": "xterm"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MB/s" in done.stdout or "kB/s" in done.stdout or "bytes" in done.stdout
    assert "fetched 3 files" in done.stdout and (tmp_path / "back" / STATE_FILE).is_file()


def test_ctrl_c_ends_with_130_and_places_nothing(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    upload(hub, checkpoint)
    hub.faults.add("GET .*_cdn.*diffusion_pytorch", "stall", phase="response", after=1000)
    process = cli.start("pull", REPO, tmp_path / "back", hub=hub)
    deadline = time.monotonic() + 20
    while not hub.matching("_cdn.*diffusion_pytorch"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)  # a request may stand still for 120 s
    assert process.returncode == 130 and "Traceback" not in stderr
    assert not {WEIGHTS, STATE_FILE} & set(files_of(tmp_path / "back"))


def test_a_disk_that_is_full_for_a_moment_never_makes_a_file_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bytes were refused, kept in a buffer, and written again behind themselves."""
    data = os.urandom(300_000)
    expected = RemoteFile(len(data), hashlib.sha256(data).hexdigest(), None)
    part = tmp_path / "staging" / "x.part"
    part.parent.mkdir()

    class Response:
        status_code = 206

        def __init__(self, start: int) -> None:
            self.start = start

        def iter_bytes(self, size: int) -> Iterator[bytes]:
            cuts = [*range(self.start, len(data), 100_000), len(data)]
            yield from (data[a:b] for a, b in itertools.pairwise(cuts))

    class Client:
        errors = staticmethod(lambda *words: contextlib.nullcontext())

        def stream(self, *words: str, start: int) -> Any:
            return contextlib.nullcontext(Response(start))

    class FullOnce(io.FileIO):
        refused = False

        def write(self, chunk: Any) -> int:
            if self.tell() >= 200_000 and not FullOnce.refused:
                FullOnce.refused = True
                raise OSError(28, "No space left on device")
            return super().write(chunk)

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", **more: FullOnce(self, "ab+") if "a" in mode
        else opened(self, mode, **more),
    )  # fmt: skip
    with pytest.raises(WriteError, match="No space left"):
        fetch(Client(), "a/b", "c", "x", expected, part)  # type: ignore[arg-type]
    monkeypatch.undo()
    fetch(Client(), "a/b", "c", "x", expected, part)  # type: ignore[arg-type]
    assert part.read_bytes() == data
