"""How the command starts, however early it is interrupted."""

from __future__ import annotations

import subprocess
import sys

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
