"""The model family of a LoRA file, from its metadata.

A LoRA file does not hold the model's config, and its shapes give heads × head_dim only. SimpleTuner
writes ``modelspec.architecture`` as ``<family>-<flavour>/<adapter>`` (``flux-dev/lora``); other
tools write the names of the modelspec standard (``stable-diffusion-xl-v1-base/lora``). The
published models of a family share their head_dims, unless noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sla_ckpt.pairs.table import ExpectedPairs, Trainer, expected_head_dims


@dataclass(frozen=True)
class FamilyGuess:
    """What a LoRA's metadata says about its base model.

    Attributes:
        family: SimpleTuner's name of the family, e.g. ``"flux"``.
        flavour: What follows it, e.g. ``"dev"``; empty when nothing does.
        class_name: The denoiser's diffusers class.
        head_dims: The certain head_dims of the published model; None when the family's models
            differ and the flavour does not tell which it is.
        possible: As in :class:`ExpectedPairs`.
        note: One line for people.
    """

    family: str
    flavour: str
    class_name: str
    head_dims: tuple[int, ...] | None
    possible: tuple[int, ...] = ()
    note: str | None = None


_SD1_CONFIG: Mapping[str, Any] = {"attention_head_dim": 8}
_SD2_CONFIG: Mapping[str, Any] = {"attention_head_dim": [5, 10, 20, 20]}
_SDXL_CONFIG: Mapping[str, Any] = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
}
_SDXL_REFINER_CONFIG: Mapping[str, Any] = {
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
}

# Family name -> class and the published config entries that differ from the class's defaults.
_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "flux": ("FluxTransformer2DModel", {}),
        "flux2": ("Flux2Transformer2DModel", {}),
        "sd3": ("SD3Transformer2DModel", {}),
        "qwen_image": ("QwenImageTransformer2DModel", {}),
        "wan": ("WanTransformer3DModel", {}),
        "hunyuanvideo": ("HunyuanVideo15Transformer3DModel", {}),
        "ltxvideo2": ("LTX2VideoTransformer3DModel", {}),
        "auraflow": ("AuraFlowTransformer2DModel", {}),
        "pixart_sigma": ("PixArtTransformer2DModel", {}),
        "lumina2": ("Lumina2Transformer2DModel", {}),
        "chroma": ("ChromaTransformer2DModel", {}),
        "z_image": ("ZImageTransformer2DModel", {}),
        "hidream": ("HiDreamImageTransformer2DModel", {}),
        "cosmos2image": ("CosmosTransformer3DModel", {}),
        "kandinsky5_image": ("Kandinsky5Transformer3DModel", {}),
        "kandinsky5_video": ("Kandinsky5Transformer3DModel", {}),
        "omnigen": ("OmniGenTransformer2DModel", {}),
        "sd1x": ("UNet2DConditionModel", _SD1_CONFIG),
        "sd2x": ("UNet2DConditionModel", _SD2_CONFIG),
        "sdxl": ("UNet2DConditionModel", _SDXL_CONFIG),
        "kolors": ("UNet2DConditionModel", _SDXL_CONFIG),
    }
)
# Families whose published models differ in head_dim, by what marks the flavour.
_BY_FLAVOUR: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ltxvideo": (
            "LTXVideoTransformer3DModel",
            "LTX-Video has head_dim 64 (2B) or 128 (13B); the metadata does not say which",
        ),
        "sana": (
            "SanaTransformer2DModel",
            "self-attention of Sana is linear already, so SLA normally takes no call of it",
        ),
    }
)
# Names that other tools and other SimpleTuner versions use.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "flux_1": "flux",
        "flux_2": "flux2",
        "stable_diffusion_xl_v1": "sdxl",
        "stable_diffusion_v1": "sd1x",
        "stable_diffusion_v2": "sd2x",
        "stable_diffusion_v3": "sd3",
        "stable_diffusion_3": "sd3",
        "pixart": "pixart_sigma",
        "wan2.1": "wan",
        "wan2.2": "wan",
        "ltx2": "ltxvideo2",
        "lumina_2": "lumina2",
        "aura_flow": "auraflow",
        "hidream_i1": "hidream",
        "qwen_image_edit": "qwen_image",
    }
)


def family_of_architecture(
    modelspec_architecture: str, *, trainer: Trainer = "simpletuner"
) -> FamilyGuess | None:
    """Read ``modelspec.architecture`` of a LoRA file.

    Returns:
        None when the name is not one of a family known here.
    """
    base = modelspec_architecture.strip().partition("/")[0].lower()
    normalised = base.replace("-", "_")
    name = _longest_prefix(normalised)
    if name is None:
        return None
    flavour = base[len(name) :].lstrip("-_")
    family = _ALIASES.get(name, name)
    if family in _BY_FLAVOUR:
        class_name, note = _BY_FLAVOUR[family]
        return _differing(family, flavour, class_name, note, trainer)
    class_name, entries = _FAMILIES[family]
    if family == "sdxl" and flavour.startswith("refiner"):
        entries = _SDXL_REFINER_CONFIG
    expected = expected_head_dims({"_class_name": class_name, **entries}, trainer=trainer)
    return _guess(family, flavour, expected)


def _longest_prefix(name: str) -> str | None:
    """The longest known family name that ``name`` is, or starts with before a separator."""
    known = (*_FAMILIES, *_BY_FLAVOUR, *_ALIASES)
    fitting = [item for item in known if name == item or name.startswith(item + "_")]
    return max(fitting, key=len) if fitting else None


def _differing(
    family: str, flavour: str, class_name: str, note: str, trainer: Trainer
) -> FamilyGuess:
    if family == "sana":
        return FamilyGuess(family, flavour, class_name, (), (72, 112), note)
    if "13b" in flavour:
        return FamilyGuess(family, flavour, class_name, (128,))
    if "2b" in flavour or flavour in ("0.9.0", "0.9.1", "0.9.5"):
        return FamilyGuess(family, flavour, class_name, (64,))
    return FamilyGuess(family, flavour, class_name, None, (64, 128), note)


def _guess(family: str, flavour: str, expected: ExpectedPairs) -> FamilyGuess:
    return FamilyGuess(
        family,
        flavour,
        expected.class_name,
        expected.head_dims,
        expected.possible,
        expected.note,
    )
