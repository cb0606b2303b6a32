"""``python -m tools.docs.damage KIND CHECKPOINT``: states that are wrong in ways of real life.

| KIND | the state afterwards |
|---|---|
| ``fp16`` | keyed for fp16 queries |
| ``blkq32`` | with a block length that no kernel has |
| ``twin`` | safetensors bytes under the name of the ``.pt`` |
"""

from __future__ import annotations

import sys
from pathlib import Path

from sla_ckpt import SLASettings, SLAState, encode_state, read_state
from sla_ckpt.formats.twin import encode_twin
from sla_ckpt.state import STATE_FILE, PairKey


def damaged(state: SLAState, kind: str) -> bytes:
    """The bytes of a wrong ``sla_attention.pt``."""
    if kind == "fp16":
        pairs = {PairKey(key.head_dim, "fp16"): value for key, value in state.pairs.items()}
        return encode_state(SLAState(pairs, state.settings))
    if kind == "blkq32":
        return encode_state(SLAState(state.pairs, SLASettings(blkq=32)))
    if kind == "twin":
        return encode_twin(state, pt_sha256="0" * 64)
    raise ValueError(f"no damage is called {kind!r}")


def main(kind: str, checkpoint: str) -> None:
    path = Path(checkpoint) / STATE_FILE
    path.write_bytes(damaged(read_state(path), kind))


if __name__ == "__main__":
    main(*sys.argv[1:])
