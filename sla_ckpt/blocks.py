"""How many key blocks topk keeps at a length, as the trainer's kernel counts them. No torch.

Where it keeps none, that kernel divides by zero and returns NaN.
"""

from __future__ import annotations

import math
from fractions import Fraction

from sla_ckpt.state import SLASettings


def kept_blocks(tokens: int, settings: SLASettings) -> int:
    """Key blocks that each query block keeps."""
    return int(settings.topk * -(-tokens // max(1, settings.blkk)))


def fewest_tokens(settings: SLASettings) -> int:
    """The smallest token count at which topk keeps a block (settings.topk > 0)."""
    # Exact, since 1 / topk overflows for the smallest numbers that a file may hold.
    blocks = math.ceil(1 / Fraction(settings.topk))
    # One block fewer may do: the kernel's product is rounded.
    if 1 < blocks < 2**53 and int(settings.topk * (blocks - 1)) >= 1:
        blocks -= 1
    return (blocks - 1) * settings.blkk + 1
