"""Plain diffusers: three lines from a folder on disk to a picture with SLA."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from sla_ckpt.attention.inject import disable_sla, enable_sla, use_sla
from sla_ckpt.errors import AttentionError
from sla_ckpt.formats.twin import write_state
from sla_ckpt.state import PairKey

from .tiny_models import make_model, make_state

EXAMPLE = Path(__file__).parents[2] / "examples" / "diffusers_inference.py"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEPS = 2
LAYERS = 2
CALL: dict[str, Any] = {"num_inference_steps": STEPS, "height": 64, "width": 64}


def tokenizer(folder: Path) -> CLIPTokenizer:
    tokens = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


def text_encoder(seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=54,
            hidden_size=4,
            intermediate_size=8,
            num_attention_heads=1,
            num_hidden_layers=2,
            projection_dim=4,
            bos_token_id=52,
            eos_token_id=53,
            pad_token_id=53,
        )
    )


def t5_tokenizer() -> T5TokenizerFast:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    return T5TokenizerFast(vocab=[*special, *((letter, -2.0) for letter in LETTERS)], extra_ids=0)


def t5_encoder() -> T5EncoderModel:
    torch.manual_seed(4)
    return T5EncoderModel(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


def vae() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder as SimpleTuner uploads it, with the state at its root."""
    folder = tmp_path_factory.mktemp("pipeline")
    words = tokenizer(tmp_path_factory.mktemp("tokenizer"))
    pipe = StableDiffusion3Pipeline(
        transformer=make_model("sd3"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae().to(torch.bfloat16),
        text_encoder=text_encoder(1).to(torch.bfloat16),
        tokenizer=words,
        text_encoder_2=text_encoder(2).to(torch.bfloat16),
        tokenizer_2=words,
        text_encoder_3=t5_encoder().to(torch.bfloat16),
        tokenizer_3=t5_tokenizer(),
    )
    pipe.save_pretrained(folder)
    write_state(folder, make_state("16:bf16", sla_variant="main"))
    return folder


def load(checkpoint: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, **options: Any) -> torch.Tensor:
    call = {"output_type": "pt", **CALL, **options}
    images = pipe("a lighthouse", generator=torch.Generator().manual_seed(0), **call).images
    result: torch.Tensor = images
    return result


def test_three_lines_give_a_picture_with_sla(checkpoint: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    session = enable_sla(pipe, checkpoint)
    image = pipe("a lighthouse", **CALL).images[0]
    assert image.size == (64, 64)
    assert dict(session.stats.pairs) == {PairKey(16, "bf16"): STEPS * LAYERS}


def test_the_example_script_writes_a_picture(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(EXAMPLE))
    example["main"](str(checkpoint), "a lighthouse", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 0
    # The pipeline's own defaults: 28 steps.
    assert f"{28 * LAYERS} sparse (16:bf16 × {28 * LAYERS})" in capsys.readouterr().err


def test_only_the_denoiser_runs_sla(checkpoint: Path) -> None:
    pipe = load(checkpoint)
    dense = picture(pipe)
    dense_latents = picture(pipe, output_type="latent")
    session = enable_sla(pipe, checkpoint)
    latents = picture(pipe, output_type="latent")
    sparse = picture(pipe)
    # The VAE's attention layer has 16 channels, a pair that the state has.
    assert pipe.vae.decoder.mid_block.attentions[0].to_q.in_features == 16
    assert session.stats.sparse_calls == 2 * STEPS * LAYERS
    assert not session.stats.dense_calls
    disable_sla(pipe)
    assert not torch.equal(latents, dense_latents)
    assert torch.equal(picture(pipe, output_type="latent"), dense_latents)
    assert torch.equal(picture(pipe), dense)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(pipe.image_processor.postprocess(decoded, output_type="pt"), sparse)


def test_the_denoiser_alone_can_be_passed(checkpoint: Path) -> None:
    pipe = load(checkpoint)
    enable_sla(pipe, checkpoint)
    expected = picture(pipe)
    disable_sla(pipe)
    enable_sla(pipe.transformer, checkpoint / "sla_attention.pt")
    assert torch.equal(picture(pipe), expected)
    disable_sla(pipe.transformer)


def test_the_latents_are_those_under_use_sla(checkpoint: Path) -> None:
    pipe = load(checkpoint)
    enable_sla(pipe, checkpoint)
    expected = picture(pipe, output_type="latent")
    disable_sla(pipe)
    with use_sla(checkpoint) as session:
        got = picture(pipe, output_type="latent")
    assert torch.equal(got, expected)
    assert session.stats.sparse_calls == STEPS * LAYERS


def test_use_sla_also_takes_the_vae_which_enable_sla_does_not(checkpoint: Path) -> None:
    with use_sla(checkpoint) as session:
        picture(load(checkpoint))
    assert session.stats.sparse_calls == STEPS * LAYERS + 1


def test_an_enabled_pipeline_can_be_saved_and_loaded(checkpoint: Path, tmp_path: Path) -> None:
    pipe = load(checkpoint)
    dense = picture(pipe)
    enable_sla(pipe, checkpoint)
    pipe.save_pretrained(tmp_path)
    disable_sla(pipe)
    index = (tmp_path / "model_index.json").read_text()
    assert json.loads(index)["transformer"] == ["diffusers", "SD3Transformer2DModel"]
    assert torch.equal(picture(load(tmp_path)), dense)


def test_a_state_of_another_model_is_an_error_not_a_worse_picture(checkpoint: Path) -> None:
    pipe = load(checkpoint)
    original = F.scaled_dot_product_attention
    enable_sla(pipe, make_state("128:bf16"))
    with pytest.raises(AttentionError, match="no pair 16:bf16"):
        picture(pipe)
    assert F.scaled_dot_product_attention is original
    disable_sla(pipe)
