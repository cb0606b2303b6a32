"""How the command starts, however early it is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

INTERRUPTED_IMPORT = """
import sys
class CtrlC:
    def find_spec(self, name, path, target=None):
        if name == "sla_ckpt.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
from sla_ckpt.__main__ import main
main()
"""


def test_ctrl_c_while_the_command_is_imported_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"


@pytest.mark.parametrize("torch_loaded", [False, True])
def test_leaving_quickly_loses_no_output_and_keeps_the_exit_code(torch_loaded: bool) -> None:
    """With torch loaded the process ends without taking it apart; what was printed is all there."""
    code = (
        "import atexit, sys, types\n"
        f"if {torch_loaded}: sys.modules['torch'] = types.ModuleType('torch')\n"
        "atexit.register(print, 'taken apart')\n"
        "from sla_ckpt.__main__ import main\n"
        "main()\n"
    )
    for arguments, expected in ((["rules", "--format", "json"], 0), (["rules", "SLA999"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == expected, done.stderr
        printed = done.stdout.removesuffix("taken apart\n")
        assert (printed == done.stdout) is torch_loaded
        if expected == 0:
            assert len(json.loads(printed)) > 30
        else:
            assert done.stderr.startswith("error: ")
