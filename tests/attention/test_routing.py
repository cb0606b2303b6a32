"""Which calls SLA takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sla_ckpt.attention.routing import DENSE_REASONS, dense_reason


def tensors(
    q: tuple[int, ...] = (1, 2, 80, 16),
    k: tuple[int, ...] | None = None,
    v: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    shapes = {"query": q, "key": k or q, "value": v or k or q}
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0, None])
def test_plain_self_attention_goes_to_sla(dtype: torch.dtype, dropout: float | None) -> None:
    assert dense_reason(**tensors(dtype=dtype), dropout_p=dropout) is None


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (tensors(dtype=torch.float32), "dtype"),
        (tensors(dtype=torch.float64), "dtype"),
        (tensors() | {"value": torch.zeros(1, 2, 80, 16)}, "dtype"),
        (tensors((2, 80, 16)), "rank"),
        (tensors((1, 1, 2, 80, 16)), "rank"),
        (tensors() | {"attn_mask": torch.ones(80, 80, dtype=torch.bool)}, "mask"),
        (tensors() | {"dropout_p": 0.1}, "dropout"),
        (tensors() | {"is_causal": True}, "causal"),
        (tensors() | {"enable_gqa": True}, "gqa"),
        (tensors(k=(1, 2, 16, 16)), "cross-attention"),
        (tensors(k=(1, 2, 81, 16)), "cross-attention"),
        (tensors(k=(1, 1, 80, 16)), "shape"),
        (tensors(v=(1, 2, 80, 32)), "shape"),
        (tensors((1, 2, 0, 16)), "shape"),
    ],
)
def test_other_calls_go_to_dense_attention_with_the_reason(
    call: dict[str, Any], reason: str
) -> None:
    assert dense_reason(**call) == reason
    assert reason in DENSE_REASONS
