"""A diffusers model without memory for its parameters, and which file tensor fills which."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sla_ckpt.errors import MissingExtraError, RegenError
from sla_ckpt.regen.backbone_files import BackboneFiles
from sla_ckpt.regen.tensor_files import FileTensor, read_table

#: Older class names in published configs -> what diffusers loads them as, by config entry.
_REMAPPED = {
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
}
_NAMED_IN_ERRORS = 4


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


def tensor_table(files: BackboneFiles) -> dict[str, FileTensor]:
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


def match_tensors(
    model: nn.Module, table: Mapping[str, FileTensor], folder: Path
) -> list[FileTensor]:
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
