"""Every adapter on its real diffusers class: forward, backward, and the pairs it materialises."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sla_ckpt.attention.inject import use_sla
from sla_ckpt.attention.session import SLAUnusedWarning
from sla_ckpt.errors import RegenError
from sla_ckpt.pairs.table import expected_head_dims
from sla_ckpt.regen.backbone import load_backbone
from sla_ckpt.regen.families.base import Batch, FamilyAdapter
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters
from sla_ckpt.state import SLASettings
from tests.regen.families.pipelines import random_batch, tiny_model

torch.set_num_threads(1)
# Kandinsky 5 feeds float32 into bfloat16 norms, in its pipeline too.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

# One block of 64 keys at least must remain at topk 0.5.
SETTINGS = SLASettings(topk=0.5)

#: Variants of a class, as changes to its tiny config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux-schnell": ("FluxTransformer2DModel", {"guidance_embeds": False}),
    "wan-i2v": (
        "WanTransformer3DModel",
        {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 24},
    ),
    "wan2.2-i2v": ("WanTransformer3DModel", {"in_channels": 12}),
    "wan2.2-5b": ("WanTransformer3DModel", {"in_channels": 48, "out_channels": 48}),
    "kandinsky5-visual-cond": (
        "Kandinsky5Transformer3DModel",
        {"visual_cond": True},
    ),
    "cosmos-1": ("CosmosTransformer3DModel", {"extra_pos_embed_type": "learnable"}),
    "cosmos-2.5": (
        "CosmosTransformer3DModel",
        {
            "in_channels": 5,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 20,
            "encoder_hidden_states_channels": 16,
        },
    ),
    "cogvideox-2b": (
        "CogVideoXTransformer3DModel",
        {"use_rotary_positional_embeddings": False, "sample_width": 16, "sample_height": 16},
    ),
    "cogvideox-1.5": (
        "CogVideoXTransformer3DModel",
        {"patch_size_t": 2, "patch_bias": False, "sample_width": 32, "sample_height": 32},
    ),
    "cogvideox-i2v": (
        "CogVideoXTransformer3DModel",
        {"in_channels": 8, "ofs_embed_dim": 8, "time_embed_dim": 8},
    ),
    "pixart-alpha-1024": ("PixArtTransformer2DModel", {"use_additional_conditions": True}),
    "sd1": (
        "UNet2DConditionModel",
        {
            "addition_embed_type": None,
            "attention_head_dim": 2,
            "use_linear_projection": False,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        },
    ),
    "sdxl-refiner": (
        "UNet2DConditionModel",
        {"cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 72},
    ),
    "kolors": (
        "UNet2DConditionModel",
        {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"},
    ),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in builtin_adapters()},
    **VARIANTS,
}


def run(model: Any, adapter: FamilyAdapter, batch: Batch) -> tuple[Tensor, Tensor]:
    """(prediction, target) of one training call in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    t = adapter.sample_timesteps(model.config, batch, generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    noisy, target = adapter.add_noise(batch.latents, noise, t)
    with adapter.running(model):
        output = model(**adapter.make_inputs(model, batch, noisy.to(torch.bfloat16), t))
    return adapter.read_prediction(output, batch), target


def in_bfloat16(model: Any) -> Any:
    """Cast as loading does: some modules stay in float32."""
    keep = set(model._keep_in_fp32_modules or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not keep.intersection(name.split(".")):
            tensor.data = tensor.data.to(torch.bfloat16)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", CASES)
def test_forward_backward_and_pairs(name: str) -> None:
    class_name, changes = CASES[name]
    model = in_bfloat16(tiny_model(class_name, **changes))
    adapter = adapter_for(model.config)
    size = adapter.size_for_tokens(model.config, 80)
    batch = random_batch(model, height=size.height, width=size.width, frames=1)

    expected = expected_head_dims(model.config, trainer="diffusers")
    never = not expected.head_dims and adapter.name in ("hunyuan-video", "sana")
    warned = pytest.warns(SLAUnusedWarning) if never else contextlib.nullcontext()
    with (
        warned,
        use_sla(SETTINGS, kernel="reference", trainable=True, missing="zero") as session,
    ):
        prediction, target = run(model, adapter, batch)
        seen = {key.head_dim for key in session.modules}
        assert prediction.shape == target.shape == batch.latents.shape
        assert torch.isfinite(prediction).all()
        assert {key.dtype for key in session.modules} <= {"bf16"}
        if session.modules:
            (prediction.float() - target).square().mean().backward()
            for key, module in session.modules.items():
                gradient = module.proj_l.weight.grad
                assert gradient is not None and gradient.abs().sum() > 0, key
    assert set(expected.head_dims) <= seen <= {*expected.head_dims, *expected.possible}
    trained = set(expected_head_dims(model.config, trainer="simpletuner").head_dims)
    if class_name != "ZImageTransformer2DModel":
        # Regeneration makes every pair that the trainer made.
        assert trained <= seen


def test_predictions_depend_on_the_noisy_latents() -> None:
    for class_name in builtin_adapters():
        model = tiny_model(class_name).requires_grad_(False)
        adapter = adapter_for(model.config)
        size = adapter.size_for_tokens(model.config, 16)
        batch = random_batch(model, height=size.height, width=size.width, frames=1)
        noisy = batch.latents.clone().requires_grad_()
        t = torch.full((2,), 0.5)
        with adapter.running(model):
            output = model(**adapter.make_inputs(model, batch, noisy, t))
            adapter.read_prediction(output, batch).square().sum().backward()
        assert noisy.grad is not None and noisy.grad.abs().sum() > 0, class_name


def test_hunyuan_15_without_mask_computes_what_masked_padding_does() -> None:
    model = tiny_model("HunyuanVideo15Transformer3DModel")
    adapter = adapter_for(model.config)
    batch = random_batch(model)
    t = torch.full((2,), 0.5)
    inputs = adapter.make_inputs(model, batch, batch.latents, t)
    with torch.no_grad(), adapter.running(model):
        ours = model(**inputs).sample
    text = inputs["encoder_hidden_states"]
    padding = torch.randn(2, 5, text.shape[-1])
    mask = torch.cat([torch.ones(2, text.shape[1]), torch.zeros(2, 5)], dim=1)
    padded = {
        **inputs,
        "encoder_hidden_states": torch.cat([text, padding], dim=1),
        "encoder_attention_mask": mask.bool(),
        "encoder_hidden_states_2": torch.zeros(2, 3, model.config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.zeros(2, 3, dtype=torch.bool),
        "image_embeds": torch.zeros(2, 4, model.config.image_embed_dim),
    }
    with torch.no_grad():
        theirs = model(**padded).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_image_to_video_models_are_told_the_first_frame() -> None:
    model = tiny_model("WanTransformer3DModel", in_channels=12)
    adapter = adapter_for(model.config)
    batch = random_batch(model)
    noisy = torch.randn_like(batch.latents)
    inputs = adapter.make_inputs(model, batch, noisy, torch.full((2,), 0.5))
    given, mask, picture = inputs["hidden_states"].split([4, 4, 4], dim=1)
    assert torch.equal(given, noisy)
    assert mask[:, :, 0].eq(1).all()
    assert mask[:, :, 1:].eq(0).all()
    assert torch.equal(picture[:, :, 0], batch.latents[:, :, 0])
    assert picture[:, :, 1:].eq(0).all()

    own = torch.randn(2, 8, *batch.latents.shape[2:])
    batch = Batch(batch.latents, {**batch.conditioning, "condition_latents": own})
    inputs = adapter.make_inputs(model, batch, noisy, torch.full((2,), 0.5))
    assert torch.equal(inputs["hidden_states"][:, 4:], own)


@pytest.mark.parametrize("forced", [False, True])
def test_gradients_reach_through_the_experts_of_hidream(forced: bool) -> None:
    """Backward agrees with central differences in float64, and the values stay what they were."""
    model = tiny_model("HiDreamImageTransformer2DModel", force_inference_output=forced).double()
    adapter = adapter_for(model.config)
    batch = random_batch(model, height=64, width=64)
    t = torch.full((2,), 0.5)
    noisy = batch.latents.double().requires_grad_()

    def loss(latents: Tensor) -> Tensor:
        output = model(**adapter.make_inputs(model, batch, latents, t))
        return adapter.read_prediction(output, batch).square().mean()

    plain = loss(noisy.detach())
    direction = torch.randn_like(noisy)
    step = 1e-5 * direction
    with adapter.running(model):
        value = loss(noisy)
        value.backward()
        with torch.no_grad():
            slope = (loss(noisy + step) - loss(noisy - step)) / 2e-5
    torch.testing.assert_close(value.detach(), plain)
    assert noisy.grad is not None
    torch.testing.assert_close((noisy.grad * direction).sum(), slope, rtol=1e-4, atol=1e-9)


def test_checkpointed_blocks_recompute_the_same_attention() -> None:
    """``running`` must be in force in backward; entering it twice, as nested users do, is fine."""
    for class_name in ("HunyuanVideo15Transformer3DModel", "HiDreamImageTransformer2DModel"):
        gradients = []
        for checkpointing in (False, True):
            model = in_bfloat16(tiny_model(class_name))
            if checkpointing:
                model.enable_gradient_checkpointing()
            adapter = adapter_for(model.config)
            batch = random_batch(model, height=128, width=128, frames=1)
            with (
                use_sla(SETTINGS, kernel="reference", trainable=True, missing="zero") as session,
                adapter.running(model),
            ):
                prediction, target = run(model, adapter, batch)
                (prediction.float() - target).square().mean().backward()
            (module,) = session.modules.values()
            gradients.append(module.proj_l.weight.grad)
        torch.testing.assert_close(gradients[0], gradients[1])


def test_running_leaves_the_model_as_it_was() -> None:
    for class_name in ("HunyuanVideo15Transformer3DModel", "HiDreamImageTransformer2DModel"):
        model = tiny_model(class_name)
        processors = [
            module.processor for module in model.modules() if hasattr(module, "processor")
        ]
        with pytest.raises(ZeroDivisionError), adapter_for(model.config).running(model):
            raise ZeroDivisionError
        assert not any(module.training for module in model.modules())
        after = [module.processor for module in model.modules() if hasattr(module, "processor")]
        assert all(a is b for a, b in zip(after, processors, strict=True))


@pytest.mark.parametrize(
    ("class_name", "changes", "problem"),
    [
        ("FluxTransformer2DModel", {"in_channels": 64, "out_channels": 16}, "second picture"),
        ("WanTransformer3DModel", {"in_channels": 8}, "4 channels beside the latents"),
        ("HunyuanVideoTransformer3DModel", {"image_condition_type": "latent_concat"}, "picture"),
        ("UNet2DConditionModel", {"in_channels": 9}, "channels beside the latents"),
        ("UNet2DConditionModel", {"class_embed_type": "timestep"}, "class labels"),
        ("UNet2DConditionModel", {"addition_embed_type": "image"}, "image embeddings"),
        ("CosmosTransformer3DModel", {"in_channels": 7}, "3 channels beside the latents"),
        ("CosmosTransformer3DModel", {"img_context_dim_in": 8}, "picture's embedding"),
    ],
)
def test_variants_with_other_inputs_are_refused(
    class_name: str, changes: dict[str, Any], problem: str
) -> None:
    config = {**builtin_adapters()[class_name].tiny_config(), **changes}
    with pytest.raises(RegenError, match=problem) as info:
        adapter_for(config)
    assert "--inputs" in str(info.value.hint)


@pytest.mark.parametrize(
    ("class_name", "changes", "scheduler", "objective"),
    [
        ("UNet2DConditionModel", {}, None, "epsilon"),
        ("UNet2DConditionModel", {}, {"prediction_type": "v_prediction"}, "v"),
        ("UNet2DConditionModel", {"cross_attention_dim": 1024, "sample_size": 96}, None, "v"),
        (
            "UNet2DConditionModel",
            {"cross_attention_dim": 1024, "sample_size": 96},
            {"prediction_type": "epsilon"},
            "epsilon",
        ),
        ("PixArtTransformer2DModel", {}, None, "epsilon"),
        ("CogVideoXTransformer3DModel", {}, None, "v"),
        ("CosmosTransformer3DModel", {}, None, "flow"),
        ("CosmosTransformer3DModel", {"extra_pos_embed_type": "learnable"}, None, "sample"),
        ("FluxTransformer2DModel", {}, {"prediction_type": "epsilon"}, "flow"),
    ],
)
def test_objectives(
    class_name: str, changes: dict[str, Any], scheduler: dict[str, Any] | None, objective: str
) -> None:
    config = {**builtin_adapters()[class_name].tiny_config(), **changes}
    assert adapter_for(config, scheduler).objective == objective


def test_unknown_prediction_type_is_refused() -> None:
    config = builtin_adapters()["UNet2DConditionModel"].tiny_config()
    with pytest.raises(RegenError, match="prediction_type 'odd'"):
        adapter_for(config, {"prediction_type": "odd"})


def test_cosmos_without_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("CosmosTransformer3DModel", concat_padding_mask=True)
    adapter = adapter_for(model.config)
    batch = random_batch(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RegenError, match="torchvision") as info:
        adapter.make_inputs(model, batch, batch.latents, torch.full((2,), 0.5))
    assert info.value.hint == "run: pip install torchvision"


def test_entries_missing_from_config_json_take_the_class_defaults(tmp_path: Path) -> None:
    model = tiny_model("FluxTransformer2DModel", pooled_projection_dim=768)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["pooled_projection_dim"]
    path.write_text(json.dumps(config), encoding="utf-8")
    backbone = load_backbone(tmp_path, device="cpu", dtype=torch.bfloat16)
    adapter = adapter_for(backbone.config)
    assert adapter.conditioning(backbone.config)["pooled_prompt_embeds"].shape == (768,)
