"""What happened to the attention calls while SLA was on."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from sla_ckpt.state import PairKey


@dataclass
class SLAStats:
    """Counts of one session; safe to update from several threads.

    Attributes:
        pairs: Sparse forward calls by pair. Its keys are the pairs the model materialised.
        dense_calls: Dense forward calls by reason (``attention.routing.DENSE_REASONS``).
        recomputed_calls: Sparse calls repeated in backward by gradient checkpointing. They are
            in no other count.
    """

    pairs: Counter[PairKey] = field(default_factory=Counter)
    dense_calls: Counter[str] = field(default_factory=Counter)
    recomputed_calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def sparse_calls(self) -> int:
        """Forward calls that SLA took."""
        return sum(self.pairs.values())

    @property
    def materialised(self) -> tuple[PairKey, ...]:
        """The pairs that met at least one call, sorted."""
        return tuple(sorted(self.pairs))

    def count_sparse(self, key: PairKey, *, recompute: bool) -> None:
        with self._lock:
            if recompute:
                self.recomputed_calls += 1
            else:
                self.pairs[key] += 1

    def count_dense(self, reason: str, *, recompute: bool) -> None:
        if not recompute:
            with self._lock:
                self.dense_calls[reason] += 1

    def reset(self) -> None:
        """Start counting anew."""
        with self._lock:
            self.pairs.clear()
            self.dense_calls.clear()
            self.recomputed_calls = 0

    def summary(self) -> str:
        """One line: ``12 sparse (128:bf16 × 12), 4 dense (cross-attention × 4)``."""
        sparse = ", ".join(f"{key} × {self.pairs[key]}" for key in self.materialised)
        dense = ", ".join(f"{reason} × {n}" for reason, n in sorted(self.dense_calls.items()))
        return (
            f"{self.sparse_calls} sparse{f' ({sparse})' if sparse else ''}, "
            f"{sum(self.dense_calls.values())} dense{f' ({dense})' if dense else ''}"
        )
