"""``sla-ckpt push`` as a process against the loopback Hub, with the real client."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.state import STATE_FILE, TWIN_FILE
from tests.factories import (
    FLUX_CONFIG,
    safetensors_bytes,
    state,
    write_denoiser,
    write_full_checkpoint,
    write_lora,
    zero_state,
)
from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A full checkpoint as a trainer leaves it."""
    return write_full_checkpoint(tmp_path / "out" / "checkpoint-500", trainer=True)


def push(cli: Runner, hub: LoopbackHub, *args: object, code: int = 0, **more: Any) -> Any:
    """Runs push with --format json and returns what it printed."""
    done = cli("push", *args, "--format", "json", hub=hub, **more)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def changes(result: Any) -> dict[str, str]:
    return {item["path"]: item["change"] for item in result["plan"]["files"]}


def assert_never_without_state(hub: LoopbackHub, repo: str = REPO) -> None:
    """No commit of any ref has weights but no state."""
    for commit in hub.all_commits(repo):
        if any(path.endswith(".safetensors") and path != TWIN_FILE for path in commit.files):
            assert STATE_FILE in commit.files


def test_one_commit_holds_weights_state_twin_and_card(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    result = push(cli, any_hub, REPO, checkpoint)
    assert any_hub.commits(REPO)[0].id == result["commit"]
    assert len(any_hub.matching("POST .*/commit/")) == 1
    files = any_hub.files(REPO)
    assert set(files) == {
        ".gitattributes",
        "README.md",
        STATE_FILE,
        TWIN_FILE,
        "transformer/config.json",
        WEIGHTS,
    }
    assert files[STATE_FILE][0] == (checkpoint / STATE_FILE).stat().st_size
    assert result["created"] and result["remote"]["ok"] and any_hub.is_private(REPO)
    assert not (checkpoint / TWIN_FILE).exists()
    assert_never_without_state(any_hub)


def test_a_second_push_sends_and_commits_nothing(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    push(cli, any_hub, REPO, checkpoint)
    head = any_hub.commits(REPO)[0].id
    any_hub.clear_requests()
    result = push(cli, any_hub, REPO, checkpoint)
    assert result["commit"] is None and set(changes(result).values()) == {"unchanged"}
    assert any_hub.commits(REPO)[0].id == head
    assert not any_hub.matching("PUT |/commit/|preupload|/xorbs/|/shards")


def test_only_the_small_file_is_sent_when_only_it_changed(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / WEIGHTS).write_bytes(safetensors_bytes({"w": (512, 1024)}, "F32"))
    push(cli, any_hub, REPO, checkpoint)
    (checkpoint / STATE_FILE).write_bytes(encode_state(state(seed=7)))
    any_hub.clear_requests()
    result = push(cli, any_hub, REPO, checkpoint)
    sent = {path for path, change in changes(result).items() if change != "unchanged"}
    assert sent == {STATE_FILE, TWIN_FILE, "README.md"}
    assert any_hub.bytes_received < 300_000


def test_the_twin_on_the_hub_matches_the_state_and_keeps_its_origin(
    hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    from sla_ckpt.formats.twin import write_state

    folder = write_full_checkpoint(tmp_path / "checkpoint-1")
    write_state(folder, state(origin={"tool": "sla-ckpt regen", "sla_variant": "main"}))
    push(cli, hub, REPO, folder)
    twin = read_twin(hub.read(REPO, TWIN_FILE))
    assert twin.origin["sla_variant"] == "main"
    assert "SLA variant | main" in hub.read(REPO, "README.md").decode()


def test_dry_run_lists_everything_and_sends_nothing(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / "sla_attention.pt.bak-20260101T000000Z").write_bytes(b"old")
    (checkpoint / ".sla_ckpt-x.tmp").write_bytes(b"half")
    done = cli("push", REPO, checkpoint, "--dry-run", hub=hub)
    assert done.returncode == 0 and not hub.has_repo(REPO)
    for text in (
        STATE_FILE,
        TWIN_FILE,
        WEIGHTS,
        "training_state.json (training state)",
        "left out",
    ):
        assert text in done.stdout
    assert "bak-20260101T000000Z (" in done.stdout and ".sla_ckpt-x.tmp (" in done.stdout
    assert not hub.matching("POST /api/repos/create|/commit/|PUT ")


def test_dry_run_shows_new_changed_and_unchanged_files(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    push(cli, hub, REPO, checkpoint)
    (checkpoint / "transformer/config.json").write_text(json.dumps({**FLUX_CONFIG, "x": 1}))
    (checkpoint / "notes.txt").write_text("hello")
    plan = changes(push(cli, hub, REPO, checkpoint, "--dry-run"))
    assert plan["notes.txt"] == "new" and plan["transformer/config.json"] == "changed"
    assert plan[WEIGHTS] == "unchanged"


def test_dry_run_needs_no_token(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    assert push(cli, hub, REPO, checkpoint, "--dry-run", token=None)["commit"] is None


def test_output_through_a_pipe_has_no_colours_and_no_progress_bars(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    done = cli("push", REPO, checkpoint, hub=hub)
    assert "\x1b" not in done.stdout + done.stderr
    assert "it/s" not in done.stderr and "%|" not in done.stderr
    assert done.stdout.count("\n") == 2


def test_public_and_private_concern_new_repositories_only(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    push(cli, hub, "alice/open", checkpoint, "--public")
    assert not hub.is_private("alice/open")
    push(cli, hub, "alice/closed", checkpoint, "--private")
    assert hub.is_private("alice/closed")
    push(cli, hub, "alice/open", checkpoint, "--private", "--path-in-repo", "again")
    assert not hub.is_private("alice/open")


def test_an_organisation_and_a_pasted_url_work(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    result = push(cli, hub, f"{hub.url}/acme/model/tree/main?x=y#z", checkpoint)
    assert result["plan"]["repo"] == "acme/model" and STATE_FILE in hub.files("acme/model")


def test_revision_makes_the_branch_and_leaves_main_alone(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    main = hub.commits(REPO)[0].id
    result = push(cli, hub, REPO, checkpoint, "--revision", "sla")
    assert STATE_FILE in hub.files(REPO, "sla") and hub.commits(REPO)[0].id == main
    assert not result["created"]


def test_create_pr_opens_a_pull_request_and_leaves_main_alone(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    main = hub.commits(REPO)[0].id
    result = push(cli, hub, REPO, checkpoint, "--create-pr")
    assert result["pull_request"].endswith("/discussions/1") and result["remote"]["ok"]
    assert STATE_FILE in hub.files(REPO, "refs/pr/1") and hub.commits(REPO)[0].id == main


def test_create_pr_on_another_branch_is_refused_before_anything_happens(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    error = push(cli, hub, REPO, checkpoint, "--create-pr", "--revision", "dev", code=2)
    assert "--create-pr" in error and "refs/heads/dev" not in hub.refs(REPO)


def test_path_in_repo_keeps_the_layout_inside_the_folder(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    result = push(cli, hub, REPO, checkpoint, "--path-in-repo", "checkpoint-500/")
    assert result["remote"]["ok"]
    files = hub.files(REPO)
    assert f"checkpoint-500/{STATE_FILE}" in files and f"checkpoint-500/{WEIGHTS}" in files
    assert push(cli, hub, f"{REPO}/checkpoint-500", checkpoint)["commit"] is None
    assert "not a folder" in push(cli, hub, REPO, checkpoint, "--path-in-repo", "../x", code=2)


def test_the_message_is_the_users(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    push(cli, hub, REPO, checkpoint, "-m", "First light")
    assert hub.commits(REPO)[0].title == "First light"


def test_training_state_travels_only_when_asked(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    push(cli, hub, REPO, checkpoint)
    assert "training_state.json" not in hub.files(REPO)
    push(cli, hub, REPO, checkpoint, "--include-training-state")
    assert {"training_state.json", "checkpoint_manifest.json", ".guard"} <= set(hub.files(REPO))


def test_include_and_exclude(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    (checkpoint / "samples").mkdir()
    (checkpoint / "samples" / "a.png").write_bytes(b"png")
    (checkpoint / "logs").mkdir()
    (checkpoint / "logs" / "run.txt").write_text("log")
    plan = push(cli, hub, REPO, checkpoint, "--dry-run", "--exclude", "samples/*")["plan"]
    assert plan["left_out"].keys() >= {"samples/a.png", "logs/run.txt"}
    result = push(cli, hub, REPO, checkpoint, "--include", "logs/*")
    assert {"samples/a.png", "logs/run.txt"} <= set(hub.files(REPO)) and result["remote"]["ok"]
    assert "matches no file" in push(cli, hub, REPO, checkpoint, "--include", "nothing*", code=2)


@pytest.mark.parametrize("pattern", [STATE_FILE, "transformer/*", "*"])
def test_excluding_a_needed_file_is_an_error(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, pattern: str
) -> None:
    error = push(cli, hub, REPO, checkpoint, "--exclude", pattern, code=2)
    assert "would leave out what the model needs" in error and not hub.has_repo(REPO)


def test_include_never_takes_git_locks_or_half_written_files(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "config").write_text("x")
    (checkpoint / ".cache").mkdir()
    (checkpoint / ".cache" / "x").write_text("x")
    (checkpoint / "weights.safetensors.tmp").write_bytes(b"half")
    push(cli, hub, REPO, checkpoint, "--include", "*")
    assert not [p for p in hub.files(REPO) if ".git/" in p or ".cache" in p or p.endswith(".tmp")]


def test_a_side_file_nobody_foresaw_travels_or_is_named(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    for name in ("LICENSE", "transformer/quantization.cfg", "a/b/c/x.dat", "a/b/c/d/deep.dat"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("x")
    result = push(cli, hub, REPO, checkpoint)
    assert {"LICENSE", "transformer/quantization.cfg", "a/b/c/x.dat"} <= set(hub.files(REPO))
    assert "nested" in result["plan"]["left_out"]["a/b/c/d/"]


def test_verify_stops_a_push_and_ignore_is_explicit(
    hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    folder = write_full_checkpoint(tmp_path / "checkpoint-1", state("96:bf16"))
    done = cli("push", REPO, folder, hub=hub)
    assert done.returncode == 1 and "SLA202" in done.stdout and not hub.has_repo(REPO)
    assert push(cli, hub, REPO, folder, "--ignore", "SLA202")["commit"]


def test_a_state_that_was_never_trained_is_refused_unless_told(
    hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    folder = write_full_checkpoint(tmp_path / "checkpoint-1", zero_state())
    assert "SLA206" in cli("push", REPO, folder, hub=hub).stdout
    assert push(cli, hub, REPO, folder, "--ignore", "SLA206")["commit"]


@pytest.mark.parametrize("kind", ["no state", "nothing", "truncated shard", "LFS pointer"])
def test_what_is_not_whole_is_not_pushed(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, kind: str
) -> None:
    weights = checkpoint / WEIGHTS
    if kind == "no state":
        (checkpoint / STATE_FILE).unlink()
    elif kind == "nothing":
        checkpoint = checkpoint.parent.parent / "empty"
        checkpoint.mkdir()
    elif kind == "truncated shard":
        weights.write_bytes(weights.read_bytes()[:-3])
    else:
        weights.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
        )
    done = cli("push", REPO, checkpoint, hub=hub)
    assert done.returncode in (1, 2) and not hub.has_repo(REPO)
    assert "next:" in done.stdout + done.stderr


def _lora(folder: Path) -> set[str]:
    write_lora(folder, state())
    return {"pytorch_lora_weights.safetensors"}


def _lycoris(folder: Path) -> set[str]:
    write_lora(folder, state())
    (folder / "lycoris_config.json").write_text('{"algo": "lokr"}')
    return {"pytorch_lora_weights.safetensors", "lycoris_config.json"}


def _ema(folder: Path) -> set[str]:
    write_full_checkpoint(folder)
    write_denoiser(folder / "transformer_ema")
    return {"transformer_ema/diffusion_pytorch_model.safetensors", WEIGHTS}


def _sharded(folder: Path) -> set[str]:
    write_full_checkpoint(folder, shards=3)
    return {
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    }


def _pipeline(folder: Path) -> set[str]:
    write_full_checkpoint(folder)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return {"model_index.json", WEIGHTS, "scheduler/scheduler_config.json"}


def _bare_model(folder: Path) -> set[str]:
    write_denoiser(folder)
    (folder / STATE_FILE).write_bytes(encode_state(state()))
    return {"config.json", "diffusion_pytorch_model.safetensors"}


def _state_inside_the_denoiser(folder: Path) -> set[str]:
    write_full_checkpoint(folder)
    (folder / STATE_FILE).rename(folder / "transformer" / STATE_FILE)
    return {WEIGHTS}


@pytest.mark.parametrize(
    "build",
    [_lora, _lycoris, _ema, _sharded, _pipeline, _bare_model, _state_inside_the_denoiser],
    ids=lambda build: build.__name__.strip("_"),
)
def test_every_kind_arrives_with_the_state_at_the_root(
    hub: LoopbackHub, cli: Runner, tmp_path: Path, build: Any
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    needed = build(folder)
    result = push(cli, hub, REPO, folder)
    assert needed | {STATE_FILE, TWIN_FILE, "README.md"} <= set(hub.files(REPO))
    assert result["remote"]["ok"], result["remote"]
    assert_never_without_state(hub)


def test_an_output_directory_stands_for_its_newest_checkpoint(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    write_full_checkpoint(checkpoint.parent / "checkpoint-900-tmp")
    push(cli, hub, REPO, cwd=checkpoint.parent)
    assert hub.files(REPO)[WEIGHTS][0] == (checkpoint / WEIGHTS).stat().st_size


def test_links_are_read_and_a_dangling_one_is_an_error(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    (checkpoint / STATE_FILE).rename(blob)
    (checkpoint / STATE_FILE).symlink_to(blob)
    push(cli, hub, REPO, checkpoint)
    assert hub.files(REPO)[STATE_FILE][0] == blob.stat().st_size
    (checkpoint / "tokenizer.json").symlink_to(tmp_path / "gone.json")
    head = hub.commits(REPO)[0].id
    done = cli("push", REPO, checkpoint, hub=hub)
    assert done.returncode == 2 and "tokenizer.json" in done.stderr and "dangling" in done.stderr
    assert hub.commits(REPO)[0].id == head
    push(cli, hub, REPO, checkpoint, "--exclude", "tokenizer.json")


def test_other_shards_replace_the_old_ones(
    any_hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    """A loader takes the index first: a stale one would load the old weights in silence."""
    push(cli, any_hub, REPO, write_full_checkpoint(tmp_path / "a", shards=3))
    any_hub.add_files(REPO, {"transformer/other.safetensors": safetensors_bytes({"w": (2, 2)})})
    result = push(cli, any_hub, REPO, write_full_checkpoint(tmp_path / "b", shards=1))
    files = set(any_hub.files(REPO))
    assert WEIGHTS in files and "transformer/other.safetensors" in files
    assert not [path for path in files if "-of-00003" in path or path.endswith(".index.json")]
    assert len(result["plan"]["removed"]) == 4
    assert_never_without_state(any_hub)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot hold both names")
def test_names_that_differ_by_case_are_refused(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / "SLA_attention.pt").write_bytes(b"x")
    assert "differ only by case" in push(cli, hub, REPO, checkpoint, code=2)
    (checkpoint / "SLA_attention.pt").unlink()
    hub.add_repo(REPO, files={"readme.MD": b"x"})
    assert "differ only by case" in push(cli, hub, REPO, checkpoint, code=2)


def test_names_that_are_not_ascii_work(hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    folder = write_full_checkpoint(tmp_path / "modèle_検証" / "checkpoint-1")
    (folder / "Übersicht 検証.txt").write_text("x")
    push(cli, hub, REPO, folder)
    assert "Übersicht 検証.txt" in hub.files(REPO)
    assert push(cli, hub, REPO, folder)["commit"] is None


def test_a_file_that_gitignore_drops_is_an_error_when_it_is_needed(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    any_hub.add_repo(REPO, files={".gitignore": b"*.pt\n"})
    error = push(cli, any_hub, REPO, checkpoint, code=2)
    assert ".gitignore" in error and STATE_FILE in error
    assert len(any_hub.all_commits(REPO)) == 2
    assert not any_hub.matching("PUT |/xorbs/")


def test_a_file_that_gitignore_drops_is_named_when_it_is_not_needed(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO, files={".gitignore": b"*.txt\n"})
    (checkpoint / "notes.txt").write_text("x")
    result = push(cli, hub, REPO, checkpoint)
    assert ".gitignore" in result["plan"]["left_out"]["notes.txt"]
    assert "notes.txt" not in hub.files(REPO) and result["remote"]["ok"]


def test_the_users_card_keeps_its_text(hub: LoopbackHub, cli: Runner, checkpoint: Path) -> None:
    text = "---\nlicense: mit\n---\n# Mine\n\nMy words.\n"
    hub.add_repo(REPO, files={"README.md": text})
    push(cli, hub, REPO, checkpoint)
    card = hub.read(REPO, "README.md").decode()
    assert "license: mit\n" in card and "# Mine\n\nMy words.\n" in card
    assert "- sparse-linear-attention\n" in card and str(checkpoint) not in card


def test_a_local_edit_of_the_card_is_published(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / "README.md").write_text("# One\n")
    push(cli, hub, REPO, checkpoint)
    (checkpoint / "README.md").write_text("# Two\n")
    push(cli, hub, REPO, checkpoint)
    card = hub.read(REPO, "README.md").decode()
    assert "# Two" in card and "# One" not in card


def test_an_edit_of_the_card_on_the_hub_is_kept(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    (checkpoint / "README.md").write_text("# One\n")
    push(cli, hub, REPO, checkpoint)
    edited = hub.read(REPO, "README.md").replace(b"# One", b"# By hand on the Hub")
    hub.add_files(REPO, {"README.md": edited})
    for seed in (1, 2):  # also when the section changes in between
        (checkpoint / STATE_FILE).write_bytes(encode_state(state(seed=seed)))
        done = cli("push", REPO, checkpoint, hub=hub)
        assert done.returncode == 0 and "README.md" in done.stderr
        assert "# By hand on the Hub" in hub.read(REPO, "README.md").decode()
    push(cli, hub, REPO, checkpoint, "--include", "README.md")
    assert "# One" in hub.read(REPO, "README.md").decode()


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("config: null", "'config'"),
        ("base_model: /home/alice/flux", "local path"),
        ("base_model: ~/flux", "local path"),
        ("license: [mit", "not YAML"),
        ("license: 3", "license"),
    ],
)
def test_bad_card_metadata_is_found_before_the_first_byte(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, metadata: str, says: str
) -> None:
    hub.add_repo(REPO)
    (checkpoint / "README.md").write_text(f"---\n{metadata}\n---\n# Mine\n")
    error = push(cli, hub, REPO, checkpoint, code=2)
    assert says in error and "/home/alice" not in error
    assert not hub.matching("PUT |/commit/")


def test_somebody_elses_commit_in_between_is_kept(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    any_hub.add_repo(REPO)
    any_hub.faults.add("POST .*/commit/", "stall", seconds=2.0)
    process = cli.start("push", REPO, checkpoint, hub=any_hub)
    deadline = time.monotonic() + 20
    while not any_hub.matching("POST .*/commit/"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    any_hub.add_files(REPO, {"theirs.txt": "x"})
    any_hub.clear_requests()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert {"theirs.txt", STATE_FILE, WEIGHTS} <= set(any_hub.files(REPO))
    assert not any_hub.matching("PUT ")  # what was uploaded is not sent again
    assert_never_without_state(any_hub)


@pytest.mark.parametrize("options", [(), ("--create-pr",)], ids=["branch", "pull-request"])
def test_a_lost_answer_does_not_make_a_second_commit(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path, options: tuple[str, ...]
) -> None:
    any_hub.add_repo(REPO)
    any_hub.faults.add("POST .*/commit/", "lose")
    result = push(cli, any_hub, REPO, checkpoint, *options)
    assert len(any_hub.all_commits(REPO)) == 2
    assert result["commit"] in {commit.id for commit in any_hub.all_commits(REPO)}


def test_a_commit_that_did_not_land_is_tried_again(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "status", status=503, times=2)
    assert push(cli, hub, REPO, checkpoint)["commit"] == hub.commits(REPO)[0].id
    assert len(hub.all_commits(REPO)) == 2


@pytest.mark.parametrize("request_line", ["GET /api/whoami", "POST /api/repos/create", "preupload"])
def test_requests_that_the_client_does_not_repeat_are_repeated(
    hub: LoopbackHub, cli: Runner, checkpoint: Path, request_line: str
) -> None:
    hub.faults.add(request_line, "status", status=503)
    hub.faults.add(request_line, "lose")
    assert push(cli, hub, REPO, checkpoint)["commit"]


def test_large_files_are_hashed_while_xet_sends_them_and_never_twice(
    xet_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    weights = checkpoint / WEIGHTS
    weights.write_bytes(safetensors_bytes({"w": (6000, 6000)}, "BF16"))
    os.utime(weights, (1_700_000_000, 1_700_000_000))
    xet_hub.add_repo(REPO)
    xet_hub.faults.add("POST .*/commit/", "status", status=412)  # plans anew in between
    result = push(cli, xet_hub, REPO, checkpoint)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    shown = {item["path"]: item["sha256"] for item in result["plan"]["files"]}
    assert shown[WEIGHTS] == xet_hub.files(REPO)[WEIGHTS][1] == sha256
    assert push(cli, xet_hub, REPO, checkpoint)["commit"] is None


def test_kill_during_the_upload_leaves_no_commit_and_a_rerun_finishes(
    any_hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    folder = write_full_checkpoint(tmp_path / "checkpoint-1", shards=2)
    xet = any_hub.has_xet
    any_hub.add_repo(REPO)
    any_hub.faults.add(
        "POST .*/shards" if xet else "PUT ", "stall", seconds=30, skip=0 if xet else 1
    )
    process = cli.start("push", REPO, folder, hub=any_hub)
    deadline = time.monotonic() + 20
    while not any(record.fault for record in any_hub.requests):
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert len(any_hub.all_commits(REPO)) == 1
    done_before = {r.target for r in any_hub.matching("PUT ") if r.status == 200}
    any_hub.faults.clear()
    any_hub.clear_requests()
    assert push(cli, any_hub, REPO, folder)["remote"]["ok"]
    assert not done_before & {r.target for r in any_hub.matching("PUT ")}
    assert len(any_hub.all_commits(REPO)) == 2
    assert_never_without_state(any_hub)


def test_ctrl_c_ends_with_130_and_no_commit(
    hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "stall", seconds=30)
    process = cli.start("push", REPO, checkpoint, hub=hub)
    deadline = time.monotonic() + 20
    while not hub.matching("POST .*/commit/"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert len(hub.all_commits(REPO)) == 1


def test_create_pr_again_opens_no_second_request_for_the_same_files(
    any_hub: LoopbackHub, cli: Runner, checkpoint: Path
) -> None:
    push(cli, any_hub, REPO, checkpoint)
    (checkpoint / "sla_attention.pt").write_bytes(encode_state(state(seed=5)))
    first = push(cli, any_hub, REPO, checkpoint, "--create-pr")
    again = push(cli, any_hub, REPO, checkpoint, "--create-pr")
    assert again["pull_request"] == first["pull_request"] and again["commit"] == first["commit"]
    assert [ref for ref in any_hub.refs(REPO) if ref.startswith("refs/pr/")] == ["refs/pr/1"]
    (checkpoint / "sla_attention.pt").write_bytes(encode_state(state(seed=6)))
    push(cli, any_hub, REPO, checkpoint, "--create-pr")
    assert any_hub.refs(REPO).keys() >= {"refs/pr/1", "refs/pr/2"}
