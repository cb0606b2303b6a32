"""Which kernel runs: ours in Triton, the plain PyTorch reference, or thu-ml's package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cache

import torch

from sla_ckpt.errors import AttentionError
from sla_ckpt.state import FEATURE_MAPS, SLASettings

KERNELS = ("auto", "triton", "reference", "external")
_HALF = (torch.bfloat16, torch.float16)
_TRITON_HEAD_DIMS = (1, 256)


def check_settings(settings: SLASettings) -> None:
    """Refuse settings that no kernel can run.

    Raises:
        AttentionError: topk, block sizes or feature map are out of range; names which and why.
    """
    if not 0 < settings.topk <= 1:
        raise AttentionError(
            f"topk {settings.topk} is not in (0, 1]", hint="SimpleTuner's default is 0.2"
        )
    for name, block in (("blkq", settings.blkq), ("blkk", settings.blkk)):
        if block not in (64, 128):
            raise AttentionError(f"{name} {block} is not 64 or 128", hint=f"set {name} to 64")
    if settings.feature_map not in FEATURE_MAPS:
        raise AttentionError(
            f"feature map {settings.feature_map!r} does not exist in SLA's kernels",
            hint=f"use one of {', '.join(FEATURE_MAPS)}",
        )


@cache
def available_kernels() -> Mapping[str, str]:
    """Each kernel that can be asked for, with ``"ok"`` or the reason why it cannot run here."""
    return {
        "triton": _why_not_triton() or "ok",
        "reference": "ok",
        "external": _why_not_external() or "ok",
    }


def resolve_kernel(
    kernel: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    settings: SLASettings,
    variant: str = "main",
) -> str:
    """Choose the kernel for one pair.

    Args:
        kernel: ``auto`` takes Triton on CUDA and the reference elsewhere.
        device: Where the queries are.
        dtype: Their dtype.
        head_dim: Their last dimension.
        settings: SLA's settings.
        variant: ``main`` or ``sla-1``.

    Returns:
        ``triton``, ``reference`` or ``external``.

    Raises:
        AttentionError: The settings make no sense, or the kernel that was asked for cannot run
            this; never a silent change to another.
    """
    if kernel not in KERNELS:
        raise AttentionError(
            f"kernel {kernel!r} does not exist", hint=f"use one of {', '.join(KERNELS)}"
        )
    check_settings(settings)
    device = torch.device(device)
    if kernel == "auto":
        usable = device.type == "cuda" and _triton_refuses(device, dtype, head_dim) is None
        return "triton" if usable else "reference"
    reason = None
    if kernel == "triton":
        reason = _triton_refuses(device, dtype, head_dim)
    elif kernel == "external":
        reason = _external_refuses(device, dtype, head_dim, settings, variant)
    if reason is not None:
        raise AttentionError(
            f"kernel {kernel} cannot run this: {reason}", hint="use --kernel auto or reference"
        )
    return kernel


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "the CUDA device is older than compute capability 8.0"
    return None


def _triton_refuses(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    reason = available_kernels()["triton"]
    if reason != "ok":
        return reason
    if device.type != "cuda" and not interpreting():
        return f"the tensors are on {device.type}, not on a CUDA device"
    if dtype not in (*_HALF, torch.float32):
        return f"{_name(dtype)} is not float16, bfloat16 or float32"
    low, high = _TRITON_HEAD_DIMS
    if not low <= head_dim <= high:
        return f"head_dim {head_dim} is over {high}"
    return None


def _why_not_external() -> str | None:
    if importlib.util.find_spec("sparse_linear_attention") is None:
        return "the package sparse_linear_attention (thu-ml/SLA) is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _external_refuses(
    device: torch.device, dtype: torch.dtype, head_dim: int, settings: SLASettings, variant: str
) -> str | None:
    reason = available_kernels()["external"]
    if reason != "ok":
        return reason
    if device.type != "cuda":
        return f"the tensors are on {device.type}, not on a CUDA device"
    if dtype not in _HALF:
        return f"{_name(dtype)} is not float16 or bfloat16"
    return external_limits(head_dim, settings, variant)


def external_limits(head_dim: int, settings: SLASettings, variant: str) -> str | None:
    """What thu-ml/SLA main cannot do, or does wrong, with these settings; None when it can."""
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 128:
        return f"thu-ml/SLA runs head_dim 16, 32, 64 and 128, not {head_dim}"
    if settings.blkk != 64:
        return f"thu-ml/SLA runs blkk 64 only, not {settings.blkk}"
    if settings.blkq not in (64, 128):
        return f"thu-ml/SLA runs blkq 64 and 128, not {settings.blkq}"
    if variant != "main":
        return f"the installed thu-ml/SLA is its main branch, not {variant}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
