"""LoRA checkpoints over their base, against diffusers' own LoRA loader."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from peft.utils.warning import PeftWarning
from safetensors.torch import save_file

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.backbone import load_backbone
from sla_ckpt.regen.backbone_files import LORA_FILE
from sla_ckpt.regen.lora import read_lora
from tests.regen.tiny_models import CONFIGS, FLUX, hashes, make_model

INPUTS = {
    "hidden_states": torch.linspace(-1, 1, 24).reshape(1, 6, 4),
    "encoder_hidden_states": torch.linspace(-1, 1, 96).reshape(1, 3, 32),
    "pooled_projections": torch.linspace(-1, 1, 32).reshape(1, 32),
    "timestep": torch.tensor([0.5]),
    "img_ids": torch.zeros(6, 3),
    "txt_ids": torch.zeros(3, 3),
}


def save_base(root: Path) -> Path:
    make_model("FluxTransformer2DModel").save_pretrained(root / "transformer")
    return root


def trained_lora(**options: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor], LoraConfig]:
    """A tiny Flux with a LoRA that changes its output, and the LoRA's peft state dict."""
    model = make_model("FluxTransformer2DModel")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k"], **options}
    config = LoraConfig(init_lora_weights=False, **settings)
    torch.manual_seed(1)
    model.add_adapter(config)
    with warnings.catch_warnings():
        # peft takes a LoRA bias, which is one-dimensional, for a sharded tensor.
        warnings.simplefilter("ignore", PeftWarning)
        tensors = get_peft_model_state_dict(model)
    return model.eval(), tensors, config


def save_lora(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: LoraConfig | None = None,
    *,
    prefix: str = "transformer.",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "modelspec.architecture": "flux-dev/lora"}
    if config is not None:
        plain = config.to_dict()
        plain["target_modules"] = sorted(plain["target_modules"])
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"transformer.{key}": value for key, value in plain.items()}, default=str
        )
    named = {f"{prefix}{key}": tensor.contiguous() for key, tensor in tensors.items()}
    save_file(named, folder / LORA_FILE, metadata=metadata)
    return folder


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).sample


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "diffusion_model.", ""])
def test_lora_gives_the_trained_models_output(tmp_path: Path, prefix: str) -> None:
    model, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "checkpoint-3", tensors, config, prefix=prefix)
    base = save_base(tmp_path / "base")
    before = hashes(tmp_path)

    backbone = load_backbone(checkpoint, device="cpu", dtype=torch.float32, base_model=base)

    assert torch.equal(output(backbone.model), output(model))
    assert not torch.equal(
        output(backbone.model), output(make_model("FluxTransformer2DModel").eval())
    )
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.base_model == str(base)
    assert "rank 4, alpha 8" in backbone.description
    assert "from base with LoRA" in backbone.description
    assert str(tmp_path) not in backbone.description
    assert hashes(tmp_path) == before


def test_different_ranks_and_alphas_per_module_are_kept(tmp_path: Path) -> None:
    model, tensors, config = trained_lora(
        rank_pattern={"transformer_blocks.0.attn.to_q": 2},
        alpha_pattern={
            "transformer_blocks.0.attn.to_q": 1,
            "single_transformer_blocks.0.attn.to_k": 3,
        },
    )
    checkpoint = save_lora(tmp_path / "lora", tensors, config)

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=save_base(tmp_path / "base")
    )

    assert torch.equal(output(backbone.model), output(model))


@pytest.mark.parametrize("option", ["use_dora", "use_rslora", "lora_bias"])
def test_lora_variants_of_peft_are_kept(tmp_path: Path, option: str) -> None:
    model, tensors, config = trained_lora(**{option: True})
    checkpoint = save_lora(tmp_path / "lora", tensors, config)

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=save_base(tmp_path / "base")
    )

    torch.testing.assert_close(output(backbone.model), output(model))


def test_without_metadata_alpha_is_the_rank_as_in_diffusers(tmp_path: Path) -> None:
    _, tensors, _ = trained_lora(lora_alpha=4)
    base = save_base(tmp_path / "base")
    checkpoint = save_lora(tmp_path / "lora", tensors)
    reference = FluxTransformer2DModel.from_pretrained(base / "transformer")
    reference.load_lora_adapter(
        {f"transformer.{key}": value for key, value in tensors.items()}, prefix="transformer"
    )

    backbone = load_backbone(checkpoint, device="cpu", dtype=torch.float32, base_model=base)

    assert torch.equal(output(backbone.model), output(reference.eval()))


