"""Good checkpoints of every layout have no errors and no warnings; their faults are found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sla_ckpt import VerifyOptions, encode_state, verify
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.report import Report
from sla_ckpt.errors import TargetNotFoundError
from tests import factories

WAN = {"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "num_attention_heads": 40}


def add_state(folder: Path, *pairs: str) -> Path:
    (folder / "sla_attention.pt").write_bytes(encode_state(factories.state(*pairs)))
    return folder


def lora_with_ema(folder: Path) -> Path:
    factories.write_lora(folder, factories.state())
    (folder / "ema").mkdir()
    data = factories.safetensors_bytes(factories.WEIGHT_NAMES)
    (folder / "ema/ema_model.safetensors").write_bytes(data)
    factories.write_trainer_files(folder)
    return folder


def lycoris(folder: Path) -> Path:
    factories.write_lora(folder, factories.state())
    (folder / "lycoris_config.json").write_text("{}")
    return folder


def peft(folder: Path) -> Path:
    factories.write_lora(folder, factories.state())
    (folder / "pytorch_lora_weights.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def controlnet(folder: Path) -> Path:
    config = {"_class_name": "FluxControlNetModel", "attention_head_dim": 128}
    factories.write_denoiser(folder / "controlnet", config=config)
    factories.write_denoiser(folder / "controlnet_ema", config=config)
    return add_state(folder)


def full_with_ema(folder: Path) -> Path:
    factories.write_full_checkpoint(folder, shards=3)
    factories.write_denoiser(folder / "transformer_ema")
    (folder / "transformer_ema/ema_model.pt").write_bytes(b"PK\x03\x04")
    return folder


def two_experts(folder: Path) -> Path:
    factories.write_full_checkpoint(folder, config=WAN)
    factories.write_denoiser(folder / "transformer_2", config=WAN, shards=2)
    return folder


def at_the_root(folder: Path) -> Path:
    factories.write_denoiser(folder)
    return add_state(folder)


def half_variant(folder: Path) -> Path:
    """Full-precision weights with an fp16 copy beside them, both single files."""
    factories.write_full_checkpoint(folder)
    data = factories.safetensors_bytes(factories.WEIGHT_NAMES, "F16")
    (folder / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(data)
    return folder


def sharded_variant(folder: Path) -> Path:
    """The same, both in shards with an index each."""
    factories.write_full_checkpoint(folder, shards=3)
    weight_map = {}
    for number in (1, 2):
        name = f"diffusion_pytorch_model.fp16-{number:05d}-of-00002.safetensors"
        names = {f"half{number}.{key}": shape for key, shape in factories.WEIGHT_NAMES.items()}
        (folder / "transformer" / name).write_bytes(factories.safetensors_bytes(names, "F16"))
        weight_map.update(dict.fromkeys(names, name))
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def pipeline(folder: Path) -> Path:
    factories.write_full_checkpoint(folder)
    factories.write_denoiser(folder / "vae", config={"_class_name": "AutoencoderKL"})
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder/config.json").write_text('{"model_type": "t5"}')
    data = factories.safetensors_bytes(factories.WEIGHT_NAMES)
    (folder / "text_encoder/model.safetensors").write_bytes(data)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    index = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def download_cache(folder: Path) -> Path:
    """models--org--name of the Hub's cache: a snapshot of links into blobs."""
    real = factories.write_full_checkpoint(folder / "real")
    repo = folder / "models--org--name"
    snapshot = repo / "snapshots" / "abc123"
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(path for path in real.rglob("*") if path.is_file()):
        blob = repo / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc123")
    return repo


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "lora-with-ema": (lora_with_ema, "lora"),
    "lycoris": (lycoris, "lycoris"),
    "peft": (peft, "lora"),
    "controlnet": (controlnet, "controlnet"),
    "full-with-ema": (full_with_ema, "full"),
    "two-experts": (two_experts, "full"),
    "at-the-root": (at_the_root, "diffusers"),
    "half-variant": (half_variant, "full"),
    "sharded-variant": (sharded_variant, "full"),
    "pipeline": (pipeline, "pipeline"),
    "download-cache": (download_cache, "full"),
}


