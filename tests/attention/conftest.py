"""Attention tests run compiled where there is a CUDA device, else under Triton's interpreter."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

if not torch.cuda.is_available():
    # Triton reads this when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill what torch.empty and torch.empty_like return, so that an unwritten element shows."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan") if out.is_floating_point() else 0x5A)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    yield


@pytest.fixture
def patch_is_undone() -> Iterator[None]:
    """Nothing of torch is left replaced when the test is over."""
    original = F.scaled_dot_product_attention
    checkpoint_function = torch.utils.checkpoint.CheckpointFunction
    yield
    assert F.scaled_dot_product_attention is original
    assert torch.utils.checkpoint.CheckpointFunction is checkpoint_function
