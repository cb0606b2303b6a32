"""Tab completion in real shells: bash always, zsh and fish where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.conftest import ROOT

BIN = Path(sys.executable).parent

BASH = """
compopt() { local IFS=' '; echo "compopt $*"; }
eval "$(sla-ckpt completion bash)"
complete -p sla-ckpt
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_sla_ckpt_completion sla-ckpt
printf '%s\\n' "${COMPREPLY[@]}"
"""
# The functions that draw completions print what they are given instead.
ZSH = """
compdef() { echo "compdef $*"; }
_describe() { print -rl -- "${(@P)${@[-2]}}"; }
compadd() { print -rl -- "${(@P)@[-1]}"; }
_path_files() { echo "_path_files $*"; }
eval "$(sla-ckpt completion zsh)"
words=("$@"); CURRENT=$#
_sla_ckpt_completion
"""
FISH = """
sla-ckpt completion fish | source
complete -C "$argv"
"""


def in_shell(*words: str, shell: str = "bash") -> str:
    """What pressing tab behind the words offers."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    scripts = {
        "bash": ["bash", "--norc", "-c", BASH, "bash", *words],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh", *words],
        "fish": ["fish", "--no-config", "-c", FISH, " ".join(words)],
    }
    done = subprocess.run(
        scripts[shell],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_codes_are_offered(shell: str) -> None:
    commands = in_shell("sla-ckpt", "p", shell=shell)
    assert "push" in commands and "pull" in commands and "verify" not in commands
    assert "--ignore" in in_shell("sla-ckpt", "verify", "--ig", shell=shell)
    codes = in_shell("sla-ckpt", "rules", "sla20", shell=shell)
    assert "SLA202" in codes and "SLA301" not in codes


def test_choices_and_codes_behind_a_comma_are_offered() -> None:
    assert "sarif" in in_shell("sla-ckpt", "verify", "--format", "s")
    offered = in_shell("sla-ckpt", "verify", "--select", "SLA001,SLA20").splitlines()
    assert "SLA001,SLA202" in offered


def test_checkpoints_are_left_to_the_shell() -> None:
    assert "compopt -o default" in in_shell("sla-ckpt", "verify", "out/che")
    assert "compopt -o dirnames" in in_shell("sla-ckpt", "pull", "org/model", "--local-dir", "")


def test_the_shell_is_taken_from_the_environment_and_others_are_refused() -> None:
    def completion(shell: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sla_ckpt", "completion"],
            capture_output=True, text=True, check=False,
            env={**os.environ, "SHELL": shell, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    assert "#compdef sla-ckpt" in completion("/usr/bin/zsh").stdout
    refused = completion("/bin/tcsh")
    assert refused.returncode == 2
    assert "no completion for the shell 'tcsh'" in refused.stderr
