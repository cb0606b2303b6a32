"""regenerate(): what it restores, what it writes, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sla_ckpt.checks.verify import verify
from sla_ckpt.errors import AttentionError, LockedError, RegenError, UsageError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import read_twin, write_state
from sla_ckpt.fsio import directory_lock
from sla_ckpt.regen import restore as restore_module
from sla_ckpt.regen import write as write_module
from sla_ckpt.regen.engine import regenerate
from sla_ckpt.regen.families.registry import adapter_for
from sla_ckpt.regen.options import RegenOptions, settings_from_text
from sla_ckpt.state import STATE_FILE, TWIN_FILE, ProjectionTensors, SLASettings, SLAState
from tests.regen.lost_state import (
    CONFIG,
    KEY,
    SETTINGS,
    make_calls,
    make_lost_checkpoint,
    true_state,
)
from tests.regen.sample_makers import make_cache
from tests.regen.tiny_models import hashes, make_model

torch.set_num_threads(1)
FAST = RegenOptions(device="cpu", settings=SETTINGS, draws=1, evaluations=12)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calls(tmp_path_factory.mktemp("calls") / "calls.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_lost_checkpoint(tmp_path)


def test_one_step_recovers_a_lost_state(checkpoint: Path, calls: Path) -> None:
    result = regenerate(checkpoint, replace(FAST, inputs=calls, evaluations=20))
    item = result.passes[0]
    assert result.ok
    assert item.after < 0.1 * item.before
    assert result.data == "real"
    assert (result.train_samples, result.judge_samples) == (6, 2)
    written = read_state(checkpoint / STATE_FILE)
    assert written.settings == SETTINGS
    assert not written.pairs[KEY].is_zero


def test_the_backbone_is_bit_identical_and_the_result_verifies(
    checkpoint: Path, calls: Path
) -> None:
    before = hashes(checkpoint)
    result = regenerate(checkpoint, replace(FAST, inputs=calls))
    after = hashes(checkpoint)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {STATE_FILE, TWIN_FILE}
    assert result.verify_ok
    assert verify(checkpoint).ok


def test_the_twin_records_where_the_state_comes_from(checkpoint: Path, calls: Path) -> None:
    regenerate(checkpoint, replace(FAST, inputs=calls, seed=7))
    origin = read_twin(checkpoint / TWIN_FILE).origin
    assert origin["data"] == "real"
    assert origin["seed"] == "7"
    assert origin["kernel"] == "reference"
    assert origin["sla_variant"] == "main"
    assert origin["method"].startswith("trained from")
    assert float(origin["loss_after"]) < float(origin["loss_before"])


def test_a_good_old_state_stays_when_nothing_beats_it(checkpoint: Path, calls: Path) -> None:
    write_state(checkpoint, true_state())
    before = hashes(checkpoint)
    result = regenerate(checkpoint, replace(FAST, inputs=calls, settings=None, method="calibrate"))
    assert not result.ok
    assert result.written is None
    assert "nothing beat" in str(result.reason)
    assert hashes(checkpoint) == before


def test_a_worse_old_state_is_backed_up_and_replaced(checkpoint: Path, calls: Path) -> None:
    write_state(checkpoint, true_state(seed=99))
    old = (checkpoint / STATE_FILE).read_bytes()
    result = regenerate(checkpoint, replace(FAST, inputs=calls, settings=None))
    assert result.ok
    assert result.settings["source"] == f"the old {STATE_FILE}"
    assert [path.read_bytes() for path in result.backups if ".pt.bak-" in path.name] == [old]
    assert (checkpoint / STATE_FILE).read_bytes() != old


def test_no_backup_leaves_no_copies(checkpoint: Path, calls: Path) -> None:
    write_state(checkpoint, true_state(seed=99))
    regenerate(checkpoint, replace(FAST, inputs=calls, backup=False))
    assert not list(checkpoint.glob("*.bak-*"))


def test_an_unreadable_old_file_is_replaced_with_a_warning(checkpoint: Path, calls: Path) -> None:
    (checkpoint / STATE_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    result = regenerate(checkpoint, replace(FAST, inputs=calls))
    assert result.ok
    assert "cannot be used" in result.warnings[0]
    assert read_state(checkpoint / STATE_FILE).pairs.keys() == {KEY}
    assert len(result.backups) == 1


def test_pairs_of_other_models_in_the_old_file_are_kept(checkpoint: Path, calls: Path) -> None:
    stray = replace(KEY, head_dim=8)
    write_state(checkpoint, SLAState({stray: ProjectionTensors.zeros(8)}, SETTINGS))
    regenerate(checkpoint, replace(FAST, inputs=calls))
    assert read_state(checkpoint / STATE_FILE).pairs.keys() == {KEY, stray}


@pytest.fixture
def any_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe made-up samples at once: on random weights the gain is small."""
    monkeypatch.setattr(restore_module, "MADE_UP_GAIN", 0.0)


