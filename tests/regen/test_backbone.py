"""The backbone loader against diffusers' own from_pretrained, on real classes with tiny configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from sla_ckpt.errors import FormatError, RegenError
from sla_ckpt.regen.backbone import load_backbone
from sla_ckpt.regen.card_ring import plan_chunks
from sla_ckpt.regen.tensor_files import FileTensor
from tests.regen.tiny_models import CONFIGS, FLUX, hashes, make_model, save_checkpoint


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_backbone_equals_from_pretrained_bit_for_bit(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    folder = save_checkpoint(tmp_path, name)
    before = hashes(tmp_path)

    backbone = load_backbone(tmp_path, device="cpu", dtype=dtype)

    reference = getattr(diffusers, name).from_pretrained(folder, dtype=dtype)
    ours, theirs = tensors_of(backbone.model), tensors_of(reference)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].device.type == "cpu", key
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training
    assert backbone.class_name == name
    assert backbone.base_model is None
    assert hashes(tmp_path) == before


def test_backbone_runs_a_forward_pass_like_the_original(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    model = make_model("FluxTransformer2DModel").eval()
    inputs = {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    backbone = load_backbone(tmp_path, device="cpu", dtype=torch.float32)

    with torch.no_grad():
        assert torch.equal(backbone.model(**inputs).sample, model(**inputs).sample)


def test_sharded_checkpoint_loads_whole(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, max_shard_size="60KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 2

    backbone = load_backbone(tmp_path, device="cpu", dtype=None)

    expected = make_model("FluxTransformer2DModel").state_dict()
    assert all(torch.equal(backbone.model.state_dict()[k], v) for k, v in expected.items())
    assert "shards" in backbone.description
    assert backbone.bytes == sum(t.nbytes for t in expected.values())


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, max_shard_size="60KB")
    victim = sorted(folder.glob("*-00002-of-*"))[0]
    victim.unlink()

    with pytest.raises(RegenError, match=victim.name):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, max_shard_size="60KB")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = "../../outside.safetensors"
    index.write_text(json.dumps(content))

    with pytest.raises(RegenError, match="outside its folder"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_ema_copy_is_taken_on_request(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    ema = make_model("FluxTransformer2DModel")
    with torch.no_grad():
        ema.proj_out.bias.fill_(3)
    ema.save_pretrained(tmp_path / "transformer_ema")

    plain = load_backbone(tmp_path, device="cpu", dtype=None)
    smooth = load_backbone(tmp_path, device="cpu", dtype=None, ema=True)

    assert (smooth.model.proj_out.bias == 3).all()
    assert not (plain.model.proj_out.bias == 3).all()


def test_ema_that_is_only_a_pickle_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    (tmp_path / "transformer_ema").mkdir()
    (tmp_path / "transformer_ema" / "ema_model.pt").write_bytes(b"x")

    with pytest.raises(RegenError, match=r"only ema_model\.pt"):
        load_backbone(tmp_path, device="cpu", dtype=None, ema=True)


def test_pipeline_and_plain_model_folders_load(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')

    for root in (tmp_path, folder):
        assert load_backbone(root, device="cpu", dtype=None).class_name == "FluxTransformer2DModel"


def test_variant_weights_load_when_nothing_else_is_there(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, variant="fp16")
    assert [p.name for p in folder.glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]

    assert load_backbone(tmp_path, device="cpu", dtype=None).bytes > 0


def test_second_denoiser_of_a_pipeline_can_be_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    make_model("SD3Transformer2DModel").save_pretrained(tmp_path / "transformer_2")

    backbone = load_backbone(tmp_path, device="cpu", dtype=None, denoiser="transformer_2")

    assert backbone.class_name == "SD3Transformer2DModel"


def test_old_class_name_of_pixart_is_understood(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "PixArtTransformer2DModel")
    config = json.loads((folder / "config.json").read_text())
    config["_class_name"] = "Transformer2DModel"
    (folder / "config.json").write_text(json.dumps(config))

    assert load_backbone(tmp_path, device="cpu", dtype=None).class_name == (
        "PixArtTransformer2DModel"
    )


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    rewrite(save_checkpoint(tmp_path), lambda tensors: tensors.pop("proj_out.weight"))

    with pytest.raises(RegenError, match=r"lacks 1 of .* proj_out\.weight"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    rewrite(save_checkpoint(tmp_path), lambda t: t.update({"extra.thing": torch.zeros(2)}))

    with pytest.raises(RegenError, match=r"does not know: extra\.thing"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    rewrite(save_checkpoint(tmp_path), lambda t: t.update({"proj_out.bias": torch.zeros(7)}))

    with pytest.raises(RegenError, match=r"proj_out\.bias is \[7\] .* needs \[4\]"):
        load_backbone(tmp_path, device="cpu", dtype=None)


@pytest.mark.parametrize("keep", [0, 4, 100, -10], ids=["empty", "short", "in-header", "in-data"])
def test_truncated_weights_give_one_line(tmp_path: Path, keep: int) -> None:
    path = save_checkpoint(tmp_path) / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(FormatError, match=r"diffusion_pytorch_model\.safetensors"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, safe_serialization=False)

    with pytest.raises(RegenError, match="not in safetensors") as caught:
        load_backbone(tmp_path, device="cpu", dtype=None)
    assert "safe_serialization" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["NoSuchModel", "FluxPipeline", "os.system", "logging"])
def test_unknown_class_is_refused(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps({**FLUX, "_class_name": name}))

    with pytest.raises(RegenError, match="no model class"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_quantised_model_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    config = {**json.loads((folder / "config.json").read_text())}
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(RegenError, match="bitsandbytes"):
        load_backbone(tmp_path, device="cpu", dtype=None)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegenError, match="has no denoiser"):
        load_backbone(tmp_path, device="cpu", dtype=None)
    with pytest.raises(RegenError, match="not a directory"):
        load_backbone(tmp_path / "absent", device="cpu", dtype=None)


def test_checkpoint_in_a_linked_folder_loads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "blobs")
    (tmp_path / "linked").symlink_to(tmp_path / "blobs")

    assert load_backbone(tmp_path / "linked", device="cpu", dtype=None).bytes > 0


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    calls: list[tuple[int, int]] = []

    backbone = load_backbone(
        tmp_path, device="cpu", dtype=None, progress=lambda *args: calls.append(args)
    )

    assert calls[-1] == (backbone.bytes, backbone.bytes)


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_chunks_cover_each_byte_once_and_skip_gaps(chunk: int) -> None:
    sizes = [(100, 10), (110, 0), (110, 33), (160, 5)]
    tensors = [
        FileTensor(str(i), Path("f"), torch.uint8, (size,), start, size)
        for i, (start, size) in enumerate(sizes)
    ]
    seen = []
    for piece_chunk in plan_chunks(tensors, chunk):
        assert piece_chunk.length <= chunk
        for piece in piece_chunk.pieces:
            start = tensors[piece.index].start + piece.at
            assert start == piece_chunk.start + piece.offset
            seen += range(start, start + piece.length)
    assert seen == [*range(100, 143), *range(160, 165)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("offload", [False, True])
def test_backbone_on_a_card_equals_the_cpu(
    tmp_path: Path, dtype: torch.dtype | None, offload: bool
) -> None:
    save_checkpoint(tmp_path)
    ours = load_backbone(tmp_path, device="cuda", dtype=dtype, offload=offload)
    reference = load_backbone(tmp_path, device="cpu", dtype=dtype).model
    inputs = {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    kind = dtype or torch.float32
    with torch.no_grad():
        there = ours.model(**{k: v.to("cuda", kind) for k, v in inputs.items()}).sample
        here = reference(**{k: v.to(kind) for k, v in inputs.items()}).sample
    torch.testing.assert_close(there.cpu(), here, atol=2e-2, rtol=2e-2)
    if not offload:
        for key, tensor in tensors_of(reference).items():
            assert torch.equal(tensors_of(ours.model)[key].cpu(), tensor), key


def flux_inputs(device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden_states": (1, 6, 4),
        "encoder_hidden_states": (1, 3, 32),
        "pooled_projections": (1, 32),
        "img_ids": (6, 3),
        "txt_ids": (3, 3),
    }
    made = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    made["timestep"] = torch.tensor([0.5])
    return {key: value.to(device, dtype) for key, value in made.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass_through_an_offloaded_backbone(tmp_path: Path, checkpointing: bool) -> None:
    save_checkpoint(tmp_path)
    found = []
    for offload in (False, True):
        model = load_backbone(tmp_path, device="cuda", dtype=torch.float32, offload=offload).model
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()
        inputs = flux_inputs("cuda", torch.float32)
        inputs["hidden_states"].requires_grad_(True)
        model(**inputs).sample.square().sum().backward()
        found.append(inputs["hidden_states"].grad)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        if offload:
            assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert found[0] is not None
    assert found[1] is not None
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.cuda
def test_auto_spreads_the_backbone_over_cards(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)

    model = load_backbone(tmp_path, device="auto", dtype=torch.float32).model

    assert len({parameter.device for parameter in model.parameters()}) > 1
    reference = load_backbone(tmp_path, device="cpu", dtype=torch.float32).model
    with torch.no_grad():
        there = model(**flux_inputs("cuda", torch.float32)).sample.cpu()
        here = reference(**flux_inputs("cpu", torch.float32)).sample
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_real_checkpoint_layout_with_rolled_copy(tmp_path: Path) -> None:
    """Everything SimpleTuner puts beside the weights is left alone."""
    save_checkpoint(tmp_path / "checkpoint-3")
    for name in ("optimizer.bin", "random_states_0.pkl", ".guard", "sla_attention.pt"):
        (tmp_path / "checkpoint-3" / name).write_bytes(b"not read")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-3-rolling")

    for name in ("checkpoint-3", "checkpoint-3-rolling"):
        assert load_backbone(tmp_path / name, device="cpu", dtype=None).bytes > 0
