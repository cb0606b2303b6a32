"""The head_dims of Acme's model, so that verify and push know which pairs it needs. No torch."""

from collections.abc import Mapping
from typing import Any


def head_dims(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Every attention of the model is unmasked self-attention with one head_dim."""
    return (config["width"] // config["heads"],)
