"""What surrounds a regeneration: packages, device, scheduler config, names for the report."""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sla_ckpt._version import __version__
from sla_ckpt.attention.kernels import resolve_kernel
from sla_ckpt.checkpoint.jsonio import read_optional_json
from sla_ckpt.errors import MissingExtraError
from sla_ckpt.regen.backbone import Backbone
from sla_ckpt.regen.base_model import SCHEDULER_CONFIG
from sla_ckpt.regen.distributed import Group
from sla_ckpt.regen.families.base import FamilyAdapter
from sla_ckpt.regen.families.registry import adapter_for
from sla_ckpt.regen.plan import TORCH_DTYPES
from sla_ckpt.state import PairKey, SLASettings

#: Threads of a CPU operation while an accelerator does the work.
_THREADS = 8


@contextlib.contextmanager
def few_threads(device: torch.device) -> Iterator[None]:
    """Beside an accelerator the processor only prepares samples and draws: waking dozens of
    threads for each takes longer than the work."""
    before = torch.get_num_threads()
    if device.type != "cpu":
        torch.set_num_threads(min(before, _THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_diffusers() -> None:
    """Import what loading a model needs.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    try:
        importlib.import_module("diffusers")
    except ImportError as error:
        raise MissingExtraError("regen", "regen", error.name or "diffusers") from error


def adapter_of(backbone: Backbone, checkpoint: Path) -> FamilyAdapter:
    """The family adapter, told the pipeline's scheduler where one lies beside the model."""
    config = dict(backbone.config)
    config["_class_name"] = backbone.class_name
    return adapter_for(config, _scheduler(backbone.folder.parent, checkpoint))


def _scheduler(*folders: Path) -> Mapping[str, Any] | None:
    for folder in folders:
        value = read_optional_json(folder / SCHEDULER_CONFIG)
        if isinstance(value, dict):
            return value
    return None


def versions() -> dict[str, str]:
    """Of everything that decides the result's bits."""
    found = {"sla_ckpt": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "triton"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found[name] = str(getattr(module, "__version__", "unknown"))
    return found


def device_name(device: torch.device, group: Group) -> str:
    """``NVIDIA H100 80GB HBM3``, or ``cpu``; with the number of processes where several."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{group.size} × {name}" if group.size > 1 else name


def kernel_name(
    kernel: str, device: torch.device, pairs: Iterable[PairKey], settings: SLASettings
) -> str:
    """The kernels that ran, by the rule that chose them."""
    chosen = {
        resolve_kernel(
            kernel,
            device=device,
            dtype=TORCH_DTYPES[key.dtype],
            head_dim=key.head_dim,
            settings=settings,
        )
        for key in pairs
    }
    return ", ".join(sorted(chosen))