def test_the_same_seed_gives_the_same_bytes(any_gain: None, tmp_path: Path) -> None:
    states = []
    for index, seed in enumerate((5, 5, 6)):
        checkpoint = make_lost_checkpoint(tmp_path / str(index))
        regenerate(checkpoint, replace(FAST, samples=2, tokens=100, seed=seed, evaluations=4))
        states.append((checkpoint / STATE_FILE).read_bytes())
    assert states[0] == states[1] != states[2]


def test_made_up_samples_are_recorded_and_warned_about(any_gain: None, checkpoint: Path) -> None:
    result = regenerate(checkpoint, replace(FAST, samples=2, tokens=100, evaluations=4))
    assert result.ok
    assert result.data == "synthetic"
    assert any("NOT confirmed" in warning for warning in result.warnings)
    assert read_twin(checkpoint / TWIN_FILE).origin["data"] == "synthetic"
    assert "SLA211" in {finding["code"] for finding in result.findings}


def test_a_small_gain_on_made_up_samples_is_not_believed(checkpoint: Path) -> None:
    result = regenerate(checkpoint, replace(FAST, samples=2, tokens=100, evaluations=4, seed=5))
    item = result.passes[0]
    assert not result.ok
    assert item.method == "unchanged"
    best, zero = (c.loss for c in (item.candidates[0], *[c for c in item.candidates if c.present]))
    assert 0.95 * zero < best < zero
    assert "name real ones with --data or --images" in str(result.reason)
    assert not (checkpoint / STATE_FILE).exists()


def test_made_up_samples_never_replace_a_trained_state(any_gain: None, checkpoint: Path) -> None:
    write_state(checkpoint, true_state(seed=99))
    before = hashes(checkpoint)
    result = regenerate(checkpoint, replace(FAST, samples=2, tokens=100, evaluations=4))
    assert not result.ok
    assert "made-up samples" in str(result.reason)
    assert hashes(checkpoint) == before


def test_cached_samples_beside_the_checkpoint_are_found_and_used(tmp_path: Path) -> None:
    checkpoint = make_lost_checkpoint(tmp_path / "output")
    make_cache(tmp_path / "cache", count=3)
    result = regenerate(checkpoint, replace(FAST, data=tmp_path / "cache", evaluations=3))
    assert result.data == "real"
    assert result.train_samples == 3
    assert "cached samples" in result.samples


def test_stored_calls_take_lbfgs_and_samples_are_annealed(
    checkpoint: Path, calls: Path, tmp_path: Path
) -> None:
    make_cache(tmp_path / "cache", count=5)
    stored = regenerate(checkpoint, replace(FAST, inputs=calls, dry_run=True)).passes[0]
    annealed = replace(FAST, data=tmp_path / "cache", evaluations=8, dry_run=True)
    sampled = regenerate(checkpoint, annealed).passes[0]
    assert any("iterate" in c.name for c in stored.candidates)
    assert [len(losses) for losses in sampled.train_losses.values()] == [8]
    names = [c.name for c in sampled.candidates if c.name.startswith("trained")]
    assert not any("iterate" in name for name in names)
    assert any(name.endswith("× 0.50") for name in names)


def test_stored_calls_can_be_annealed_too(checkpoint: Path, calls: Path) -> None:
    options = replace(FAST, inputs=calls, optimizer="anneal", evaluations=20, draws=4)
    item = regenerate(checkpoint, options).passes[0]
    assert item.after < 0.8 * item.before


def test_adamw_lowers_the_loss(checkpoint: Path, calls: Path) -> None:
    options = replace(FAST, inputs=calls, optimizer="adamw", steps=15, lr=0.3)
    item = regenerate(checkpoint, options).passes[0]
    assert item.after < 0.5 * item.before
    assert len(next(iter(item.train_losses.values()))) == 15


