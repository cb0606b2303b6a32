"""How many tokens a model attends over at a resolution, from its config, without torch.

Counts are of image or video tokens. Models that attend over text and image together have the
text tokens on top, so the counts are lower bounds there; that is the safe side for the question
whether topk keeps any block at all. The compression of the VAE is a property of the family that
the denoiser's config does not state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.config import ConfigReader, config_class_name
from sla_ckpt.pairs.unet import unet_attention

MAX_PIXELS_PER_SIDE = 65536
MAX_FRAMES = 65536


def tokens_at(config: Mapping[str, Any], width: int, height: int, frames: int = 1) -> int | None:
    """Tokens of the shortest image self-attention at this size in pixels and frames.

    Returns:
        None for classes that are not known, and for models without self-attention.

    Raises:
        UsageError: A size out of range, or a malformed config entry.
    """
    lengths = sequence_lengths(config, width, height, frames)
    return min(lengths) if lengths else None


def sequence_lengths(
    config: Mapping[str, Any], width: int, height: int, frames: int = 1
) -> tuple[int, ...]:
    """Lengths of all image self-attentions, ascending; several only for UNets and LTX-2.

    Raises:
        UsageError: A size out of range, or a malformed config entry.
    """
    for what, value, limit in (
        ("width", width, MAX_PIXELS_PER_SIDE),
        ("height", height, MAX_PIXELS_PER_SIDE),
        ("frames", frames, MAX_FRAMES),
    ):
        if not 1 <= value <= limit:
            raise UsageError(f"{what} {value} is outside 1 to {limit}")
    class_name = config_class_name(config)
    rule = _RULES.get(class_name) if class_name else None
    if class_name is None or rule is None:
        return ()
    return rule(ConfigReader(config, class_name), width, height, frames)


_Rule = Callable[[ConfigReader, int, int, int], tuple[int, ...]]


def latent_frames(frames: int, compression: int) -> int:
    """Latent frames of a causal video VAE: the first frame stands alone."""
    return (frames - 1) // compression + 1


def _image(cell: int) -> _Rule:
    """A square of ``cell`` pixels is one token."""

    def rule(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
        return (_cells(width, cell) * _cells(height, cell),)

    return rule


def _patched(vae: int, key: str = "patch_size") -> _Rule:
    """The VAE's factor times the config's patch size."""

    def rule(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
        cell = vae * (reader.optional_int(key, limit=256) or 2)
        return (_cells(width, cell) * _cells(height, cell),)

    return rule


def _z_image(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
    cell = 8 * min(reader.int_tuple("all_patch_size"))
    return (_cells(width, cell) * _cells(height, cell),)


def _video(spatial: int, temporal: int) -> _Rule:
    """``patch_size`` and ``patch_size_t`` are numbers."""

    def rule(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
        cell = spatial * reader.positive_int("patch_size", limit=256)
        patch_t = reader.optional_int("patch_size_t", limit=256) or 1
        depth = -(-latent_frames(frames, temporal) // patch_t)
        return (depth * _cells(width, cell) * _cells(height, cell),)

    return rule


def _patch_triple(reader: ConfigReader) -> tuple[int, int, int]:
    patch = reader.int_tuple("patch_size")
    if len(patch) != 3:
        raise reader.error(f"patch_size has {len(patch)} entries, not 3")
    return patch[0], patch[1], patch[2]


def _video_triple(spatial: int, temporal: int) -> _Rule:
    """``patch_size`` is (frames, height, width)."""

    def rule(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
        return (_triple(reader, spatial, temporal, width, height, frames),)

    return rule


def _triple(
    reader: ConfigReader, spatial: int, temporal: int, width: int, height: int, frames: int
) -> int:
    patch_t, patch_h, patch_w = _patch_triple(reader)
    depth = -(-latent_frames(frames, temporal) // patch_t)
    return depth * _cells(height, spatial * patch_h) * _cells(width, spatial * patch_w)


def _wan(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
    # The 5B model of Wan 2.2 uses a VAE of 48 channels and a factor of 16.
    spatial = 16 if reader.optional_int("in_channels") == 48 else 8
    return (_triple(reader, spatial, 4, width, height, frames),)


def _cosmos(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
    # Cosmos 1 has learnable positions and its own tokenizer; later models use Wan's VAE.
    temporal = 8 if reader.get("extra_pos_embed_type") == "learnable" else 4
    return (_triple(reader, 8, temporal, width, height, frames),)


def _ltx2(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
    factors = reader.int_tuple("vae_scale_factors")
    if len(factors) != 3:
        raise reader.error(f"vae_scale_factors has {len(factors)} entries, not 3")
    depth = latent_frames(frames, factors[0])
    return (depth * _cells(height, factors[1]) * _cells(width, factors[2]),)


def _unet(reader: ConfigReader, width: int, height: int, frames: int) -> tuple[int, ...]:
    # DeepFloyd's UNets work on pixels: 3 channels, or 6 with the image to enlarge.
    vae = 1 if reader.get("in_channels") in (3, 6) else 8
    lengths = set()
    for item in unet_attention(reader):
        if item.self_attention:
            rows = -(-_cells(height, vae) // (1 << item.level))
            columns = -(-_cells(width, vae) // (1 << item.level))
            lengths.add(rows * columns)
    return tuple(sorted(lengths))


def _cells(pixels: int, cell: int) -> int:
    return max(1, pixels // cell)


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        # These pipelines pack 2×2 latents into one token outside the model.
        "FluxTransformer2DModel": _image(16),
        "FluxControlNetModel": _image(16),
        "Flux2Transformer2DModel": _image(16),
        "ChromaTransformer2DModel": _image(16),
        "QwenImageTransformer2DModel": _image(16),
        "QwenImageControlNetModel": _image(16),
        "SD3Transformer2DModel": _patched(8),
        "SD3ControlNetModel": _patched(8),
        "AuraFlowTransformer2DModel": _patched(8),
        "PixArtTransformer2DModel": _patched(8),
        "Lumina2Transformer2DModel": _patched(8),
        "HiDreamImageTransformer2DModel": _patched(8),
        "OmniGenTransformer2DModel": _patched(8),
        "SanaTransformer2DModel": _patched(32),
        "SanaControlNetModel": _patched(32),
        "ZImageTransformer2DModel": _z_image,
        "WanTransformer3DModel": _wan,
        "WanVACETransformer3DModel": _wan,
        "SkyReelsV2Transformer3DModel": _wan,
        "HunyuanVideoTransformer3DModel": _video(8, 4),
        "HunyuanVideo15Transformer3DModel": _video(16, 4),
        "LTXVideoTransformer3DModel": _video(32, 8),
        "LTX2VideoTransformer3DModel": _ltx2,
        "CogVideoXTransformer3DModel": _video(8, 4),
        "CosmosTransformer3DModel": _cosmos,
        "Kandinsky5Transformer3DModel": _video_triple(8, 4),
        "UNet2DConditionModel": _unet,
        "ControlNetModel": _unet,
    }
)
