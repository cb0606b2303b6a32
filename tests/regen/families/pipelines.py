"""Running real diffusers pipelines with tiny denoisers, to see what they hand to the model.

The pipelines get no text encoder and no VAE: captions come in encoded, latents go out as they are.
The second of two denoising steps is captured, at a noise level strictly between 0 and 1; the first
leaves the latents as they are, so that they are known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from sla_ckpt.regen.families.base import Batch, FamilyAdapter, collate
from sla_ckpt.regen.families.registry import adapter_for, builtin_adapters

HEIGHT, WIDTH, FRAMES, TEXT = 64, 96, 9, 7


def same(latents: Tensor) -> Tensor:
    return latents


def pack(latents: Tensor) -> Tensor:
    """2×2 squares to tokens, through the pipeline's own code."""
    batch, channels, rows, columns = latents.shape
    return diffusers.FluxPipeline._pack_latents(latents, batch, channels, rows, columns)


def flat(latents: Tensor) -> Tensor:
    """Every latent a token."""
    return latents.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Pipeline:
    """One family's pipeline.

    Attributes:
        class_name: Of the denoiser.
        pipeline: Class name of the pipeline.
        call: Conditioning arguments of its call from a batch.
        options: Further arguments.
        to_pipeline: Latents as the adapter has them → as the pipeline takes them.
        to_prediction: Likewise, as the pipeline hands predictions to its scheduler.
        scheduler: Makes the scheduler.
        component: Name of the denoiser among the components.
        config: Changes to the tiny config.
        components: Further components.
        masks: Names of masks that the samples bring, all ones.
        height: Of the picture.
        width: Likewise.
        frames: Of a video.
    """

    class_name: str
    pipeline: str
    call: Callable[[Batch], dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    to_pipeline: Callable[[Tensor], Tensor] = same
    to_prediction: Callable[[Tensor], Tensor] | None = None
    scheduler: Callable[[], Any] = diffusers.FlowMatchEulerDiscreteScheduler
    component: str = "transformer"
    config: Mapping[str, Any] = field(default_factory=dict)
    components: Mapping[str, Any] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    height: int = HEIGHT
    width: int = WIDTH
    frames: int = FRAMES


@dataclass(frozen=True, eq=False)
class Captured:
    """What one denoising step did.

    Attributes:
        model: The denoiser.
        adapter: Bound to it.
        batch: Whose latents the pipeline was given as noisy ones.
        inputs: Arguments the pipeline gave the model, by parameter name.
        output: What the model returned.
        prediction: What the pipeline gave its scheduler.
        timestep: The scheduler's number for the step.
        scheduler: It.
    """

    model: Any
    adapter: FamilyAdapter
    batch: Batch
    inputs: Mapping[str, Any]
    output: Any
    prediction: Tensor
    timestep: float
    scheduler: Any


def tiny_model(class_name: str, **changes: Any) -> Any:
    """A family's tiny model with fixed random weights."""
    config = {**builtin_adapters()[class_name].tiny_config(), **changes}
    torch.manual_seed(0)
    model = getattr(diffusers, class_name).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Gates start at zero and would hide what is behind them.
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


def random_batch(model: Any, *, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> Batch:
    """Two prepared synthetic samples."""
    adapter = adapter_for(model.config)
    generator = torch.Generator().manual_seed(0)
    options = {"text_tokens": TEXT, "frames": FRAMES, "generator": generator, **options}
    return collate(
        [
            adapter.prepare(
                model.config,
                adapter.synthetic_sample(model.config, height=height, width=width, **options),
            )
            for _ in range(2)
        ]
    )


def run_pipeline(case: Pipeline) -> Captured:
    """Run one step on two random samples and capture the model call."""
    model = tiny_model(case.class_name, **case.config)
    adapter = adapter_for(model.config)
    batch = random_batch(model, height=case.height, width=case.width, frames=case.frames)
    ones = {name: torch.ones(2, TEXT) for name in case.masks}
    batch = Batch(batch.latents, {**batch.conditioning, **ones}, batch.sources)
    pipeline_class = getattr(diffusers, case.pipeline)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    scheduler = case.scheduler()
    components = {
        name: None
        for name, parameter in parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    }
    components |= {case.component: model, "scheduler": scheduler, **case.components}
    pipe = pipeline_class(**components)
    pipe.set_progress_bar_config(disable=True)
    seen = watch(model, scheduler)
    arguments = {
        "height": case.height,
        "width": case.width,
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(1),
        "latents": case.to_pipeline(batch.latents),
        **case.call(batch),
        **case.options,
    }
    if "num_frames" in inspect.signature(pipe.__call__).parameters:
        arguments["num_frames"] = case.frames
    pipe(**arguments)
    return Captured(
        model,
        adapter,
        batch,
        seen["inputs"],
        seen["output"],
        seen["prediction"],
        seen["timestep"],
        scheduler,
    )


def watch(model: Any, scheduler: Any) -> dict[str, Any]:
    """Record the latest call of the model and of the scheduler, whose steps change nothing."""
    seen: dict[str, Any] = {}
    names = list(inspect.signature(type(model).forward).parameters)[1:]

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["inputs"] = {**dict(zip(names, args, strict=False)), **kwargs}

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["output"] = output

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)
    real_step = scheduler.step

    def step(prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["prediction"], seen["timestep"] = prediction, float(timestep)
        result = real_step(prediction, timestep, sample, *args, **kwargs)
        return (sample, *result[1:])

    scheduler.step = step
    return seen


def prompt(*names: str, **renamed: str) -> Callable[[Batch], dict[str, Any]]:
    """Conditioning under the pipeline's names."""

    def call(batch: Batch) -> dict[str, Any]:
        found = {name: batch.conditioning[name] for name in names}
        return found | {theirs: batch.conditioning[ours] for theirs, ours in renamed.items()}

    return call


def ones_mask(batch: Batch, name: str = "prompt_attention_mask") -> dict[str, Tensor]:
    return {name: torch.ones(batch.conditioning["prompt_embeds"].shape[:2], dtype=torch.int64)}


def prompt_and_mask(*names: str) -> Callable[[Batch], dict[str, Any]]:
    """The caption and a mask that hides nothing."""
    return lambda batch: {**prompt("prompt_embeds", *names)(batch), **ones_mask(batch)}


def ddim() -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


_UNBINNED = {"guidance_scale": 1.0, "use_resolution_binning": False, "negative_prompt": None}

PIPELINES: tuple[Pipeline, ...] = (
    Pipeline(
        "FluxTransformer2DModel",
        "FluxPipeline",
        prompt("prompt_embeds", "pooled_prompt_embeds"),
        to_pipeline=pack,
    ),
    Pipeline(
        "Flux2Transformer2DModel", "Flux2Pipeline", prompt("prompt_embeds"), to_prediction=flat
    ),
    Pipeline(
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        prompt("prompt_embeds", "pooled_prompt_embeds"),
    ),
    Pipeline(
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        prompt("prompt_embeds"),
        {"true_cfg_scale": 1.0},
        pack,
    ),
    Pipeline(
        "ChromaTransformer2DModel",
        "ChromaPipeline",
        lambda batch: {
            "prompt_embeds": batch.conditioning["prompt_embeds"],
            "prompt_attention_mask": batch.conditioning["attention_masks"].bool(),
        },
        to_pipeline=pack,
        masks=("attention_masks",),
    ),
    Pipeline("AuraFlowTransformer2DModel", "AuraFlowPipeline", prompt_and_mask()),
    Pipeline("WanTransformer3DModel", "WanPipeline", prompt("prompt_embeds")),
    Pipeline(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoPipeline",
        prompt_and_mask("pooled_prompt_embeds"),
    ),
    Pipeline("LTXVideoTransformer3DModel", "LTXPipeline", prompt_and_mask(), to_pipeline=flat),
    Pipeline(
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        prompt("prompt_embeds"),
        to_pipeline=lambda latents: latents.transpose(1, 2),
        scheduler=diffusers.CogVideoXDDIMScheduler,
    ),
    Pipeline(
        "PixArtTransformer2DModel",
        "PixArtSigmaPipeline",
        prompt_and_mask(),
        _UNBINNED,
        scheduler=ddim,
    ),
    Pipeline("Lumina2Transformer2DModel", "Lumina2Pipeline", prompt_and_mask()),
    Pipeline(
        "ZImageTransformer2DModel",
        "ZImagePipeline",
        lambda batch: {"prompt_embeds": list(batch.conditioning["prompt_embeds"].unbind(0))},
        {"guidance_scale": 0.0},
    ),
    Pipeline(
        "HiDreamImageTransformer2DModel",
        "HiDreamImagePipeline",
        lambda batch: {
            "prompt_embeds_t5": batch.conditioning["t5_prompt_embeds"],
            "prompt_embeds_llama3": batch.conditioning["llama_prompt_embeds"].transpose(0, 1),
            "pooled_prompt_embeds": batch.conditioning["pooled_prompt_embeds"],
        },
        # The pipeline scales every size to the area of 1024×1024.
        config={"max_resolution": [128, 128]},
        height=832,
        width=1248,
    ),
    Pipeline(
        "Kandinsky5Transformer3DModel",
        "Kandinsky5T2VPipeline",
        lambda batch: {
            "prompt_embeds_qwen": batch.conditioning["prompt_embeds"],
            "prompt_embeds_clip": batch.conditioning["pooled_prompt_embeds"],
            "prompt_cu_seqlens": torch.tensor([0, TEXT, 2 * TEXT]),
        },
        to_pipeline=lambda latents: latents.permute(0, 2, 3, 4, 1),
    ),
    Pipeline(
        "UNet2DConditionModel",
        "StableDiffusionXLPipeline",
        prompt("prompt_embeds", "pooled_prompt_embeds"),
        scheduler=ddim,
        component="unet",
    ),
    Pipeline("SanaTransformer2DModel", "SanaPipeline", prompt_and_mask(), _UNBINNED),
    Pipeline(
        "FluxTransformer2DModel",
        "FluxPipeline",
        prompt("prompt_embeds", "pooled_prompt_embeds"),
        to_pipeline=pack,
        config={"guidance_embeds": False},
    ),
    Pipeline(
        "UNet2DConditionModel",
        "StableDiffusionPipeline",
        prompt("prompt_embeds"),
        scheduler=ddim,
        component="unet",
        config={"addition_embed_type": None},
        components={"requires_safety_checker": False},
    ),
    Pipeline(
        "PixArtTransformer2DModel",
        "PixArtAlphaPipeline",
        prompt_and_mask(),
        _UNBINNED,
        scheduler=ddim,
        config={"use_additional_conditions": True, "sample_size": 128},
    ),
    Pipeline(
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        prompt("prompt_embeds"),
        to_pipeline=lambda latents: latents.transpose(1, 2),
        scheduler=diffusers.CogVideoXDDIMScheduler,
        config={
            "use_rotary_positional_embeddings": False,
            "sample_width": WIDTH // 8,
            "sample_height": HEIGHT // 8,
        },
    ),
    Pipeline(
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        prompt("prompt_embeds"),
        to_pipeline=lambda latents: latents.transpose(1, 2),
        scheduler=diffusers.CogVideoXDDIMScheduler,
        config={
            "patch_size_t": 2,
            "patch_bias": False,
            "sample_width": 32,
            "sample_height": 32,
        },
        # An even number of latent frames: the pipeline adds one to odd numbers.
        frames=13,
    ),
    Pipeline(
        "Kandinsky5Transformer3DModel",
        "Kandinsky5T2IPipeline",
        lambda batch: {
            "prompt_embeds_qwen": batch.conditioning["prompt_embeds"],
            "prompt_embeds_clip": batch.conditioning["pooled_prompt_embeds"],
            "prompt_cu_seqlens": torch.tensor([0, TEXT, 2 * TEXT]),
        },
        to_pipeline=lambda latents: latents.permute(0, 2, 3, 4, 1),
        # The pipeline knows a few sizes only.
        height=1024,
        width=1024,
        frames=1,
    ),
)
