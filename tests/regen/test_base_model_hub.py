"""Base models on the Hub: what is downloaded, and what a refusal says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.regen.test_backbone_lora import save_lora, trained_lora
from tests.regen.tiny_models import make_model
from tools.loopback_hub import LoopbackHub

PROGRAM = """
import json, sys
from pathlib import Path
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.regen.base_model import resolve_base_model, resolve_pipeline
for kind, name in json.loads(sys.argv[2]):
    try:
        if kind == "denoiser":
            label, files = resolve_base_model(Path(sys.argv[1]), name)
            root = files.folder.parent
        else:
            label, root = resolve_pipeline(Path(sys.argv[1]), name)
        found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        print(json.dumps({"label": label, "files": found}))
    except SlaCkptError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    made = tmp_path_factory.mktemp("base")
    model = make_model("FluxTransformer2DModel")
    model.save_pretrained(made / "transformer", max_shard_size="60KB")
    model.save_pretrained(made / "transformer", variant="fp16")
    (made / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for name in (
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
        "flux1-dev.safetensors",
    ):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"{}")
    files = {p.relative_to(made).as_posix(): p for p in made.rglob("*") if p.is_file()}
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as running:
        running.add_repo("alice/flux", files=files)
        running.add_repo("alice/closed", files={"a.txt": b"x"}, private=True)
        running.add_repo("alice/empty", files={"README.md": b"nothing"})
        yield running


def ask(hub: LoopbackHub, tmp_path: Path, *asked: tuple[str, str], **env: str) -> list[Any]:
    _, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "checkpoint-1", tensors, config)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint), json.dumps(asked)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_what_is_needed_is_downloaded(hub: LoopbackHub, tmp_path: Path) -> None:
    (answer,) = ask(hub, tmp_path, ("denoiser", "alice/flux"))

    assert answer["label"] == "alice/flux"
    weights = [name for name in answer["files"] if name.startswith("transformer/")]
    assert sorted(set(answer["files"]) - set(weights)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
    ]
    assert "transformer/config.json" in weights
    assert not any("fp16" in name for name in answer["files"])
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in answer["files"]

    (again,) = ask(hub, tmp_path, ("denoiser", "alice/flux"), HF_HUB_OFFLINE="1")
    assert again == answer


def test_pipeline_comes_without_its_denoiser(hub: LoopbackHub, tmp_path: Path) -> None:
    (answer,) = ask(hub, tmp_path, ("pipeline", "alice/flux@main"))

    assert answer["files"] == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_refusals_are_one_line_with_a_next_step(hub: LoopbackHub, tmp_path: Path) -> None:
    answers = ask(
        hub,
        tmp_path,
        ("denoiser", "alice/absent"),
        ("denoiser", "alice/closed"),
        ("denoiser", "alice/empty"),
        ("pipeline", "alice/empty"),
    )

    assert "cannot download base model alice/absent" in answers[0]["error"]
    assert "cannot download base model alice/closed" in answers[1]["error"]
    assert "hf auth login" in answers[1]["hint"]
    assert "no denoiser in diffusers format" in answers[2]["error"]
    assert "not a pipeline" in answers[3]["error"]
