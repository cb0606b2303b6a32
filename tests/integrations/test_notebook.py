"""examples/sla_in_your_model.ipynb runs from top to bottom, and is stored without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from tests.integrations.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "sla_in_your_model.ipynb"

# In a process of its own: the kernel's client warns about event loops where pytest listens.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=120, kernel_name="python3", record_timing=False).execute()
nbformat.write(book, sys.argv[2])
"""


def test_it_is_valid_and_stored_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_it_runs_on_a_cpu_and_shows_what_it_promises(tmp_path: Path) -> None:
    result = tmp_path / "run.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(result)],
        capture_output=True, text=True, check=False, timeout=180, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path),
             "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(result.read_text(encoding="utf-8"))["cells"]
    outputs = [item for cell in cells for item in cell.get("outputs", [])]
    assert {item["output_type"] for item in outputs} == {"stream"}
    assert {item["name"] for item in outputs} == {"stdout"}, "no warnings"
    text = "".join("".join(item["text"]) for item in outputs)
    assert "pairs: 32:bf16" in text
    assert "cross-attention" in text
    assert "SLA001" in text