def serious(report: Report) -> list[str]:
    return [f"{f.code} {f.message}" for f in report.findings if f.level != "info"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_good_checkpoint_of_each_layout_is_good(name: str, tmp_path: Path) -> None:
    make, kind = LAYOUTS[name]
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    report = verify(make(folder))
    assert serious(report) == []
    assert report.kind == kind
    assert report.expected == report.found == ("128:bf16",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("name", "damage", "code", "words"),
    [
        (
            "sharded-variant",
            lambda f: (f / "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
            .unlink(),
            "SLA303",
            "index.fp16.json names 1 shard not here",
        ),
        ("pipeline", lambda f: cut(f / "text_encoder/model.safetensors"), "SLA302", "text_encoder"),
        ("pipeline", lambda f: (f / "scheduler/scheduler_config.json").unlink(), "SLA301",
         "scheduler/ (FlowMatchEulerDiscreteScheduler)"),
        ("pipeline", lambda f: (f / "model_index.json").write_text("{"), "SLA301",
         "model_index.json is not JSON"),
        ("lora-with-ema", lambda f: cut(f / "ema/ema_model.safetensors"), "SLA302", "ema_model"),
        (
            "two-experts",
            lambda f: (f / "transformer_2/diffusion_pytorch_model-00002-of-00002.safetensors")
            .unlink(),
            "SLA303",
            "transformer_2",
        ),
        ("lycoris", lambda f: (f / "lycoris_config.json").rename(f / "other.txt"), "", ""),
    ],
)  # fmt: skip
def test_a_fault_in_any_part_is_found(
    name: str, damage: Callable[[Path], object], code: str, words: str, tmp_path: Path
) -> None:
    folder = LAYOUTS[name][0](tmp_path)
    damage(folder)
    found = serious(verify(folder))
    if not code:  # without its config, a LyCORIS file is taken for a LoRA
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(code)
    assert words in found[0]


def test_a_broken_link_of_a_download_cache_is_named(tmp_path: Path) -> None:
    repo = download_cache(tmp_path)
    config = repo / "snapshots/abc123/transformer/config.json"
    config.resolve().unlink()
    (found,) = serious(verify(repo))
    assert found.startswith("SLA301 transformer/config.json cannot be opened: dangling link to ")


def test_the_dtype_comes_from_the_weights_without_variant(tmp_path: Path) -> None:
    report = verify(half_variant(tmp_path))
    assert report.expected == ("128:bf16",)
    (tmp_path / "transformer/diffusion_pytorch_model.safetensors").unlink()
    assert verify(tmp_path).expected == ("128:fp16",)


def test_a_folder_full_of_caches_does_not_hide_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sla_ckpt.checkpoint import source

    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-1")
    (folder / "cache/vae").mkdir(parents=True)
    for number in range(40):
        (folder / f"cache/vae/{number}.pt").write_bytes(b"")
    monkeypatch.setattr(source, "MAX_FILES", 20)
    report = verify(folder)
    assert serious(report) == []
    assert any("a very large folder" in note for note in report.notes)


def test_a_second_state_inside_the_denoiser_is_mentioned(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path)
    add_state(folder / "transformer")
    assert any("transformer/sla_attention.pt is there too" in n for n in verify(folder).notes)


def test_a_state_where_the_trainer_does_not_look_is_a_fault_of_a_resume(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path, trainer=True)
    (folder / "sla_attention.pt").rename(folder / "transformer/sla_attention.pt")
    (finding,) = [f for f in verify(folder).findings if f.code == "SLA001"]
    assert finding.level == "warning"
    assert "transformer/sla_attention.pt, where the trainer does not look" in finding.message
    resume = verify(folder, VerifyOptions(purpose="resume", select=("SLA001",)))
    assert [f.level for f in resume.findings] == ["error"]
    assert verify(folder, VerifyOptions(purpose="inference")).ok


def test_one_of_several_adapters_in_a_folder_is_judged_by_itself(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lora = factories.write_lora(tmp_path) / "pytorch_lora_weights.safetensors"
        lora.rename(tmp_path / f"{name}.safetensors")
    cut(tmp_path / "b.safetensors")
    good, bad = (verify(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert (good.kind, bad.kind) == ("lora", "lora")
    assert [f.code for f in good.findings] == ["SLA001"]
    assert [f.code for f in bad.findings] == ["SLA001", "SLA302"]
    add_state(tmp_path)
    assert serious(verify(tmp_path / "a.safetensors")) == []


@pytest.mark.parametrize("name", ["transformer/config.json", "checkpoint_manifest.json"])
def test_a_file_of_a_checkpoint_that_is_no_state_means_its_folder(
    tmp_path: Path, name: str
) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-7", trainer=True)
    report = verify(folder / name)
    assert report.notes == (f"the folder of {Path(name).name}",)
    assert report.expected == ("128:bf16",)


def test_the_denoisers_own_folder_points_to_the_checkpoint(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "checkpoint-7")
    (found,) = serious(verify(folder / "transformer"))
    assert found == f"SLA001 sla_attention.pt is not here, but in the folder above, {folder}"


def test_deep_says_which_weights_it_does_not_read(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path)
    (folder / "transformer/diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (finding,) = [f for f in verify(folder, VerifyOptions(deep=True)).findings
                  if f.code == "SLA307"]  # fmt: skip
    assert finding.level == "info"
    assert "transformer/diffusion_pytorch_model.bin" in finding.message


@pytest.mark.parametrize(
    "name", ["sla_attention.pt", "transformer/diffusion_pytorch_model.safetensors", "optimizer.bin"]
)
def test_a_file_that_vanishes_while_it_is_read_is_one_error(tmp_path: Path, name: str) -> None:
    folder = factories.write_full_checkpoint(tmp_path)
    (folder / "optimizer.bin").write_bytes(b"PK")
    source = LocalSource(folder)
    (folder / name).unlink()
    with pytest.raises(TargetNotFoundError, match=r"cannot read .*" + Path(name).name):
        verify(source)


def test_a_broken_link_that_no_loader_follows_is_a_warning(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path)
    (folder / "samples.json").symlink_to(folder / "gone.json")
    (folder / "transformer/extra.safetensors").symlink_to(folder / "gone.safetensors")
    levels = {f.path: f.level for f in verify(folder).findings if f.code == "SLA301"}
    assert levels == {"samples.json": "warning", "transformer/extra.safetensors": "error"}