@pytest.mark.parametrize("style", ["lora.down", "lora_down"])
def test_older_key_styles_with_alpha_tensors_load(tmp_path: Path, style: str) -> None:
    model, tensors, _ = trained_lora()
    up = style.replace("down", "up")
    renamed = {
        key.replace("lora_A", style).replace("lora_B", up): value for key, value in tensors.items()
    }
    renamed |= {
        key.replace(f".{style}.weight", ".alpha"): torch.tensor(8.0)
        for key in renamed
        if key.endswith(f"{style}.weight")
    }
    checkpoint = save_lora(tmp_path / "lora", renamed)

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=save_base(tmp_path / "base")
    )

    assert torch.equal(output(backbone.model), output(model))


def test_oldest_attention_processor_keys_of_a_unet_load(tmp_path: Path) -> None:
    unet = make_model("UNet2DConditionModel")
    unet.save_pretrained(tmp_path / "base" / "unet")
    site = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    width = CONFIGS["UNet2DConditionModel"]["block_out_channels"][1]
    tensors = {}
    for projection in ("to_q", "to_k", "to_v", "to_out"):
        stem = f"unet.{site}.processor.{projection}_lora"
        tensors[f"{stem}.down.weight"] = torch.randn(2, width)
        tensors[f"{stem}.up.weight"] = torch.randn(width, 2)
    checkpoint = save_lora(tmp_path / "lora", tensors, prefix="")

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=tmp_path / "base"
    )

    assert isinstance(backbone.model, UNet2DConditionModel)
    merged = unet.get_submodule(f"{site}.to_out.0").weight + (
        tensors[f"unet.{site}.processor.to_out_lora.up.weight"]
        @ tensors[f"unet.{site}.processor.to_out_lora.down.weight"]
    )
    x = torch.randn(3, width)
    layer = backbone.model.get_submodule(f"{site}.to_out.0")
    torch.testing.assert_close(layer(x) - layer.bias, x @ merged.T, atol=1e-4, rtol=1e-4)


def test_convolutions_take_a_lora_too(tmp_path: Path) -> None:
    unet = make_model("UNet2DConditionModel")
    unet.save_pretrained(tmp_path / "base" / "unet")
    torch.manual_seed(1)
    unet.add_adapter(
        LoraConfig(r=2, target_modules=["conv_in", "conv1", "to_v"], init_lora_weights=False)
    )
    tensors = get_peft_model_state_dict(unet)
    assert any(tensor.ndim == 4 for tensor in tensors.values())
    checkpoint = save_lora(tmp_path / "lora", tensors, prefix="unet.")

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=tmp_path / "base"
    )

    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([3]), torch.randn(1, 5, 16))
    with torch.no_grad():
        # alpha = rank without metadata, where peft's own default is 8.
        scaled = {
            name: module for name, module in unet.named_modules() if hasattr(module, "scaling")
        }
        for module in scaled.values():
            module.scaling["default"] = 1.0
        expected = unet.eval()(*inputs).sample
        found = backbone.model(*inputs).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_lora_follows_the_models_dtype(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "lora", tensors, config)

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.bfloat16, base_model=save_base(tmp_path / "base")
    )

    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}


def test_text_encoder_keys_are_left_out_and_said_so(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    named = {f"transformer.{key}": value for key, value in tensors.items()}
    named["text_encoder.text_model.encoder.lora_A.weight"] = torch.zeros(2, 2)
    checkpoint = save_lora(tmp_path / "lora", named, config, prefix="")

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=save_base(tmp_path / "base")
    )

    assert "1 text-encoder tensors left out" in backbone.description


def test_ema_copy_of_a_lora_is_taken_on_request(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "lora", tensors, config)
    doubled = {key: tensor * 2 for key, tensor in tensors.items()}
    save_lora(checkpoint / "ema", doubled, config)
    base = save_base(tmp_path / "base")

    backbone = load_backbone(
        checkpoint, device="cpu", dtype=torch.float32, base_model=base, ema=True
    )

    key = "transformer_blocks.0.attn.to_q"
    held = backbone.model.get_submodule(key).lora_A["default"].weight
    assert torch.equal(held, doubled[f"{key}.lora_A.weight"])


