"""The dtype of the queries, which names the pair: not always the one a run trains in.

With bf16 or fp16 weights the queries have the weights' dtype in every family. With float32 weights
under autocast most models hand autocast's dtype to attention, but those whose queries are
normalised last, or rotated in float32, hand over float32, and SLA takes no call of them at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sla_ckpt.pairs.config import ConfigReader, config_class_name
from sla_ckpt.pairs.table import Trainer
from sla_ckpt.state import normalise_dtype

_FLOAT32_UNDER_AUTOCAST = frozenset(
    {
        "CosmosTransformer3DModel",
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideo_1_5_DiffusionTransformer",
        "QwenImageTransformer2DModel",
        "ZImageTransformer2DModel",
    }
)
# Only with the normalisation that 3.5 brought.
_FLOAT32_IF_NORMALISED = frozenset({"SD3Transformer2DModel"})
# SimpleTuner's own copy rotates in float32; diffusers' rounds back.
_FLOAT32_IN_SIMPLETUNER = frozenset({"FluxTransformer2DModel"})


def query_dtype(
    config: Mapping[str, Any],
    *,
    weights: str,
    autocast: str | None = None,
    trainer: Trainer = "simpletuner",
) -> str:
    """The dtype token of the queries that meet attention.

    Args:
        config: Parsed ``config.json`` of the denoiser.
        weights: Dtype of its weights, any spelling.
        autocast: Dtype of mixed precision if it is on.
        trainer: Whose model code runs.

    Raises:
        UsageError: No such dtype.
    """
    held = normalise_dtype(weights)
    if autocast is None or held != "fp32":
        return held
    class_name = config_class_name(config) or ""
    reader = ConfigReader(config, class_name)
    stays_wide = (
        class_name in _FLOAT32_UNDER_AUTOCAST
        or (class_name in _FLOAT32_IF_NORMALISED and reader.get("qk_norm") is not None)
        or (class_name in _FLOAT32_IN_SIMPLETUNER and trainer == "simpletuner")
    )
    return "fp32" if stays_wide else normalise_dtype(autocast)
