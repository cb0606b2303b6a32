"""Which lists of blocks a model class has, and which config entries say how long they are.

Taken from the diffusers classes; a test builds each of them with other numbers and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sla_ckpt.pairs.config import config_class_name

_ONE = {"transformer_blocks": "num_layers"}
_TWO = {**_ONE, "single_transformer_blocks": "num_single_layers"}

#: Class -> attribute (a ModuleList) -> config entry.
BLOCK_LISTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "AuraFlowTransformer2DModel": {
            "joint_transformer_blocks": "num_mmdit_layers",
            "single_transformer_blocks": "num_single_dit_layers",
        },
        "ChromaTransformer2DModel": _TWO,
        "CogVideoXTransformer3DModel": _ONE,
        "CosmosTransformer3DModel": _ONE,
        "Flux2Transformer2DModel": _TWO,
        "FluxTransformer2DModel": _TWO,
        "HiDreamImageTransformer2DModel": {
            "double_stream_blocks": "num_layers",
            "single_stream_blocks": "num_single_layers",
        },
        "HunyuanVideo15Transformer3DModel": _ONE,
        "HunyuanVideoTransformer3DModel": _TWO,
        "Kandinsky5Transformer3DModel": {
            "text_transformer_blocks": "num_text_blocks",
            "visual_transformer_blocks": "num_visual_blocks",
        },
        "LTX2VideoTransformer3DModel": _ONE,
        "LTXVideoTransformer3DModel": _ONE,
        "Lumina2Transformer2DModel": {
            "layers": "num_layers",
            "noise_refiner": "num_refiner_layers",
            "context_refiner": "num_refiner_layers",
        },
        "PixArtTransformer2DModel": _ONE,
        "QwenImageTransformer2DModel": _ONE,
        "SD3Transformer2DModel": _ONE,
        "SanaTransformer2DModel": _ONE,
        "WanTransformer3DModel": {"blocks": "num_layers"},
        "ZImageTransformer2DModel": {
            "layers": "n_layers",
            "noise_refiner": "n_refiner_layers",
            "context_refiner": "n_refiner_layers",
        },
    }
)


def declared_blocks(config: Mapping[str, Any]) -> Mapping[str, tuple[str, int]]:
    """What a ``config.json`` says of its model's blocks.

    Returns:
        Attribute -> (config entry, number of blocks), for entries that are there; nothing for a
        class that is not in the table.
    """
    lists = BLOCK_LISTS.get(config_class_name(config) or "", {})
    found: dict[str, tuple[str, int]] = {}
    for attribute, entry in lists.items():
        value = config.get(entry)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            found[attribute] = (entry, value)
    return found