@pytest.mark.parametrize(
    ("where", "file", "content"),
    [
        (".", "simpletuner_config.json", {"pretrained_model_name_or_path": "BASE"}),
        ("..", "config.json", {"--pretrained_model_name_or_path": "BASE"}),
        (
            "..",
            "config.json",
            {
                "pretrained_model_name_or_path": "absent/elsewhere",
                "pretrained_transformer_model_name_or_path": "BASE",
                "pretrained_transformer_subfolder": "transformer",
            },
        ),
        (".", "adapter_config.json", {"base_model_name_or_path": "BASE"}),
        ("..", "README.md", '---\nlicense: other\nbase_model: "BASE"\n---\ntext'),
    ],
    ids=["uploaded-config", "output-config", "transformer-path", "peft-config", "model-card"],
)
def test_base_model_is_found_where_a_configuration_names_it(
    tmp_path: Path, where: str, file: str, content: Any
) -> None:
    model, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "output" / "checkpoint-3", tensors, config)
    base = save_base(tmp_path / "base")
    text = content if isinstance(content, str) else json.dumps(content)
    (checkpoint / where / file).write_text(text.replace("BASE", str(base)))

    backbone = load_backbone(checkpoint, device="cpu", dtype=torch.float32)

    assert torch.equal(output(backbone.model), output(model))
    assert backbone.base_model == str(base)


def test_lora_without_a_known_base_asks_for_it(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "lora", tensors, config)

    with pytest.raises(RegenError, match="nothing beside it names its base") as caught:
        load_backbone(checkpoint, device="cpu", dtype=None)
    assert "--base-model" in str(caught.value.hint)


def test_base_that_is_neither_folder_nor_repository_is_refused(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    checkpoint = save_lora(tmp_path / "lora", tensors, config)

    for name in (str(tmp_path / "absent"), "model.safetensors", "a/b/c"):
        with pytest.raises(RegenError, match="neither a folder nor a Hub id"):
            load_backbone(checkpoint, device="cpu", dtype=None, base_model=name)


def test_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    base = save_base(tmp_path / "base")
    elsewhere = {f"blocks.9.{key}": tensor for key, tensor in tensors.items()}
    with pytest.raises(RegenError, match=r"LoRA modules of .* are not in FluxTransformer2DModel"):
        load_backbone(
            save_lora(tmp_path / "a", elsewhere, config), device="cpu", dtype=None, base_model=base
        )
    wider = make_model("FluxTransformer2DModel", {**FLUX, "num_attention_heads": 4})
    wider.save_pretrained(tmp_path / "wide" / "transformer")
    with pytest.raises(RegenError, match="the base model's weight is"):
        load_backbone(
            save_lora(tmp_path / "b", tensors, config),
            device="cpu",
            dtype=None,
            base_model=tmp_path / "wide",
        )


def test_half_a_lora_module_is_refused(tmp_path: Path) -> None:
    _, tensors, config = trained_lora()
    tensors.pop(next(key for key in tensors if "lora_B" in key))

    with pytest.raises(RegenError, match="not both halves"):
        read_lora(save_lora(tmp_path, tensors, config) / LORA_FILE)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("transformer_blocks.0.attn.to_q.lokr_w1", "LyCORIS"),
        ("lycoris_transformer_blocks_0_attn_to_q.lora_mid.weight", "LyCORIS"),
        ("transformer_blocks.0.attn.to_q.hada_w1_a", "LyCORIS"),
        ("lora_unet_blocks_0_to_q.lora_down.weight", "kohya"),
        ("transformer_blocks.0.attn.to_q.something.weight", "no LoRA style"),
    ],
)
def test_other_adapters_are_refused_with_a_next_step(tmp_path: Path, key: str, what: str) -> None:
    folder = save_lora(tmp_path, {key: torch.zeros(2, 2)}, prefix="")

    with pytest.raises(RegenError, match=what) as caught:
        load_backbone(folder, device="cpu", dtype=None, base_model=tmp_path)
    assert caught.value.hint


def test_lycoris_checkpoint_of_simpletuner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lycoris_config.json").write_text('{"algo": "lokr"}')
    save_file({"w": torch.zeros(1)}, tmp_path / LORA_FILE)
    base = save_base(tmp_path / "base")

    with pytest.raises(RegenError, match="LyCORIS"):
        load_backbone(tmp_path, device="cpu", dtype=None, base_model=base)
