"""What a path means and what kind of thing it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sla_ckpt.checkpoint.layout import CheckpointKind, discover
from sla_ckpt.checkpoint.resolve import list_checkpoints, resolve_checkpoint
from sla_ckpt.checkpoint.runconfig import load_run_config, parse_resolution, parse_sla_config
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.errors import FormatError, TargetNotFoundError, UsageError
from tests import factories


def kind_of(folder: Path) -> CheckpointKind:
    return discover(LocalSource(folder)).kind


def test_the_newest_finished_checkpoint_is_chosen_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-30-rolling", "checkpoint-200-tmp"):
        (tmp_path / name).mkdir()
    assert resolve_checkpoint(tmp_path).name == "checkpoint-100"
    assert [item.step for item in list_checkpoints(tmp_path)] == [9, 30, 100, 200]


def test_a_file_means_its_folder_and_a_missing_path_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sla_attention.pt"
    file.write_bytes(b"x")
    assert resolve_checkpoint(file) == tmp_path
    with pytest.raises(TargetNotFoundError, match="no-such"):
        resolve_checkpoint(tmp_path / "no-such")


def test_kinds(tmp_path: Path) -> None:
    factories.write_denoiser(tmp_path / "full/transformer")
    factories.write_denoiser(tmp_path / "unet/unet")
    factories.write_denoiser(tmp_path / "control/controlnet")
    factories.write_denoiser(tmp_path / "plain")
    factories.write_denoiser(tmp_path / "pipe/transformer")
    (tmp_path / "pipe/model_index.json").write_text("{}")
    factories.write_lora(tmp_path / "lora")
    factories.write_lora(tmp_path / "lycoris")
    (tmp_path / "lycoris/lycoris_config.json").write_text("{}")
    (tmp_path / "state").mkdir()
    (tmp_path / "state/sla_attention.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    assert {name.name: kind_of(name).value for name in tmp_path.iterdir()} == {
        "full": "full",
        "unet": "full",
        "control": "controlnet",
        "plain": "diffusers",
        "pipe": "pipeline",
        "lora": "lora",
        "lycoris": "lycoris",
        "state": "state-file",
        "empty": "unknown",
    }


def test_ema_and_the_second_expert_are_found(tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2", "transformer_ema"):
        factories.write_denoiser(tmp_path / name)
    checkpoint = discover(LocalSource(tmp_path))
    assert [component.folder for component in checkpoint.components] == [
        "transformer",
        "transformer_2",
        "transformer_ema",
    ]


def test_a_state_inside_the_denoisers_folder_is_found(tmp_path: Path) -> None:
    factories.write_denoiser(tmp_path / "transformer")
    (tmp_path / "transformer/sla_attention.pt").write_bytes(b"x")
    assert discover(LocalSource(tmp_path)).state_path == "transformer/sla_attention.pt"


def test_a_link_loop_ends_and_a_dangling_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    source = LocalSource(tmp_path)
    assert "dangling link" in source.broken["gone"]


def test_ranged_reads(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    source = LocalSource(tmp_path)
    assert source.read("a", 3, 4) == b"3456"
    assert source.read("a", 8, 100) == b"89"
    (tmp_path / "a").unlink()
    with pytest.raises(TargetNotFoundError):
        source.read("a")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"topk": 0.1}', {"topk": 0.1}),
        ("{'topk': 0.1, 'tie_feature_map_qk': False}", {"topk": 0.1, "tie_feature_map_qk": False}),
        ('{"tie_feature_map_qk": false}', {"tie_feature_map_qk": False}),
        ("null", {}),
        ("", {}),
    ],
)
def test_sla_config_in_both_notations(text: str, value: dict[str, object]) -> None:
    assert parse_sla_config(text) == value


@pytest.mark.parametrize("text", ["topk=0.1", "[1]", "{", "(" * 10_000, "{1: 2}"])
def test_a_wrong_sla_config_is_one_error(text: str) -> None:
    with pytest.raises(FormatError):
        parse_sla_config(text)


def test_a_trainers_config_with_dashes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"--attention_mechanism": "sla", "--mixed-precision": "fp16"}))
    config = load_run_config(path)
    assert config.attention_mechanism == "sla"
    assert config.compute_dtype == "fp16"
    with pytest.raises(UsageError, match=r"config\.json"):
        load_run_config(tmp_path / "missing" / "config.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1024x768", (1024, 768)), ("512", (512, 512)), ("1024X1024", (1024, 1024))],
)
def test_resolutions(text: str, value: tuple[int, int]) -> None:
    assert parse_resolution(text) == value


@pytest.mark.parametrize("text", ["", "big", "0x10", "10x", "1e3", "-5"])
def test_wrong_resolutions(text: str) -> None:
    assert parse_resolution(text) is None


def test_an_unknown_users_home_is_a_missing_path() -> None:
    with pytest.raises(TargetNotFoundError, match="~nobody-here"):
        resolve_checkpoint("~nobody-here/checkpoint-1")
