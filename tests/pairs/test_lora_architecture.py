"""What a LoRA's metadata says about the pairs of its base model."""

from __future__ import annotations

import pytest

from sla_ckpt.pairs.architecture import family_of_architecture


@pytest.mark.parametrize(
    ("architecture", "family", "flavour", "head_dims"),
    [
        ("flux-dev/lora", "flux", "dev", (128,)),
        ("flux2-dev/lora", "flux2", "dev", (128,)),
        ("flux-1-dev/lora", "flux", "dev", (128,)),
        ("sd3-medium/lora", "sd3", "medium", (64,)),
        ("qwen_image-v1.0/lora", "qwen_image", "v1.0", (128,)),
        ("qwen-image-edit-v2/lora", "qwen_image", "v2", (128,)),
        ("wan-t2v-480p-1.3b-2.1/lora", "wan", "t2v-480p-1.3b-2.1", (128,)),
        ("sdxl-base-1.0/lora", "sdxl", "base-1.0", (64,)),
        ("stable-diffusion-xl-v1-base/lora", "sdxl", "base", (64,)),
        ("sd1x-1.5/lora", "sd1x", "1.5", (40, 80, 160)),
        ("sd2x-2.1/lora", "sd2x", "2.1", (64,)),
        ("auraflow-v0.3/lora", "auraflow", "v0.3", (256,)),
        ("pixart_sigma-900M-1024-v0.6/lora", "pixart_sigma", "900m-1024-v0.6", (72,)),
        ("ltxvideo-0.9.5/lora", "ltxvideo", "0.9.5", (64,)),
        ("ltxvideo-0.9.7-13b/lora", "ltxvideo", "0.9.7-13b", (128,)),
        ("ltxvideo2-2.0/lora", "ltxvideo2", "2.0", (64, 128)),
        ("kandinsky5-video-t2v-lite-sft-5s/lora", "kandinsky5_video", "t2v-lite-sft-5s", (64,)),
        ("z-image-turbo/lora", "z_image", "turbo", ()),
        ("FLUX-DEV/LORA", "flux", "dev", (128,)),
        ("flux", "flux", "", (128,)),
    ],
)
def test_architecture_names_the_family(
    architecture: str, family: str, flavour: str, head_dims: tuple[int, ...]
) -> None:
    guess = family_of_architecture(architecture)
    assert guess is not None
    assert (guess.family, guess.flavour, guess.head_dims) == (family, flavour, head_dims)


def test_families_of_several_sizes_do_not_guess() -> None:
    guess = family_of_architecture("ltxvideo-custom/lora")
    assert guess is not None
    assert guess.head_dims is None
    assert guess.possible == (64, 128)
    assert "does not say which" in str(guess.note)


@pytest.mark.parametrize("architecture", ["", "/", "fluxx-dev/lora", "my-model/lora", "\x00", "-"])
def test_unknown_architectures_are_none(architecture: str) -> None:
    assert family_of_architecture(architecture) is None
