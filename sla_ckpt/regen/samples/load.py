"""Samples for regeneration, from the first source that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sla_ckpt.errors import RegenError, UsageError
from sla_ckpt.regen.families.base import Config, FamilyAdapter
from sla_ckpt.regen.samples.caches import load_caches
from sla_ckpt.regen.samples.discover import find_caches, folders_of, model_family
from sla_ckpt.regen.samples.inputs import load_inputs
from sla_ckpt.regen.samples.request import SampleRequest, SampleSet
from sla_ckpt.regen.samples.synthetic import make_synthetic


def load_samples(
    checkpoint: Path,
    request: SampleRequest,
    adapter: FamilyAdapter,
    model_config: Config,
    *,
    device: torch.device | str = "cpu",
) -> SampleSet:
    """Load the samples that a request names, else caches found beside the checkpoint, else none.

    Args:
        checkpoint: The checkpoint directory; caches are looked for around it.
        request: What the user asked for.
        adapter: Of the model.
        model_config: The denoiser's config.json.
        device: Where pictures are encoded; on a CPU made-up samples are smaller.

    Returns:
        Samples on the CPU, prepared by the adapter; with ``kind="synthetic"`` and a warning when
        nothing real was found.

    Raises:
        UsageError: Options that exclude each other.
        RegenError: What the user named holds nothing usable, or its size is too small for topk.
    """
    named = [
        option
        for option, value in (
            ("--data", request.data),
            ("--images", request.images),
            ("--inputs", request.inputs),
        )
        if value is not None
    ]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other", hint="use one of them")
    if request.count < 1:
        raise UsageError(f"--samples {request.count} is too few", hint="use 1 or more")
    if request.inputs is not None:
        return load_inputs(request.inputs, request.count)
    if request.data is not None:
        folders = folders_of(request.data, checkpoint, request.config)
        return load_caches(folders, request, adapter, model_config, family=model_family(checkpoint))
    if request.images is not None:
        from sla_ckpt.regen.samples.images import load_images

        return load_images(checkpoint, request, adapter, model_config, device=device)
    note: tuple[str, ...] = ()
    if request.search:
        try:
            found = find_caches(checkpoint, request.config)
            if found is not None:
                return load_caches(
                    found, request, adapter, model_config, family=model_family(checkpoint)
                )
        except RegenError as error:
            if request.config is not None:
                raise
            note = (f"the caches found by themselves cannot be used: {error.message}",)
    on_cpu = torch.device("cuda" if device == "auto" else device).type == "cpu"
    made = make_synthetic(request, adapter, model_config, on_cpu=on_cpu)
    return replace(made, warnings=(*note, *made.warnings))
