"""What surrounds a regeneration leaves the process as it was."""

from __future__ import annotations

import pytest
import torch

from sla_ckpt.regen.environment import few_threads

#: More than are used beside an accelerator.
MANY = 24


def test_beside_an_accelerator_few_threads_prepare_the_samples() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(MANY)
    try:
        with pytest.raises(RuntimeError, match="inside"), few_threads(torch.device("cuda")):
            assert torch.get_num_threads() == 8
            raise RuntimeError("inside")
        assert torch.get_num_threads() == MANY
        with few_threads(torch.device("cpu")):
            assert torch.get_num_threads() == MANY
        torch.set_num_threads(2)
        with few_threads(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