def test_calibrate_alone_trains_nothing(checkpoint: Path) -> None:
    result = regenerate(
        checkpoint, replace(FAST, samples=2, tokens=100, method="calibrate", dry_run=True)
    )
    assert result.passes[0].train_losses == {}
    names = {c.name for c in result.passes[0].candidates}
    assert {"zero", "calibrated"} <= names
    assert not any("trained" in name for name in names)


def test_calibration_lowers_the_attention_error(checkpoint: Path) -> None:
    result = regenerate(
        checkpoint, replace(FAST, samples=2, tokens=100, method="calibrate", dry_run=True)
    )
    names = {c.name: c for c in result.passes[0].candidates}
    assert names["calibrated"].loss != names["zero"].loss
    pair = result.passes[0].pairs[0]
    assert pair.pair == "16:bf16"
    assert pair.layers == 2
    assert 0 <= pair.worst_layer < 2
    assert pair.worst_before >= pair.before > 0


def test_several_lbfgs_steps_go_on_where_the_last_one_stopped(
    checkpoint: Path, calls: Path
) -> None:
    options = replace(FAST, inputs=calls, steps=2, evaluations=6, method="train", dry_run=True)
    item = regenerate(checkpoint, options).passes[0]
    losses = {name: c for name, c in item.train_losses.items() if "from zero" in name}
    first, second = losses.values()
    assert second[0] == pytest.approx(min(first), rel=1e-6)
    assert min(second) < min(first)


def test_both_dtypes_make_both_pairs(checkpoint: Path, calls: Path) -> None:
    result = regenerate(checkpoint, replace(FAST, inputs=calls, dtype="both"))
    assert [item.dtype for item in result.passes] == ["bf16", "fp16"]
    assert {str(key) for key in read_state(checkpoint / STATE_FILE)} == {"16:bf16", "16:fp16"}
    assert "other dtype" in {c.name for c in result.passes[1].candidates}


def test_a_dry_run_writes_nothing(checkpoint: Path, calls: Path) -> None:
    before = hashes(checkpoint)
    result = regenerate(checkpoint, replace(FAST, inputs=calls, dry_run=True))
    assert result.ok
    assert result.written is None
    assert hashes(checkpoint) == before


def test_the_manifest_lists_the_new_files(checkpoint: Path, calls: Path) -> None:
    manifest = checkpoint / "checkpoint_manifest.json"
    manifest.write_text(json.dumps({"version": 1, "files": ["transformer/config.json"]}))
    regenerate(checkpoint, replace(FAST, inputs=calls))
    listed = json.loads(manifest.read_text())
    assert listed == {
        "version": 1,
        "files": [TWIN_FILE, STATE_FILE, "transformer/config.json"]
        if TWIN_FILE < STATE_FILE
        else [STATE_FILE, TWIN_FILE, "transformer/config.json"],
    }


def test_options_go_over_the_old_settings_and_the_old_state_is_left_out(
    checkpoint: Path, calls: Path
) -> None:
    write_state(checkpoint, true_state())
    options = replace(FAST, inputs=calls, settings=None, overrides=(("blkq", 128),))
    result = regenerate(checkpoint, options)
    assert read_state(checkpoint / STATE_FILE).settings == replace(SETTINGS, blkq=128)
    assert "old" not in {c.name for c in result.passes[0].candidates}
    assert any("other settings" in warning for warning in result.warnings)


def test_a_size_that_keeps_no_block_is_refused(checkpoint: Path, calls: Path) -> None:
    before = hashes(checkpoint)
    with pytest.raises(RegenError, match="keeps none of the 3 key blocks"):
        regenerate(checkpoint, replace(FAST, inputs=calls, settings=SLASettings(topk=0.2)))
    assert hashes(checkpoint) == before


def test_settings_that_no_kernel_runs_are_refused(checkpoint: Path, calls: Path) -> None:
    with pytest.raises(AttentionError, match="blkq 32"):
        regenerate(checkpoint, replace(FAST, inputs=calls, settings=SLASettings(blkq=32)))


def test_a_kernel_that_cannot_run_is_an_error_not_a_fallback(checkpoint: Path, calls: Path) -> None:
    with pytest.raises(AttentionError, match="external"):
        regenerate(checkpoint, replace(FAST, inputs=calls, kernel="external"))


