"""``sla-ckpt verify org/model``: listings and ranged reads only, and the rules SLA401-SLA404."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from sla_ckpt.formats.simpletuner import encode_state
from sla_ckpt.formats.twin import encode_twin
from sla_ckpt.state import STATE_FILE, TWIN_FILE
from tests.factories import (
    FLUX_CONFIG,
    safetensors_bytes,
    state,
    write_full_checkpoint,
    write_lora,
)
from tests.hub.running import Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"
CARD = "---\ntags:\n- sparse-linear-attention\n---\n# Mine\n"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def model(*, with_state: bool = True, prefix: str = "", card: bool = True) -> dict[str, Any]:
    files: dict[str, Any] = {
        f"{prefix}transformer/config.json": json.dumps(FLUX_CONFIG),
        f"{prefix}{WEIGHTS}": safetensors_bytes({"w": (8, 8)}),
    }
    if with_state:
        files[f"{prefix}{STATE_FILE}"] = encode_state(state())
    if card:
        files[f"{prefix}README.md"] = CARD
    return files


def verify(cli: Runner, hub: LoopbackHub, *args: object, code: int = 0, **more: Any) -> Any:
    done = cli("verify", *args, "--format", "json", hub=hub, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def codes(report: Any) -> set[str]:
    return {f["code"] for f in report["findings"] if f["level"] != "info"}


@pytest.mark.parametrize(
    "form", ["{repo}", "hf://{repo}", "{url}/{repo}", "{url}/{repo}/tree/main", "{repo}@main"]
)
def test_every_form_is_verified(hub: LoopbackHub, cli: Runner, form: str) -> None:
    hub.add_repo(REPO, files=model())
    report = verify(cli, hub, form.format(repo=REPO, url=hub.url))
    assert report["ok"] and report["pairs"] == {"expected": ["128:bf16"], "found": ["128:bf16"]}


def test_a_public_repository_needs_no_token_and_a_private_one_does(
    hub: LoopbackHub, cli: Runner
) -> None:
    hub.add_repo(REPO, files=model())
    hub.add_repo("alice/closed", private=True, files=model())
    assert verify(cli, hub, REPO, token=None)["ok"]
    assert verify(cli, hub, "alice/closed", token="read")["ok"]
    assert (
        "no token was sent"
        in verify(cli, hub, "alice/closed", code=2, token=None)["problem"]["message"]
    )


def test_a_revision_and_a_folder_are_verified(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo(REPO, files=model(prefix="a/"))
    good = hub.commits(REPO)[0].id
    hub.add_files(REPO, {f"a/{STATE_FILE}": None})
    assert verify(cli, hub, f"{REPO}@{good}/a")["ok"]
    assert "SLA401" in codes(verify(cli, hub, f"{REPO}/a", code=1))


def test_a_missing_state_says_what_speaks_for_sla_and_what_to_run(
    hub: LoopbackHub, cli: Runner
) -> None:
    hub.add_repo(REPO, files=model(with_state=False))
    report = verify(cli, hub, REPO, code=1)
    (finding,) = (f for f in report["findings"] if f["code"] == "SLA401")
    assert finding["level"] == "error" and "README.md says" in finding["message"]
    assert "sla-ckpt push" in finding["help"] and "sla-ckpt regen" in finding["help"]
    assert "SLA001" not in codes(report)  # one finding for one fault


def test_a_twin_alone_is_a_warning(hub: LoopbackHub, cli: Runner) -> None:
    twin = encode_twin(state(), pt_sha256="0" * 64)
    hub.add_repo(REPO, files={**model(with_state=False), TWIN_FILE: twin})
    report = verify(cli, hub, REPO)
    assert codes(report) == {"SLA401"} and report["pairs"]["found"] == ["128:bf16"]


def test_a_state_that_differs_from_the_local_one(
    hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    local = write_full_checkpoint(tmp_path / "checkpoint-1")
    hub.add_repo(REPO, files=model())
    assert verify(cli, hub, REPO, "--against", local)["ok"]
    (local / STATE_FILE).write_bytes(encode_state(state(seed=4)))
    assert codes(verify(cli, hub, REPO, "--against", local, code=1)) == {"SLA402"}


def test_a_card_that_does_not_say_so(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo(REPO, files=model(card=False))
    assert codes(verify(cli, hub, REPO)) == {"SLA403"}
    hub.add_files(REPO, {"README.md": "# A model\n"})
    assert codes(verify(cli, hub, REPO)) == {"SLA403"}
    assert verify(cli, hub, REPO, "--ignore", "SLA403")["findings"][0]["level"] == "info"
    assert cli("verify", REPO, "--strict", hub=hub).returncode == 1


@pytest.mark.parametrize("folder", ["pipeline", "checkpoint-500"])
def test_weights_in_a_folder_without_the_state(hub: LoopbackHub, cli: Runner, folder: str) -> None:
    hub.add_repo(REPO, files=model(prefix=f"{folder}/", with_state=False))
    report = verify(cli, hub, REPO, code=1)
    (finding,) = (f for f in report["findings"] if f["code"] == "SLA404")
    assert finding["path"] == folder and "--path-in-repo" in finding["help"]


def test_a_lora_repository(hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "lora", state())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add_repo(REPO, files={**files, "README.md": CARD})
    assert verify(cli, hub, REPO)["kind"] == "lora"


@pytest.mark.parametrize("fault", ["truncated", "pointer", "html"])
def test_a_broken_state_on_the_hub_is_found(hub: LoopbackHub, cli: Runner, fault: str) -> None:
    good = encode_state(state())
    data = {
        "truncated": good[: len(good) // 2],
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\n",
        "html": b"<!DOCTYPE html><html></html>",
    }[fault]
    hub.add_repo(REPO, files={**model(), STATE_FILE: data})
    assert "SLA002" in codes(verify(cli, hub, REPO, code=1))


def _shard(index: int, count: int) -> tuple[str, bytes, dict[str, str]]:
    """Name, header and index entries of a shard of realistic size: 60 tensors."""
    name = f"diffusion_pytorch_model-{index + 1:05d}-of-{count:05d}.safetensors"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size, position = 40_000_000, 0
    for block in range(60):
        tensor = f"one_of_the_layers.{index * 60 + block}.attn.to_q.weight"
        header[tensor] = {
            "dtype": "BF16",
            "shape": [size // 2 // 4000, 4000],
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return name, len(text).to_bytes(8, "little") + text, dict.fromkeys(list(header)[1:], name)


def test_24_gb_in_10_shards_cost_less_than_a_megabyte(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo(REPO, files=_without_weights())
    weight_map: dict[str, str] = {}
    for index in range(10):
        name, head, entries = _shard(index, 10)
        hub.add_virtual_file(REPO, f"transformer/{name}", len(head) + 60 * 40_000_000, head)
        weight_map.update(entries)
    index_json = json.dumps({"metadata": {"total_size": 24 * 10**9}, "weight_map": weight_map})
    hub.add_files(REPO, {"transformer/diffusion_pytorch_model.safetensors.index.json": index_json})
    assert sum(size for size, _ in hub.files(REPO).values()) > 24 * 10**9
    cli("--version", hub=hub)  # Python's own files are in memory now, as after any first use
    times = []
    for _ in range(3):
        hub.clear_requests()
        started = time.monotonic()
        report = verify(cli, hub, REPO)
        times.append(time.monotonic() - started)
    assert report["ok"] and not codes(report)
    assert hub.bytes_sent < 1_000_000
    assert not [r for r in hub.matching("GET .*_cdn.*-of-00010") if r.range is None]
    # 1.5 s on an idle machine (docs/hub.md); a loaded one gets room.
    assert min(times) < 4.0


def _without_weights() -> dict[str, Any]:
    files = model()
    del files[WEIGHTS]
    return files


def test_all_models_of_an_account_one_report_each(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo("acme/good", files=model())
    hub.add_repo("acme/bad", private=True, files=model(with_state=False))
    hub.add_repo("acme/empty")
    hub.add_repo("alice/other", files=model())
    reports = verify(cli, hub, "--all", "acme", code=1)
    by_name = {report["target"]: report for report in reports}
    assert by_name.keys() == {"acme/good", "acme/bad", "acme/empty"}
    assert by_name["acme/good"]["ok"] and not by_name["acme/bad"]["ok"]


def test_all_of_many_models_is_done_in_parallel_without_mixing(
    hub: LoopbackHub, cli: Runner
) -> None:
    for number in range(12):
        hub.add_repo(f"acme/m{number:02}", files=model(with_state=number % 3 != 0))
    reports = verify(cli, hub, "--all", "acme", "--jobs", "6", code=1)
    assert [report["target"] for report in reports] == [f"acme/m{n:02}" for n in range(12)]
    assert [report["ok"] for report in reports] == [n % 3 != 0 for n in range(12)]


def test_one_target_that_cannot_be_opened_does_not_stop_the_others(
    hub: LoopbackHub, cli: Runner
) -> None:
    hub.add_repo(REPO, files=model())
    reports = verify(cli, hub, "alice/gone", REPO, code=2)
    assert [report["ok"] for report in reports] == [False, True]


def test_of_large_weights_only_the_header_is_read(hub: LoopbackHub, cli: Runner) -> None:
    hub.add_repo(REPO, files=model())
    hub.add_files(REPO, {WEIGHTS: safetensors_bytes({"w": (4000, 4000)})})
    hub.clear_requests()
    assert verify(cli, hub, REPO)["ok"]
    assert hub.bytes_sent < 1_000_000
