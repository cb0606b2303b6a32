"""Verify, repair, regenerate and publish SLA (Sparse–Linear Attention) checkpoints.

The names below are the public API. They load lazily: importing ``sla_ckpt`` imports neither
numpy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sla_ckpt._version import __version__

if TYPE_CHECKING:
    from sla_ckpt.attention.inject import disable_sla, enable_sla, use_sla
    from sla_ckpt.attention.module import SparseLinearAttention
    from sla_ckpt.checks.report import Finding, Report
    from sla_ckpt.checks.verify import VerifyOptions, verify
    from sla_ckpt.errors import SlaCkptError
    from sla_ckpt.formats.simpletuner import encode_state, read_state
    from sla_ckpt.formats.twin import read_twin, write_state
    from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState

_EXPORTS = {
    "Finding": "sla_ckpt.checks.report",
    "PairKey": "sla_ckpt.state",
    "ProjectionTensors": "sla_ckpt.state",
    "Report": "sla_ckpt.checks.report",
    "SLASettings": "sla_ckpt.state",
    "SLAState": "sla_ckpt.state",
    "SlaCkptError": "sla_ckpt.errors",
    "SparseLinearAttention": "sla_ckpt.attention.module",
    "VerifyOptions": "sla_ckpt.checks.verify",
    "disable_sla": "sla_ckpt.attention.inject",
    "enable_sla": "sla_ckpt.attention.inject",
    "encode_state": "sla_ckpt.formats.simpletuner",
    "read_state": "sla_ckpt.formats.simpletuner",
    "read_twin": "sla_ckpt.formats.twin",
    "use_sla": "sla_ckpt.attention.inject",
    "verify": "sla_ckpt.checks.verify",
    "write_state": "sla_ckpt.formats.twin",
}

__all__ = [
    "Finding",
    "PairKey",
    "ProjectionTensors",
    "Report",
    "SLASettings",
    "SLAState",
    "SlaCkptError",
    "SparseLinearAttention",
    "VerifyOptions",
    "__version__",
    "disable_sla",
    "enable_sla",
    "encode_state",
    "read_state",
    "read_twin",
    "use_sla",
    "verify",
    "write_state",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "diffusers"):
            raise
        from sla_ckpt.errors import MissingExtraError

        extra = "torch" if error.name == "torch" else "regen"
        raise MissingExtraError(f"sla_ckpt.{name}", extra, error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
