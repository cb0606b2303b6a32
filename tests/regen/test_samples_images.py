"""Pictures and frame folders, encoded with tiny real pipelines."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sla_ckpt.errors import RegenError, UsageError
from sla_ckpt.regen.empty_model import build_empty
from sla_ckpt.regen.families.base import collate
from sla_ckpt.regen.families.registry import adapter_for
from sla_ckpt.regen.samples import SampleRequest, SampleSet, load_samples
from sla_ckpt.regen.samples.pictures import list_pictures, load_picture
from sla_ckpt.state import SLASettings
from tests.regen.tiny_pipelines import FAMILIES

#: Keeps a block at any size, so that tiny pictures do.
SETTINGS = SLASettings(topk=1.0)
CAPTIONS = ["a red house", "two green cat on the table"]


def save_picture(path: Path, *, width: int = 96, height: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def make_pictures(folder: Path, *, video: bool = False) -> Path:
    for number, caption in enumerate(CAPTIONS):
        if video:
            for frame in range(6):
                save_picture(folder / f"clip{number}" / f"frame_{frame}.png", seed=frame)
            (folder / f"clip{number}.txt").write_text(caption)
        else:
            save_picture(folder / f"{number}.png", seed=number)
            (folder / f"{number}.txt").write_text(caption + "\n")
    return folder


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, build in FAMILIES.items():
        made[name] = build(tmp_path_factory.mktemp(name) / "pipeline")
    return made


def encode(
    images: Path, pipeline: Path | None, config: dict[str, Any], **options: Any
) -> SampleSet:
    options.setdefault("settings", SETTINGS)
    request = SampleRequest(images=images, pipeline=pipeline, **options)
    return load_samples(images, request, adapter_for(config), config)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_encoded_samples_run_through_the_model(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]], family: str
) -> None:
    root, config = pipelines[family]
    video = family == "wan"

    found = encode(make_pictures(tmp_path / "images", video=video), root, config)

    assert found.kind == "real"
    assert not found.warnings
    assert [sample.source for sample in found.samples] == (
        ["clip0/", "clip1/"] if video else ["0.png", "1.png"]
    )
    adapter = adapter_for(config)
    batch = collate(found.samples[:1])
    assert batch.latents.shape[1:] == ((4, 2, 8, 12) if video else (4, 8, 12))
    assert batch.latents.dtype == torch.float32
    _, model = build_empty(config["_class_name"], config, torch.float32)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model = type(model).from_config(model.config).eval()
    time = torch.full((1,), 0.5)
    noisy, target = adapter.add_noise(batch.latents, torch.randn_like(batch.latents), time)
    with torch.no_grad(), adapter.running(model):
        output = model(**adapter.make_inputs(model, batch, noisy, time))
    prediction = adapter.read_prediction(output, batch)
    assert prediction.shape == target.shape
    assert torch.isfinite(prediction).all()


@pytest.mark.parametrize("family", ["flux", "sdxl", "qwen_image", "wan"])
def test_latents_are_scaled_as_the_pipeline_decodes_them(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]], family: str
) -> None:
    """Undoing the pipeline's own scaling gives back the VAE's latents."""
    root, config = pipelines[family]
    images = make_pictures(tmp_path / "images", video=family == "wan")
    vae = {
        "flux": diffusers.AutoencoderKL,
        "sdxl": diffusers.AutoencoderKL,
        "qwen_image": diffusers.AutoencoderKLQwenImage,
        "wan": diffusers.AutoencoderKLWan,
    }[family].from_pretrained(root / "vae")

    sample = encode(images, root, config).samples[0]

    item = list_pictures(images, video=family == "wan")[0]
    pixels = load_picture(item, 64, 96, 5 if family == "wan" else 1).pixels[None]
    if family in ("flux", "sdxl"):
        with torch.no_grad():
            raw = vae.encode(pixels[:, :, 0]).latent_dist.mode()[0]
        back = sample.latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    else:
        with torch.no_grad():
            raw = vae.encode(pixels).latent_dist.mode()[0]
        shape = (-1, 1, 1, 1)
        scaled = sample.latents if family == "wan" else sample.latents.unsqueeze(1)
        back = scaled * torch.tensor(vae.config.latents_std).view(shape)
        back = back + torch.tensor(vae.config.latents_mean).view(shape)
    torch.testing.assert_close(back, raw, atol=1e-4, rtol=1e-4)


def test_captions_are_the_pipelines_own_encoding(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]

    found = encode(make_pictures(tmp_path / "images"), root, config)

    pipeline = diffusers.FluxPipeline.from_pretrained(root, transformer=None)
    for sample, caption in zip(found.samples, CAPTIONS, strict=True):
        with torch.no_grad():
            text, pooled, _ = pipeline.encode_prompt(prompt=caption, prompt_2=None, device="cpu")
        assert torch.equal(sample.conditioning["prompt_embeds"], text[0])
        assert torch.equal(sample.conditioning["pooled_prompt_embeds"], pooled[0])
    a, b = (sample.conditioning["prompt_embeds"] for sample in found.samples)
    assert not torch.equal(a, b)


def test_sdxl_samples_know_their_original_size(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["sdxl"]
    save_picture(tmp_path / "images" / "a.png", width=200, height=100)

    found = encode(tmp_path / "images", root, config, resolution=(64, 64))

    assert found.samples[0].latents.shape == (4, 8, 8)
    assert found.samples[0].conditioning["time_ids"].tolist() == [100, 200, 0, 32, 64, 64]
    assert "1 of 1 pictures have no caption" in found.warnings[0]


def test_wan_frames_are_taken_in_order_and_in_steps(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["wan"]
    for frame in range(12):
        save_picture(tmp_path / "images" / f"{frame}.png", seed=frame)

    item = list_pictures(tmp_path / "images", video=True)[0]
    found = encode(tmp_path / "images", root, config)
    short = encode(tmp_path / "images", root, config, frames=5)

    assert [path.stem for path in item.frames] == [str(number) for number in range(12)]
    assert found.samples[0].latents.shape[1] == 3
    assert short.samples[0].latents.shape[1] == 2


def test_count_limits_what_is_encoded(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]

    assert len(encode(make_pictures(tmp_path / "images"), root, config, count=1)) == 1


def test_pipeline_beside_the_checkpoint_is_found(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]
    images = make_pictures(tmp_path / "images")
    request = SampleRequest(images=images, settings=SETTINGS)
    checkpoint = tmp_path / "output" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    with pytest.raises(RegenError, match="nothing names them"):
        load_samples(checkpoint, request, adapter_for(config), config)
    (checkpoint.parent / "config.json").write_text(
        json.dumps({"--pretrained_model_name_or_path": str(root)})
    )

    found = load_samples(checkpoint, request, adapter_for(config), config)

    assert len(found) == 2
    assert str(root) in found.description


def test_denoiser_folder_leads_to_the_pipeline_around_it(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]
    (root / "transformer").mkdir(exist_ok=True)

    assert len(encode(make_pictures(tmp_path / "images"), root / "transformer", config)) == 2


def test_broken_pictures_are_skipped_and_counted(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]
    images = make_pictures(tmp_path / "images")
    (images / "broken.png").write_bytes(b"not a picture")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:200])

    found = encode(images, root, config)

    assert len(found) == 2
    assert "2 pictures skipped" in found.warnings[0]
    for name in ("0.png", "1.png"):
        (images / name).write_bytes(b"")
    with pytest.raises(RegenError, match="none of the 4 pictures"):
        encode(images, root, config)


def test_folders_without_pictures_are_errors(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    root, config = pipelines["flux"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegenError, match="holds no pictures"):
        encode(tmp_path / "empty", root, config)
    with pytest.raises(RegenError, match="not a directory"):
        encode(tmp_path / "absent", root, config)
    with pytest.raises(RegenError, match="no block is kept"):
        encode(make_pictures(tmp_path / "images"), root, config, settings=SLASettings(topk=0.2))
    with pytest.raises(UsageError, match="name the same thing"):
        encode(tmp_path / "images", root, config, tokens=5, resolution=(64, 64))


def test_pipeline_of_another_family_is_named(
    tmp_path: Path, pipelines: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    _, config = pipelines["flux"]
    other, _ = pipelines["pixart"]

    with pytest.raises(RegenError, match=r"pooled_prompt_embeds.*encoded with") as caught:
        encode(make_pictures(tmp_path / "images"), other, config)
    assert "base pipeline" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "LTXPipeline"}, "does not know how LTXPipeline"),
        ({"vae": ["os", "system"]}, "takes vae from 'os'"),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, "does not load"),
    ],
    ids=["unknown", "library", "class"],
)
def test_pipeline_that_cannot_be_used_is_refused(
    tmp_path: Path,
    pipelines: dict[str, tuple[Path, dict[str, Any]]],
    change: dict[str, Any],
    message: str,
) -> None:
    root, config = pipelines["flux"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in root.iterdir():
        (copy / path.name).symlink_to(path)
    index = json.loads((root / "model_index.json").read_text())
    (copy / "model_index.json").unlink()
    (copy / "model_index.json").write_text(json.dumps({**index, **change}))

    with pytest.raises(RegenError, match=message):
        encode(make_pictures(tmp_path / "images"), copy, config)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_pickled_pipeline_weights_are_refused(
    tmp_path: Path,
    pipelines: dict[str, tuple[Path, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, config = pipelines["flux"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in root.iterdir():
        if path.name != "vae":
            (copy / path.name).symlink_to(path)
    (copy / "vae").mkdir()
    (copy / "vae" / "config.json").write_text((root / "vae" / "config.json").read_text())
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))

    with pytest.raises(RegenError, match="does not load"):
        encode(make_pictures(tmp_path / "images"), copy, config)
    assert "executed" not in capsys.readouterr().out


def test_transparent_and_rotated_pictures_are_read_as_seen(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), (255, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)

    clear, turned = list_pictures(tmp_path, video=False)

    assert (load_picture(clear, 16, 16, 1).pixels == 1).all()
    assert load_picture(turned, 32, 16, 1).original == (32, 16)
