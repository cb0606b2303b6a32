"""Output on terminals of every kind: Windows code pages, C locale, no colours, quiet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sla_ckpt import fsio
from sla_ckpt.cli._output import safe_streams
from sla_ckpt.cli.main import COMMANDS, main
from tests import factories
from tests.integrations.conftest import ROOT

RESERVED = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$')


def run(
    *args: object, flags: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, *flags, "-m", "sla_ckpt", *map(str, args)],
        capture_output=True,
        check=False,
        timeout=60,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Its findings name a key that no code page has."""
    folder = factories.write_full_checkpoint(tmp_path / "модель ☃")
    config = {**factories.FLUX_CONFIG, "_class_name": "Модель☃"}
    factories.write_denoiser(folder / "transformer", config=config)
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_results_print_on_this_code_page(encoding: str, broken: Path) -> None:
    for args in (("rules", "SLA202"), ("verify", broken), ("inspect", broken)):
        done = run(*args, PYTHONIOENCODING=encoding)
        assert done.returncode in (0, 1), done.stderr
        assert b"Traceback" not in done.stderr and b"unexpected" not in done.stderr
        text = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)
        assert text.strip()
        for typography in ("\\u2013", "\\u2026", "\\xd7", "\\u2192"):
            assert typography not in text, "our own texts have a plain form"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_is_plain_on_an_old_code_page(name: str) -> None:
    safe_streams()
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    text = command.get_help(click.Context(command, **command.context_settings)).encode(
        "cp437", "sla_ckpt"
    )
    assert text and b"\\u" not in text


def test_files_are_read_and_written_as_utf8_whatever_the_locale(broken: Path) -> None:
    """Python says where a text file is opened in the locale's encoding, which Windows varies."""
    flags = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning:sla_ckpt")
    for args in (
        ("verify", broken, "--json", "-o", broken.parent / "r.json"),
        ("migrate", broken, "--dry-run"),
        ("rules", "SLA202"),
    ):
        done = run(*args, flags=flags)
        assert b"EncodingWarning" not in done.stderr
        assert done.returncode in (0, 1), done.stderr


def test_names_of_backups_and_locks_are_allowed_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "sla_attention.pt"
    path.write_bytes(b"x")
    made = [fsio.backup(path), fsio.backup(path)]
    names = [item.name for item in made if item is not None] + [fsio.LOCK_NAME]
    assert len(set(names)) == 3
    assert not [name for name in names if RESERVED.search(name)]


def test_quiet_leaves_nothing_but_results(tmp_path: Path) -> None:
    good = factories.write_full_checkpoint(tmp_path / "out" / "checkpoint-500")
    for args in (("verify", good.parent), ("migrate", good, "--dry-run")):
        assert run(*args, "--quiet").stderr == b"", args
    assert run("verify", good, "--quiet").stdout == b""


def test_no_command_colours_a_pipe_or_under_no_color(tmp_path: Path) -> None:
    good = factories.write_full_checkpoint(tmp_path / "checkpoint-500")
    for args in (("verify", good), ("inspect", good)):
        assert b"\x1b[" not in run(*args).stdout
        assert b"\x1b[" not in run(*args, NO_COLOR="1", FORCE_COLOR="1").stdout
    assert b"\x1b[" in run("rules", FORCE_COLOR="1").stdout