@pytest.mark.parametrize("method", ["auto", "train"])
def test_a_kernel_that_fails_while_running_stops_everything(
    checkpoint: Path, calls: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    monkeypatch.setattr("sla_ckpt.attention.module.sla_reference", broken)
    before = hashes(checkpoint)
    with pytest.raises(RegenError, match="RuntimeError: CUDA error: an illegal memory access"):
        regenerate(checkpoint, replace(FAST, inputs=calls, method=method))
    assert hashes(checkpoint) == before


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, calls: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.bias"] = torch.full_like(weights["proj_out.bias"], torch.nan)
    save_file(weights, path)
    with pytest.raises(RegenError, match="loss is not finite"):
        regenerate(checkpoint, replace(FAST, inputs=calls))


def test_a_loss_of_exactly_zero_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name in ("proj_out.weight", "proj_out.bias"):
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, path)
    calls = make_calls(tmp_path / "zero.safetensors", count=1, zero_target=True)
    with pytest.raises(RegenError, match="exactly 0"):
        regenerate(checkpoint, replace(FAST, inputs=calls))


def test_inputs_that_forward_does_not_take_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "wrong.safetensors"
    save_file({"nonsense": torch.zeros(1, 4), "target": torch.zeros(1, 4)}, path)
    with pytest.raises(RegenError, match="FluxTransformer2DModel failed to run: TypeError"):
        regenerate(checkpoint, replace(FAST, inputs=path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_without_cuda_the_default_names_the_way_out(checkpoint: Path) -> None:
    with pytest.raises(RegenError, match="no CUDA device") as caught:
        regenerate(checkpoint)
    assert "--device cpu" in str(caught.value.hint)


def test_a_checkpoint_that_is_being_written_is_refused_before_the_work(
    checkpoint: Path, calls: Path
) -> None:
    with directory_lock(checkpoint), pytest.raises(LockedError):
        regenerate(checkpoint, replace(FAST, inputs=calls))


@pytest.mark.parametrize("step", ["backup", "staged_state", "_new_manifest"])
def test_cut_short_at_any_step_of_writing_the_checkpoint_stays_valid(
    checkpoint: Path, calls: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(checkpoint, true_state(seed=99))

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, step, cut)
    with pytest.raises(KeyboardInterrupt):
        regenerate(checkpoint, replace(FAST, inputs=calls, evaluations=6))
    monkeypatch.undo()
    report = verify(checkpoint)
    assert report.ok, report.findings
    assert read_state(checkpoint / STATE_FILE).pairs.keys() == {KEY}


@pytest.mark.parametrize(
    "text",
    [
        '{"topk": 0.1, "tie_feature_map_qk": false}',
        "{'topk': 0.1, 'tie_feature_map_qk': False}",
        "{'topk': 0.1, 'tie_feature_map_qk': false}",
    ],
)
def test_sla_config_is_taken_as_json_python_or_the_mixture_in_the_wild(text: str) -> None:
    assert settings_from_text(text) == SLASettings(topk=0.1, tie_feature_map_qk=False)


def test_sla_config_names_unknown_settings() -> None:
    with pytest.raises(UsageError, match="top_k"):
        settings_from_text('{"top_k": 0.1}')


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"samples": 0}, {"lr": 0.1}, {"evaluations": 201}, {"seed": -1}]
)
def test_options_out_of_range_are_usage_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(FAST, **wrong)


def test_a_lora_checkpoint_is_regenerated_over_its_base(tmp_path: Path, calls: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    base = make_lost_checkpoint(tmp_path / "base")
    model = make_model("FluxTransformer2DModel", CONFIG)
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]))
    checkpoint = tmp_path / "checkpoint-20"
    checkpoint.mkdir()
    named = {f"transformer.{k}": v for k, v in get_peft_model_state_dict(model).items()}
    save_file(named, checkpoint / "pytorch_lora_weights.safetensors")
    before = hashes(tmp_path)
    result = regenerate(checkpoint, replace(FAST, inputs=calls, base_model=str(base)))
    assert result.ok
    assert "LoRA" in result.backbone
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert read_twin(checkpoint / TWIN_FILE).origin["base_model"]


def test_a_model_with_linear_attention_of_its_own_is_refused(tmp_path: Path) -> None:
    config = dict(adapter_for("SanaTransformer2DModel").tiny_config())
    name = config.pop("_class_name")
    checkpoint = tmp_path / "checkpoint-1"
    make_model(name, config).to(torch.bfloat16).save_pretrained(checkpoint / "transformer")
    before = hashes(checkpoint)
    with pytest.raises(RegenError, match="no attention call of this model goes sparse"):
        regenerate(checkpoint, replace(FAST, samples=1, tokens=100))
    assert hashes(checkpoint) == before
