"""Samples from SimpleTuner's caches: named, found, paired, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from sla_ckpt.errors import FormatError, RegenError, UsageError
from sla_ckpt.regen.families.base import collate
from sla_ckpt.regen.samples import SampleRequest, SampleSet, cache_files, load_samples
from sla_ckpt.state import SLASettings
from tests.regen.sample_makers import (
    ADAPTER,
    CONFIG,
    SETTINGS,
    embedding,
    hashed_name,
    latents,
    make_cache,
    make_captions,
    save,
    text_name,
)


def load(checkpoint: Path, **options: Any) -> SampleSet:
    options.setdefault("settings", SETTINGS)
    return load_samples(checkpoint, SampleRequest(**options), ADAPTER, CONFIG)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "output" / "checkpoint-3"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_cached_samples_load_and_stack(tmp_path: Path, checkpoint: Path, packed: bool) -> None:
    data = make_cache(tmp_path / "data", packed=packed)

    found = load(checkpoint, data=data)

    assert found.kind == "real"
    assert len(found) == 3
    batch = collate(found.samples)
    assert batch.latents.shape == (3, 4, 32, 32)
    expected = {latents(seed=number).sum().item() for number in range(3)}
    assert {sample.latents.sum().item() for sample in found.samples} == expected
    assert batch.conditioning["prompt_embeds"].shape == (3, 6, 32)


def test_captions_beside_pictures_pair_latents_and_text(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data")
    make_captions(tmp_path / "data" / "pictures")

    found = load(checkpoint, data=data)

    for number in range(3):
        sample = next(s for s in found.samples if s.source == hashed_name(f"picture{number}"))
        assert (sample.conditioning["prompt_embeds"] == number + 1).all()
    assert "3 with their own caption" in found.description
    assert not found.warnings


def test_unpaired_latents_take_another_caption_but_not_the_empty_one(
    tmp_path: Path, checkpoint: Path
) -> None:
    found = load(checkpoint, data=make_cache(tmp_path / "data"))

    values = {float(sample.conditioning["prompt_embeds"].mean()) for sample in found.samples}
    assert values == {1.0, 2.0, 3.0}
    assert "3 with another cached caption" in found.description
    assert "captions of 3 of 3 samples are not known" in found.warnings[0]


def test_only_an_empty_caption_is_better_than_none(tmp_path: Path, checkpoint: Path) -> None:
    data = tmp_path / "data"
    save(latents(), data / "vae" / "a.pt")
    save(embedding(-1.0), data / "text" / text_name(""))

    assert len(load(checkpoint, data=data)) == 1


def test_plain_names_and_dicts_with_latents_load(tmp_path: Path, checkpoint: Path) -> None:
    data = tmp_path / "data"
    save({"latents": latents(), "size": (1, 2)}, data / "vae" / "picture0.pt")
    save(embedding(1.0), data / "text" / text_name("caption 0"))
    make_captions(data / "vae", 1)

    found = load(checkpoint, data=data)

    assert "1 with their own caption" in found.description


@pytest.mark.parametrize("content", ["first line\ncaption 0\n", "caption 0", "  caption 0  \n\n"])
def test_any_line_of_a_caption_file_may_be_the_cached_one(
    tmp_path: Path, checkpoint: Path, content: str
) -> None:
    data = make_cache(tmp_path / "data", 1)
    make_captions(data / "pictures", 1)
    (data / "pictures" / "picture0.txt").write_text(content)

    assert "1 with their own caption" in load(checkpoint, data=data).description


def test_equal_stems_in_subfolders_are_told_apart(tmp_path: Path, checkpoint: Path) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(("left", "right")):
        save(latents(seed=number), data / "vae" / name / hashed_name("same"))
        (data / "pictures" / name).mkdir(parents=True)
        (data / "pictures" / name / "same.txt").write_text(name)
        save(embedding(float(number + 1)), data / "text" / text_name(name))

    found = load(checkpoint, data=data)

    for sample in found.samples:
        number = 0 if torch.equal(sample.latents, latents(seed=0)) else 1
        assert (sample.conditioning["prompt_embeds"] == number + 1).all()


def test_metadata_captions_pair_too(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 2)
    metadata = {f"pictures/picture{n}.png": {"caption": f"caption {n}"} for n in range(2)}
    (data / "aspect_ratio_bucket_metadata_set.json").write_text(json.dumps(metadata))

    assert "2 with their own caption" in load(checkpoint, data=data).description


def test_count_limits_and_order_is_fixed(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 6)

    first = load(checkpoint, data=data, count=2)
    again = load(checkpoint, data=data, count=2)

    assert len(first) == 2
    assert [s.source for s in first.samples] == [s.source for s in again.samples]


def test_caches_beside_the_checkpoint_are_found(checkpoint: Path) -> None:
    make_cache(checkpoint.parent.parent / "cache")

    found = load(checkpoint)

    assert found.kind == "real"
    assert len(found) == 3


def test_manifest_names_the_family_whose_cache_is_taken(checkpoint: Path) -> None:
    cache = make_cache(checkpoint.parent.parent / "cache")
    save(torch.zeros(99, 8, 8), cache / "vae" / "sdxl" / "other.pt")
    for number in range(9):
        save(
            {"prompt_embeds": torch.zeros(1, 2, 5)}, cache / "text" / text_name(f"{number}", "sdxl")
        )
    manifest = {"metadata": {"model_family": "flux"}}
    (checkpoint / "checkpoint_manifest.json").write_text(json.dumps(manifest))

    found = load(checkpoint)

    assert len(found) == 3
    assert not any("skipped" in note for note in found.warnings)


def make_dataloader(run: Path, entries: list[dict[str, Any]]) -> None:
    (run / "config").mkdir(parents=True, exist_ok=True)
    (run / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    (run / "config" / "config.json").write_text(
        json.dumps({"--data_backend_config": "config/multidatabackend.json"})
    )


@pytest.mark.parametrize("by_name", [False, True], ids=["found", "--config"])
def test_dataloader_configuration_leads_to_caches_and_captions(
    tmp_path: Path, checkpoint: Path, by_name: bool
) -> None:
    run = tmp_path / "elsewhere" if by_name else checkpoint.parent.parent
    make_cache(run / "somewhere")
    make_captions(run / "datasets" / "set")
    make_dataloader(
        run,
        [
            {
                "id": "set",
                "type": "local",
                "instance_data_dir": "datasets/set",
                "caption_strategy": "textfile",
                "cache_dir_vae": "somewhere/vae/{model_family}/{id}",
            },
            {"id": "off", "disabled": True, "cache_dir_vae": "somewhere/absent"},
            {"id": "text", "dataset_type": "text_embeds", "cache_dir": "somewhere/text"},
        ],
    )
    manifest = {"metadata": {"model_family": "flux"}}
    (checkpoint / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    config = run / "config" / "config.json" if by_name else None

    found = load(checkpoint, config=config)

    assert len(found) == 3
    assert "3 with their own caption" in found.description
    assert "named by multidatabackend.json" in found.description


@pytest.mark.parametrize(
    ("entry", "caption"),
    [
        ({"caption_strategy": "instanceprompt", "instance_prompt": "one prompt"}, "one prompt"),
        ({"caption_strategy": "filename"}, "a nice picture"),
        ({"caption_strategy": "textfile", "instance_prompt": "photo of"}, "photo of it"),
    ],
    ids=["instanceprompt", "filename", "prefix"],
)
def test_caption_strategies_of_the_dataloader_are_followed(
    checkpoint: Path, entry: dict[str, str], caption: str
) -> None:
    run = checkpoint.parent.parent
    save(latents(), run / "vaecache" / hashed_name("a_nice_picture"))
    save(embedding(1.0), run / "textcache" / text_name(caption))
    save(embedding(9.0), run / "textcache" / text_name("some validation prompt"))
    (run / "pictures").mkdir()
    (run / "pictures" / "a_nice_picture.png").write_bytes(b"")
    (run / "pictures" / "a_nice_picture.txt").write_text("it")
    make_dataloader(
        run,
        [
            {"id": "set", "instance_data_dir": "pictures", "cache_dir_vae": "vaecache", **entry},
            {"id": "text", "dataset_type": "text_embeds", "cache_dir": "textcache"},
        ],
    )

    found = load(checkpoint)

    assert (found.samples[0].conditioning["prompt_embeds"] == 1).all()


def test_named_config_without_caches_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")

    with pytest.raises(RegenError, match="names no dataloader configuration"):
        load(checkpoint, config=config)


def test_text_cache_beside_the_named_latents_is_found(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "cache")

    assert len(load(checkpoint, data=data / "vae" / "flux")) == 3


def test_unreadable_files_are_skipped_and_counted(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data")
    folder = data / "vae" / "flux" / "set"
    (folder / "empty.pt").write_bytes(b"")
    (folder / "garbage.pt").write_bytes(b"garbage" * 9)
    (folder / "cut.pt").write_bytes((folder / hashed_name("picture0")).read_bytes()[:900])
    (folder / "cutgz.pt").write_bytes(gzip.compress(b"x" * 9000)[:20])
    nan = latents()
    nan[0, 0, 0] = float("nan")
    save(nan, folder / "nan.pt")
    save({"other": 1}, folder / "dict.pt")

    found = load(checkpoint, data=data)

    assert len(found) == 3
    assert any("6 cache files skipped" in note for note in found.warnings)


def test_broken_text_embedding_falls_back_to_another(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 2)
    make_captions(data / "pictures", 2)
    (data / "text" / "flux" / text_name("caption 0")).write_bytes(b"broken")

    found = load(checkpoint, data=data)

    assert {float(s.conditioning["prompt_embeds"].mean()) for s in found.samples} == {2.0}
    assert any("1 cache files skipped" in note for note in found.warnings)


def test_nothing_readable_is_an_error_that_says_why(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data")
    for path in (data / "vae").rglob("*.pt"):
        path.write_bytes(b"")

    with pytest.raises(RegenError, match=r"none of the 3 .* not a readable cache file"):
        load(checkpoint, data=data)


def test_nan_latents_alone_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 1)
    for path in (data / "vae").rglob("*.pt"):
        save(torch.full((4, 32, 32), float("inf")), path)

    with pytest.raises(RegenError, match="NaN or Inf"):
        load(checkpoint, data=data)


def test_cache_of_another_model_names_both_channel_counts(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 1)
    for path in (data / "vae").rglob("*.pt"):
        save(torch.zeros(16, 32, 32), path)

    with pytest.raises(RegenError, match=r"\[16, 32, 32\].* 4 channels"):
        load(checkpoint, data=data)


def test_text_of_another_model_names_both_widths(tmp_path: Path, checkpoint: Path) -> None:
    data = tmp_path / "data"
    save(latents(), data / "vae" / "a.pt")
    save({**embedding(), "prompt_embeds": torch.zeros(1, 6, 5)}, data / "text" / text_name("x"))

    with pytest.raises(RegenError, match=r"\[1, 6, 5\].*32"):
        load(checkpoint, data=data)


def test_empty_folder_and_missing_parts_are_errors(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegenError, match="no cached latents"):
        load(checkpoint, data=tmp_path / "empty")
    save(latents(), tmp_path / "half" / "a.pt")
    with pytest.raises(RegenError, match="no cached text embeddings"):
        load(checkpoint, data=tmp_path / "half")
    with pytest.raises(RegenError, match="not a directory"):
        load(checkpoint, data=tmp_path / "absent")


def test_state_file_is_not_taken_for_latents(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 1)
    save(torch.zeros(4, 32, 32), data / "vae" / "sla_attention.pt")
    save(torch.zeros(4, 32, 32), data / "checkpoint-9" / "a.pt")

    assert len(load(checkpoint, data=data)) == 1


def test_linked_folders_are_followed_once(tmp_path: Path, checkpoint: Path) -> None:
    make_cache(tmp_path / "elsewhere")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(data)

    assert len(load(checkpoint, data=data)) == 3


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_malicious_cache_file_is_not_executed(
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    data = make_cache(tmp_path / "data", 1)
    folder = data / "vae" / "flux" / "set"
    save({"latents": Malicious()}, folder / "zip.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(Malicious()))

    found = load(checkpoint, data=data)

    assert len(found) == 1
    assert "executed" not in capsys.readouterr().out


def test_damaged_cache_files_give_one_line_whatever_the_damage(tmp_path: Path) -> None:
    random = Random(3)
    whole = [
        save(latents(8, 8), tmp_path / "zip.pt").read_bytes(),
        save({"latents": latents(8, 8)}, tmp_path / "gz.pt", packed=True).read_bytes(),
    ]
    old = io.BytesIO()
    torch.save({"latents": latents(2, 2)}, old, _use_new_zipfile_serialization=False)
    whole.append(old.getvalue())
    path = tmp_path / "damaged.pt"
    refused = 0
    for _ in range(600):
        data = bytearray(random.choice(whole))
        for _ in range(random.randint(1, 5)):
            data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(data[: random.choice([len(data), random.randrange(1, len(data))])])
        try:
            cache_files.read_latents(path)
        except FormatError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "text",
    [
        "[1, null, {}]",
        '{"a": 1}',
        "[",
        '[{"cache_dir_vae": 7}]',
        '[{"cache_dir_vae": "~no/such"}]',
        '[{"cache_dir_vae": "a\\u0000b", "dataset_type": []}]',
    ],
)
def test_odd_dataloader_configurations_are_passed_over(checkpoint: Path, text: str) -> None:
    run = checkpoint.parent.parent
    make_cache(run / "cache", 1)
    make_dataloader(run, [])
    (run / "config" / "multidatabackend.json").write_text(text)

    assert load(checkpoint).kind == "real"


def test_decompression_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_files, "MAX_BYTES", 100_000)
    bomb = tmp_path / "bomb.pt"
    bomb.write_bytes(gzip.compress(b"\0" * 1_000_000))

    with pytest.raises(FormatError, match="more than 100,000 bytes"):
        cache_files.read_cache_file(bomb)


def test_crop_to_a_resolution_takes_the_centre(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 1, rows=40, columns=36)

    found = load(checkpoint, data=data, resolution=(256, 192))

    assert torch.equal(found.samples[0].latents, latents(40, 36)[:, 8:32, 2:34])


def test_crop_to_a_token_count(tmp_path: Path, checkpoint: Path) -> None:
    data = make_cache(tmp_path / "data", 1)

    found = load(checkpoint, data=data, tokens=144)

    assert found.samples[0].latents.shape == (4, 24, 24)


def test_samples_smaller_than_the_resolution_are_passed_over(
    tmp_path: Path, checkpoint: Path
) -> None:
    data = make_cache(tmp_path / "data", 2)
    save(latents(64, 64), data / "vae" / "flux" / "set" / "large.pt")

    found = load(checkpoint, data=data, resolution=(512, 512))

    assert [sample.source for sample in found.samples] == ["large.pt"]
    with pytest.raises(RegenError, match=r"is 256x256 .* smaller than 1024x1024"):
        load(checkpoint, data=make_cache(tmp_path / "small", 1), resolution=(1024, 1024))


@pytest.mark.parametrize("options", [{}, {"resolution": (256, 256)}, {"tokens": 256}])
def test_size_at_which_topk_keeps_no_block_is_refused(
    tmp_path: Path, checkpoint: Path, options: dict[str, Any]
) -> None:
    data = make_cache(tmp_path / "data", 1)

    with pytest.raises(RegenError, match=r"256.* no block is kept") as caught:
        load(checkpoint, data=data, settings=SLASettings(topk=0.2), **options)
    if options:
        assert "at least 257 tokens" in str(caught.value.hint)


def test_sources_exclude_each_other(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="--data and --inputs exclude"):
        load(checkpoint, data=tmp_path, inputs=tmp_path / "x")
    with pytest.raises(UsageError, match="too few"):
        load(checkpoint, data=tmp_path, count=0)
    with pytest.raises(UsageError, match="name the same thing"):
        load(checkpoint, data=make_cache(tmp_path / "d"), tokens=9, resolution=(1, 1))


def test_unusable_caches_found_by_themselves_give_a_warning_and_synthetic_samples(
    checkpoint: Path,
) -> None:
    cache = make_cache(checkpoint.parent.parent / "cache", 1)
    for path in (cache / "vae").rglob("*.pt"):
        save(torch.zeros(16, 32, 32), path)

    found = load(checkpoint, count=1)

    assert found.kind == "synthetic"
    assert "cannot be used" in found.warnings[0]
