"""Made-up samples: what is used when no real ones are there, with a loud warning."""

from __future__ import annotations

import torch

from sla_ckpt.regen.families.base import Config, FamilyAdapter
from sla_ckpt.regen.samples.request import SampleRequest, SampleSet
from sla_ckpt.regen.samples.sizes import check_tokens, default_size, wanted_size

WARNING = (
    "no real samples: latents are made up, so the quality is NOT confirmed to be restored. "
    "Name the trainer's caches with --data DIR, or a few pictures with --images DIR"
)


def make_synthetic(
    request: SampleRequest, adapter: FamilyAdapter, config: Config, *, on_cpu: bool
) -> SampleSet:
    """``request.count`` samples with a natural spectrum; equal for equal seeds.

    Raises:
        RegenError: The size is too small for the model or for topk.
    """
    default = default_size(adapter, config, request.settings, on_cpu=on_cpu)
    size = wanted_size(adapter, config, request, default=default) or default
    tokens = adapter.tokens_for(config, size.height, size.width, size.frames)
    check_tokens(tokens, request.settings, f"{size.width}x{size.height}")
    generator = torch.Generator().manual_seed(request.seed)
    samples = tuple(
        adapter.prepare(
            config,
            adapter.synthetic_sample(
                config,
                height=size.height,
                width=size.width,
                frames=size.frames,
                generator=generator,
            ),
        )
        for _ in range(request.count)
    )
    frames = f", {size.frames} frames" if size.frames > 1 else ""
    return SampleSet(
        samples=samples,
        kind="synthetic",
        description=f"{len(samples)} made-up samples of {size.width}x{size.height}{frames}",
        warnings=(WARNING,),
    )
