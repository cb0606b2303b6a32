"""``sla-ckpt env``."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import click

from sla_ckpt._version import __version__
from sla_ckpt.cli import _options
from sla_ckpt.cli._output import Output

_PACKAGES = (
    "numpy",
    "safetensors",
    "huggingface_hub",
    "hf_xet",
    "click",
    "rich",
    "torch",
    "triton",
    "diffusers",
    "peft",
    "accelerate",
    "transformers",
    "matplotlib",
)


@click.command("env", context_settings={"help_option_names": ["-h", "--help"]})
@_options.output_format("text", "json")
def command(output_format: str) -> int:
    """Show versions, CUDA, kernels, plug-ins and whether a Hub token is set (never the token)."""
    facts = collect()
    output = Output()
    if output_format == "json":
        output.json(facts)
        return 0
    for name, value in facts.items():
        if value == {}:
            output.data(f"{name}: none")
        elif isinstance(value, dict):
            output.data(f"{name}:")
            for key, item in value.items():
                output.data(f"  {key:<16} {item if item is not None else 'not installed'}")
        else:
            output.data(f"{name}: {value}")
    return 0


def collect() -> dict[str, Any]:
    """What a bug report needs."""
    return {
        "sla-ckpt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": _cuda(),
        "kernels": _kernels(),
        "plugins": _plugins(),
        "hub": _hub(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda() -> dict[str, str]:
    if _version("torch") is None:
        return {"available": "no (torch is not installed)"}
    import torch

    if not torch.cuda.is_available():
        return {"available": f"no (torch {torch.__version__})"}
    facts = {"available": f"yes (CUDA {torch.version.cuda})"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gigabytes = properties.total_memory / 2**30
        facts[f"device {index}"] = f"{properties.name}, {gigabytes:.0f} GiB"
    return facts


def _kernels() -> dict[str, str]:
    if _version("torch") is None:
        return {"reference": "needs torch: pip install 'sla-ckpt[torch]'"}
    from sla_ckpt.attention.kernels import available_kernels

    return dict(available_kernels())


def _plugins() -> dict[str, str]:
    """What other packages announce, as ``{"sla_ckpt.rules ACME001": "acme-sla 1.0"}``."""
    from sla_ckpt.entry_points import GROUPS, announced, package_of

    return {
        f"{group} {entry.name}": package_of(entry) for group in GROUPS for entry in announced(group)
    }


def _hub() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    return {
        "endpoint": constants.ENDPOINT,
        "token": "set" if (get_token() or "").strip() else "not set",
        "offline": "yes" if constants.HF_HUB_OFFLINE else "no",
        "HF_HOME": os.environ.get("HF_HOME", "default"),
    }
