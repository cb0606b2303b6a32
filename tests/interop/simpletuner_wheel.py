"""SimpleTuner's own code, from PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VERSION = "4.10.1"
ROOT = Path(__file__).parents[2]


def downloaded_wheel() -> Path:
    """SimpleTuner's wheel, fetched once; without it this test fails, it never skips."""
    folder = Path(os.environ.get("SLA_CKPT_INTEROP_DIR", ROOT / ".venv-interop"))
    pattern = f"simpletuner-{VERSION}-*.whl"
    found = sorted(folder.glob(pattern))
    if not found:
        # Only the controller's module is used, so neither its dependencies nor its required
        # Python matter.
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--ignore-requires-python", "--only-binary", ":all:", "--dest", str(folder),
             f"simpletuner=={VERSION}"],
            check=True, timeout=240,
        )  # fmt: skip
        found = sorted(folder.glob(pattern))
    return found[0]
