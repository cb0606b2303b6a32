"""The frozen backbone: a checkpoint's denoiser, loaded straight to the device.

The real diffusers class is built without memory for its parameters (its buffers are real, since
rotary tables and the like are in no file), and the weights are streamed in from safetensors. The
outcome equals ``Class.from_pretrained(folder, torch_dtype=dtype)``, bit for bit, including the
modules that diffusers keeps in float32. Nothing here writes to a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.backbone_files import LORA_FILE, BackboneFiles, find_backbone
from sla_ckpt.regen.base_model import resolve_base_model
from sla_ckpt.regen.empty_model import build_empty, match_tensors, tensor_table
from sla_ckpt.regen.lora import apply_lora, read_lora
from sla_ckpt.regen.placing import Placing
from sla_ckpt.regen.streaming import load_tensors
from sla_ckpt.regen.tensor_files import FileTensor, Placement


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen denoiser in eval mode.

    Attributes:
        model: The diffusers model; no parameter requires a gradient.
        config: Its config.json.
        class_name: Its diffusers class.
        description: One line for reports: class, folder, size, dtype, LoRA.
        bytes: Bytes read from disk.
        seconds: Time from the call to weights on the device.
        base_model: What a LoRA was put on: a path or Hub id; None for a full model.
        folder: The denoiser's folder.
    """

    model: nn.Module
    config: Mapping[str, Any]
    class_name: str
    description: str
    bytes: int
    seconds: float
    base_model: str | None
    folder: Path


def load_backbone(
    checkpoint: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    base_model: str | Path | None = None,
    ema: bool = False,
    offload: bool = False,
    denoiser: str | None = None,
    built: Callable[[Mapping[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Backbone:
    """Load the denoiser of a full-model checkpoint, or a LoRA over its base.

    Args:
        checkpoint: A SimpleTuner checkpoint, a diffusers pipeline folder or a diffusers model
            folder; or a folder with ``pytorch_lora_weights.safetensors``.
        device: Where to compute. ``"auto"`` spreads the model over all CUDA devices.
        dtype: Of the floating-point weights; None keeps the files'. Modules that diffusers keeps
            in float32 stay there.
        base_model: For a LoRA: a local folder or a Hub id ``org/model[@revision]``. By default
            what the checkpoint's or output directory's configuration names.
        ema: Take the EMA copy.
        offload: Keep the weights in host memory; accelerate brings each module to ``device`` for
            its forward. Gradients then need gradient checkpointing to stay small in memory.
        denoiser: Subfolder to load instead of ``transformer/`` or ``unet/``.
        built: Called with the model's config, ``_class_name`` included, once the model stands
            and before its weights are read.
        progress: Called with (bytes read so far, bytes in all).

    Raises:
        RegenError: No denoiser, an unknown class, tensors missing, unexpected or of another
            shape, a LyCORIS, a LoRA whose keys do not fit, out of memory.
        FormatError: A weights file is damaged.
        MissingExtraError: diffusers, peft or accelerate is not installed.
    """
    started = time.perf_counter()
    lora = _lora_file(checkpoint, ema=ema)
    # Read before any base model is looked for: a bad file must not cost a download.
    adapter = read_lora(lora) if lora is not None else None
    files: BackboneFiles | None = None
    base_label: str | None = None
    if adapter is None or base_model is None:
        files = find_backbone(checkpoint, ema=ema and adapter is None, denoiser=denoiser)
    if adapter is not None and files is None:
        base_label, files = resolve_base_model(
            checkpoint, base_model, named_in_file=adapter.base_model, denoiser=denoiser
        )
    if files is None:
        raise _no_backbone(checkpoint)

    placing = Placing(device, dtype, offload=offload)
    try:
        loaded = _load(files, placing, built, progress)
        described = f"{loaded.class_name} from {_place(files.folder, checkpoint, base_label)}"
        if adapter is not None:
            note = apply_lora(loaded.model, adapter)
            described = f"{described} with {note}"
        placing.dispatch(loaded.model)
    except torch.cuda.OutOfMemoryError as error:
        raise RegenError(
            f"the card ran out of memory while {files.folder} was loaded",
            hint="use --offload, --device auto for several cards, or a larger card",
            path=str(files.folder),
        ) from error
    _synchronise()
    kind = str(dtype).removeprefix("torch.") if dtype else "the file's dtype"
    shards = f", {len(files.weights)} shards" if len(files.weights) > 1 else ""
    return replace(
        loaded,
        description=f"{described} ({loaded.bytes / 1e9:.2f} GB{shards}, {kind})",
        seconds=time.perf_counter() - started,
        base_model=base_label,
    )


def _load(
    files: BackboneFiles,
    placing: Placing,
    built: Callable[[Mapping[str, Any]], None] | None,
    progress: Callable[[int, int], None] | None,
) -> Backbone:
    class_name, model = build_empty(files.class_name, files.config, placing.dtype)
    # The model's own config has the class's defaults for entries that the file leaves out.
    config = {**dict(getattr(model, "config", {})), **files.config}
    if built is not None:
        built({**config, "_class_name": class_name})
    table = tensor_table(files)
    wanted = match_tensors(model, table, files.folder)
    fp32 = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    total = sum(tensor.size for tensor in wanted)
    seen = 0

    def place(tensor: FileTensor) -> Placement:
        return placing.of(
            model, tensor.name, keep_fp32=not set(fp32).isdisjoint(tensor.name.split("."))
        )

    def report(count: int) -> None:
        nonlocal seen
        seen += count
        if progress is not None:
            progress(seen, total)

    count = load_tensors(
        wanted, place, lambda name, tensor: _assign(model, name, tensor), progress=report
    )
    placing.place_buffers(model)
    model.requires_grad_(False)
    model.eval()
    return Backbone(
        model=model,
        config=MappingProxyType(config),
        class_name=class_name,
        description="",
        bytes=count,
        seconds=0.0,
        base_model=None,
        folder=files.folder,
    )


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _lora_file(checkpoint: Path, *, ema: bool) -> Path | None:
    if not ema:
        path = checkpoint / LORA_FILE
        return path if path.is_file() else None
    if not (checkpoint / LORA_FILE).is_file():
        return None
    for name in (LORA_FILE, "ema_model.safetensors"):
        path = checkpoint / "ema" / name
        if path.is_file():
            return path
    raise RegenError(
        f"{checkpoint} has no EMA copy of its LoRA",
        hint="leave --ema out to use the trained weights",
        path=str(checkpoint),
    )


def _no_backbone(checkpoint: Path) -> RegenError:
    if (checkpoint / "controlnet" / "config.json").is_file():
        return RegenError(
            f"{checkpoint} is a ControlNet checkpoint; its denoiser is not in it",
            hint="run regen on the base model's folder",
            path=str(checkpoint),
        )
    return RegenError(
        f"{checkpoint} has no denoiser (transformer/, unet/ or a model's config.json) and no LoRA",
        hint="name a checkpoint directory, or a diffusers model folder",
        path=str(checkpoint),
    )


def _place(folder: Path, checkpoint: Path, base: str | None) -> str:
    """How reports name the folder: its base model, or where it is below the checkpoint."""
    if base is not None:
        return Path(base).name if Path(base).is_absolute() else base
    try:
        inner = folder.relative_to(checkpoint).as_posix()
    except ValueError:
        return folder.name
    return checkpoint.name if inner == "." else f"{inner}/"


def _synchronise() -> None:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
