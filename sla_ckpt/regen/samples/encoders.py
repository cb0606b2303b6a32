"""A base pipeline's VAE and text encoders, without its denoiser.

Captions go through the pipeline's own ``encode_prompt``; latents are scaled as the family's
trainer and pipeline scale them, which is also how SimpleTuner caches them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sla_ckpt.errors import MissingExtraError, RegenError
from sla_ckpt.regen.backbone_files import read_json
from sla_ckpt.regen.base_model import PIPELINE_INDEX


@dataclass(frozen=True)
class PromptSpec:
    """How one pipeline class encodes a caption.

    Attributes:
        outputs: Conditioning names of what ``encode_prompt`` returns, in order; None is left out.
        arguments: Keyword arguments beside ``prompt`` and ``device``.
    """

    outputs: tuple[str | None, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)


_NO_GUIDANCE = MappingProxyType({"do_classifier_free_guidance": False})
_MASKED = ("prompt_embeds", "attention_masks")
_POOLED = ("prompt_embeds", None, "pooled_prompt_embeds")

PROMPTS: Mapping[str, PromptSpec] = MappingProxyType(
    {
        "FluxPipeline": PromptSpec(("prompt_embeds", "pooled_prompt_embeds"), {"prompt_2": None}),
        "StableDiffusion3Pipeline": PromptSpec(
            _POOLED, {"prompt_2": None, "prompt_3": None, **_NO_GUIDANCE}
        ),
        "StableDiffusionXLPipeline": PromptSpec(_POOLED, _NO_GUIDANCE),
        "StableDiffusionPipeline": PromptSpec(
            ("prompt_embeds",), {"num_images_per_prompt": 1, **_NO_GUIDANCE}
        ),
        "QwenImagePipeline": PromptSpec(_MASKED),
        "PixArtAlphaPipeline": PromptSpec(_MASKED, _NO_GUIDANCE),
        "PixArtSigmaPipeline": PromptSpec(_MASKED, _NO_GUIDANCE),
        "AuraFlowPipeline": PromptSpec(_MASKED, _NO_GUIDANCE),
        "WanPipeline": PromptSpec(
            ("prompt_embeds",), {"max_sequence_length": 512, **_NO_GUIDANCE}
        ),
    }
)  # fmt: skip
#: Parts of a pipeline that encoding does not need.
_LEFT_OUT = (
    "transformer",
    "transformer_2",
    "unet",
    "image_encoder",
    "image_processor",
    "feature_extractor",
    "safety_checker",
)
#: Where model_index.json may take classes from; it is a downloaded file.
_LIBRARIES = frozenset({"transformers", "diffusers"})


@dataclass(eq=False)
class Encoders:
    """A loaded pipeline without denoiser.

    Attributes:
        pipeline: The diffusers pipeline.
        spec: How it encodes captions.
        device: Where to encode.
    """

    pipeline: Any
    spec: PromptSpec
    device: torch.device

    def encode_captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Conditioning of each caption, on the CPU, without batch dimension.

        The text encoders are freed afterwards.

        Raises:
            RegenError: The pipeline cannot encode.
        """
        names = [n for n in self.pipeline.components if n.startswith("text_encoder")]
        found: dict[str, dict[str, Tensor]] = {}
        with torch.no_grad(), _quiet():
            for name in names:
                self._move(name)
            for caption in captions:
                if caption not in found:
                    found[caption] = self._encode(caption)
        for name in names:
            self.pipeline.register_modules(**{name: None})
        _free(self.device)
        return [found[caption] for caption in captions]

    def _encode(self, caption: str) -> dict[str, Tensor]:
        try:
            outputs = self.pipeline.encode_prompt(
                prompt=caption, device=self.device, **self.spec.arguments
            )
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RegenError(
                f"{type(self.pipeline).__name__} cannot encode the caption {caption[:40]!r}: "
                f"{error}",
                hint="encode with the trainer and use its caches (--data)",
            ) from error
        named: dict[str, Tensor] = {}
        for name, value in zip(self.spec.outputs, outputs, strict=False):
            if name is not None and isinstance(value, Tensor):
                named[name] = value[0].to("cpu")
        return named

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents of one picture or video, scaled, on the CPU.

        Args:
            pixels: [3, F, H, W] in [-1, 1].

        Returns:
            [C, h, w] from an image VAE, [C, T, h, w] from a video VAE; float32.

        Raises:
            RegenError: A VAE whose scaling is not known.
        """
        vae = self.pipeline.vae
        self._move("vae")
        config = vae.config
        kind = type(vae).__name__
        with torch.no_grad():
            batch = pixels.unsqueeze(0).to(self.device, vae.dtype)
            if kind == "AutoencoderKL":
                latents = vae.encode(batch[:, :, 0]).latent_dist.mode()[0].float()
                latents = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
            elif kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
                latents = vae.encode(batch).latent_dist.mode()[0].float()
                shape = (-1, *[1] * (latents.ndim - 1))
                mean = torch.tensor(config.latents_mean, device=latents.device).view(shape)
                std = torch.tensor(config.latents_std, device=latents.device).view(shape)
                latents = (latents - mean) / std
            else:
                raise RegenError(
                    f"how {kind} scales its latents is not known",
                    hint="encode with the trainer and use its caches (--data)",
                )
        result: Tensor = latents.to("cpu")
        return result

    def _move(self, name: str) -> None:
        module = getattr(self.pipeline, name, None)
        if module is not None:
            module.to(self.device)

    def close(self) -> None:
        """Free everything."""
        self.pipeline = None
        _free(self.device)


def load_encoders(folder: Path, device: torch.device) -> Encoders:
    """Load VAE, text encoders and tokenizers of a pipeline folder; safetensors only.

    Text encoders are bfloat16 on a card and float32 on a CPU; the VAE is float32.

    Raises:
        RegenError: A pipeline that is not known here, or that does not load.
        MissingExtraError: diffusers or transformers is not installed.
    """
    index = read_json(folder / PIPELINE_INDEX)
    name = index.get("_class_name")
    spec = PROMPTS.get(name) if isinstance(name, str) else None
    if spec is None:
        raise RegenError(
            f"--images does not know how {name} encodes captions",
            hint=f"known are {', '.join(sorted(PROMPTS))}; "
            "else encode with the trainer and use its caches (--data)",
            path=str(folder / PIPELINE_INDEX),
        )
    left_out: dict[str, None] = {}
    for part, value in index.items():
        if not isinstance(value, list) or len(value) != 2:
            continue
        if part in _LEFT_OUT:
            left_out[part] = None
        elif value[0] is not None and value[0] not in _LIBRARIES:
            raise RegenError(
                f"{folder / PIPELINE_INDEX} takes {part} from {value[0]!r:.60}, "
                "which is not loaded",
                hint="only transformers and diffusers classes are",
                path=str(folder / PIPELINE_INDEX),
            )
    try:
        import diffusers
        import transformers  # noqa: F401 - the text encoders need it
    except ImportError as error:
        raise MissingExtraError("--images", "regen", str(error.name)) from error
    text_dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        with _quiet(), warnings.catch_warnings():
            # Newer diffusers call it dtype, older ones know torch_dtype only.
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = getattr(diffusers, str(name)).from_pretrained(
                folder,
                torch_dtype={"vae": torch.float32, "default": text_dtype},
                use_safetensors=True,
                local_files_only=True,
                **left_out,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise RegenError(
            f"the pipeline in {folder} does not load: {str(error).splitlines()[0][:160]}",
            hint="it must hold the VAE, text encoders and tokenizers, with safetensors weights",
            path=str(folder),
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return Encoders(pipeline, spec, device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' and transformers' progress bars and notes about what is left out."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [module.get_verbosity() for module in loggers]
    bars = [module.is_progress_bar_enabled() for module in loggers]
    for module in loggers:
        module.set_verbosity(logging.ERROR)
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level, bar in zip(loggers, before, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
