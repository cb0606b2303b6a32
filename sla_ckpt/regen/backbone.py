"""The frozen backbone: a checkpoint's denoiser, loaded straight to the device.

The real diffusers class is built without memory for its parameters (its buffers are real, since
rotary tables and the like are in no file), and the weights are streamed in from safetensors. The
outcome equals ``Class.from_pretrained(folder, torch_dtype=dtype)``, bit for bit, including the
modules that diffusers keeps in float32. Nothing here writes to a checkpoint.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sla_ckpt.errors import MissingExtraError, RegenError
from sla_ckpt.regen.backbone_files import LORA_FILE, BackboneFiles, find_backbone
from sla_ckpt.regen.base_model import resolve_base_model
from sla_ckpt.regen.lora import apply_lora, read_lora
from sla_ckpt.regen.streaming import FileTensor, Placement, load_tensors, read_table

#: Older class names in published configs -> what diffusers loads them as, by config entry.
_REMAPPED = {
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
}
_NAMED_IN_ERRORS = 4


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

    placing = _Placing(files, device, dtype, offload=offload)
    try:
        loaded = _load(files, placing, progress)
        described = f"{loaded.class_name} from {_relative(files.folder, checkpoint)}"
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
    files: BackboneFiles, placing: _Placing, progress: Callable[[int, int], None] | None
) -> Backbone:
    class_name, model = build_empty(files.class_name, files.config, placing.dtype)
    table = _table(files)
    wanted = _match(model, table, files.folder)
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
        config=MappingProxyType(dict(files.config)),
        class_name=class_name,
        description="",
        bytes=count,
        seconds=0.0,
        base_model=None,
        folder=files.folder,
    )


def build_empty(
    class_name: str, config: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[str, nn.Module]:
    """The diffusers model with parameters on the meta device and real buffers on the CPU.

    Returns:
        The name of the class in use (older names are mapped), and the model.

    Raises:
        RegenError: diffusers has no such model class, or the config does not fit it.
        MissingExtraError: diffusers or accelerate is not installed.
    """
    try:
        import diffusers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingExtraError("regen", "regen", str(error.name)) from error

    name = _REMAPPED.get((class_name, str(config.get("norm_type"))), class_name)
    cls = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise RegenError(
            f"diffusers {diffusers.__version__} has no model class {name!r}",
            hint="upgrade diffusers, or check _class_name in config.json",
        )
    accepted = inspect.signature(cls).parameters
    # EMA copies carry the averager's settings too; diffusers ignores them, with a warning.
    settings = {key: value for key, value in config.items() if key in accepted}
    try:
        with _default_dtype(dtype), init_empty_weights(include_buffers=False):
            model = cls.from_config(settings)  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise RegenError(
            f"{name} cannot be built from its config.json: {error}",
            hint="is the config of another diffusers version? upgrade diffusers",
        ) from error
    return name, model


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Tables computed in the constructor come out in the dtype from_pretrained gives them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if dtype is not None else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _table(files: BackboneFiles) -> dict[str, FileTensor]:
    table: dict[str, FileTensor] = {}
    for path in files.weights:
        for name, tensor in read_table(path).items():
            if name in table:
                raise RegenError(
                    f"{name} is in {table[name].path.name} and in {path.name}",
                    hint="remove the shards that the index does not list",
                    path=str(path),
                )
            table[name] = tensor
    if files.weight_map is not None:
        absent = [name for name in files.weight_map if name not in table]
        if absent:
            raise RegenError(
                f"{files.folder}: the index lists tensors that no shard has: {_some(absent)}",
                hint="copy or download the shards again",
                path=str(files.folder),
            )
    return table


def _match(model: nn.Module, table: Mapping[str, FileTensor], folder: Path) -> list[FileTensor]:
    """Pair file and model; the tensors to load.

    Buffers may be absent from the file (the constructor computed them) and tables that the class
    no longer stores may be in it.
    """
    parameters = {name: tensor.shape for name, tensor in model.named_parameters()}
    buffers = {name: tensor.shape for name, tensor in model.named_buffers()}
    stored = set(model.state_dict(keep_vars=True))
    ignored = tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    name = type(model).__name__

    missing = [key for key in parameters if key not in table]
    if missing:
        raise RegenError(
            f"{folder} lacks {len(missing)} of {len(parameters)} tensors of {name}: "
            f"{_some(missing)}",
            hint="are config.json and the weights of the same model?",
            path=str(folder),
        )
    unexpected = [
        key
        for key in table
        if key not in stored and key not in buffers and not any(part in key for part in ignored)
    ]
    if unexpected:
        raise RegenError(
            f"{folder} has {len(unexpected)} tensors that {name} does not know: "
            f"{_some(unexpected)}",
            hint="config.json and weights of two models? else a newer diffusers may know them",
            path=str(folder),
        )
    shapes = {**parameters, **buffers}
    wanted = [tensor for key, tensor in table.items() if key in stored]
    for tensor in wanted:
        expected = tuple(shapes[tensor.name])
        if tensor.shape != expected:
            raise RegenError(
                f"{tensor.name} is {list(tensor.shape)} in {tensor.path.name}, "
                f"{name} of this config needs {list(expected)}",
                hint="are config.json and the weights of the same model?",
                path=str(tensor.path),
            )
    return wanted


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED_IN_ERRORS])
    more = len(names) - _NAMED_IN_ERRORS
    return f"{shown} and {more} more" if more > 0 else shown


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


class _Placing:
    """Which device each tensor goes to, and accelerate's hooks where modules move."""

    def __init__(
        self,
        files: BackboneFiles,
        device: torch.device | str,
        dtype: torch.dtype | None,
        *,
        offload: bool,
    ) -> None:
        self.dtype = dtype
        self._spread = str(device) == "auto"
        self._offload = offload
        self._map: dict[str, Any] | None = None
        if self._spread and not torch.cuda.is_available():
            raise RegenError("--device auto needs CUDA", hint="use --device cpu")
        if self._spread and offload:
            raise RegenError(
                "--offload keeps the weights in host memory, --device auto on several cards",
                hint="use one of them",
            )
        self._device = torch.device("cuda", 0) if self._spread else torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())

    def of(self, model: nn.Module, name: str, *, keep_fp32: bool) -> Placement:
        dtype = torch.float32 if keep_fp32 and self.dtype is not None else self.dtype
        if self._offload:
            return Placement(torch.device("cpu"), dtype, pinned=self._device.type == "cuda")
        return Placement(self._spread_device(model, name), dtype)

    def _spread_device(self, model: nn.Module, name: str) -> torch.device:
        if not self._spread:
            return self._device
        if self._map is None:
            self._map = self._infer(model)
        prefix = name
        while prefix and prefix not in self._map:
            prefix = prefix.rpartition(".")[0]
        target = self._map[prefix]
        return torch.device("cuda", target) if isinstance(target, int) else torch.device(target)

    def _infer(self, model: nn.Module) -> dict[str, Any]:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        whole = list(getattr(model, "_no_split_modules", None) or ())
        options = {"dtype": self.dtype, "no_split_module_classes": whole}
        memory = get_balanced_memory(model, **options)
        memory = {key: size for key, size in memory.items() if isinstance(key, int)}
        found = infer_auto_device_map(model, max_memory=memory, **options)
        if any(target in ("cpu", "disk") for target in found.values()):
            raise RegenError(
                f"{type(model).__name__} does not fit on the {len(memory)} cards together",
                hint="use --device cuda --offload",
            )
        return dict(found)

    def place_buffers(self, model: nn.Module) -> None:
        """Move what came from the constructor to where the weights are."""
        if not self._offload and not self._spread:
            model.to(self._device)

    def dispatch(self, model: nn.Module) -> None:
        """Let accelerate bring inputs and weights together."""
        if self._spread:
            from accelerate import dispatch_model

            dispatch_model(model, self._map, force_hooks=True)
        elif self._offload and self._device.type != "cpu":
            from accelerate import cpu_offload

            cpu_offload(model, self._device)


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


def _relative(folder: Path, checkpoint: Path) -> str:
    """How reports name the folder: below the checkpoint if it is there."""
    try:
        inner = folder.relative_to(checkpoint).as_posix()
    except ValueError:
        return folder.name or str(folder)
    return checkpoint.name if inner == "." else f"{inner}/"


def _synchronise() -> None:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
