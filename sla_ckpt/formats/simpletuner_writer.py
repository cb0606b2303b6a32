"""Encode a state as ``sla_attention.pt``, the bytes SimpleTuner itself would write."""

from __future__ import annotations

from sla_ckpt.formats.dtypes import STORAGE_CLASSES, encode
from sla_ckpt.formats.pickle_writer import TensorRecord, dump
from sla_ckpt.formats.torch_writer import encode_torch_zip
from sla_ckpt.state import BIAS, STATE_FILE, WEIGHT, SLAState


def encode_state(state: SLAState) -> bytes:
    """The file's bytes; those SimpleTuner's ``torch.save`` writes for the same state.

    Tensors keep their stored dtype (``weight_dtype``, ``bias_dtype``): call
    :meth:`ProjectionTensors.as_float32` first for what SimpleTuner expects.

    Args:
        state: The state. Its origin is not stored in this file.

    Raises:
        ValueError: A dtype that has no torch storage class (float8).
    """
    storages: list[bytes] = []
    pairs: dict[str, object] = {}
    for key, projection in state.pairs.items():
        entry: dict[str, object] = {}
        for name, array, dtype in (
            (WEIGHT, projection.weight, projection.weight_dtype),
            (BIAS, projection.bias, projection.bias_dtype),
        ):
            if dtype not in STORAGE_CLASSES.values():
                raise ValueError(f"{key} {name}: {dtype} cannot be written")
            entry[name] = TensorRecord(dtype, array.shape, str(len(storages)))
            storages.append(encode(array, dtype))
        pairs[str(key)] = entry
    settings = None if state.settings is None else state.settings.to_dict()
    payload = {"settings": settings, "state": pairs, "version": state.version}
    prefix = STATE_FILE.rpartition(".")[0]
    return encode_torch_zip(dump(payload), storages, prefix=prefix)
