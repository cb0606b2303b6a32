"""The files of docs/file-format.md that other implementations test themselves with.

``python -m tools.docs.vectors`` writes them; the tests compare them with what this makes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np

from sla_ckpt import PairKey, ProjectionTensors, SLASettings, SLAState, encode_state
from sla_ckpt.formats.twin import encode_twin
from tools.demo import malicious_state
from tools.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "_static" / "vectors"


def vectors() -> dict[str, bytes]:
    """File name -> bytes, the same on every machine."""
    weight = np.array([[1, 2], [3, 4]], np.float32)
    projection = ProjectionTensors(weight, np.array([5, 6], np.float32))
    state = SLAState({PairKey(2, "bf16"): projection}, SLASettings())
    plain = encode_state(state)
    digest = hashlib.sha256(plain).hexdigest()
    return {
        "valid.pt": plain,
        "valid.safetensors": encode_twin(state, pt_sha256=digest),
        "rezipped.pt": _rezipped(plain),
        "flipped-bit.pt": plain.replace(weight.tobytes(), (weight + 1).tobytes()),
        "hostile.pt": malicious_state(),
    }


def _rezipped(data: bytes) -> bytes:
    """The same entries below another folder, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            name = "archive/" + entry.filename.partition("/")[2]
            target.writestr(zipfile.ZipInfo(name), source.read(entry), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in vectors().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
