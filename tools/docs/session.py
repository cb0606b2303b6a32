"""Runs the blocks of one page after another, as a reader would type them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import json
import os
import shlex
import socket
import subprocess
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tools.docs.blocks import DATA, ROOT, RUNNABLE, Block, Command, agree, commands_of
from tools.docs.sandbox import Sandbox

#: Stands for the page's folder in shown output.
HOME = "/home/me"
_OF_BASH = ("_", "OLDPWD", "PWD", "SHLVL")
_SHELL_WORDS = set("|&;<>$`*?(){}~")


@dataclass
class Outcome:
    """What became of one block.

    Attributes:
        problem: Why the page is wrong; None if it is right.
        outputs: For each command, its real output, the page's folder called ``/home/me``.
    """

    problem: str | None = None
    outputs: list[str] = field(default_factory=list)


class PageSession:
    """The shell and the Python of one page: they keep folder, variables and names.

    Args:
        sandbox: Where folders and the Hub come from.
        environment: The variables of the whole run, already those of this process.
    """

    def __init__(self, sandbox: Sandbox, environment: Mapping[str, str]) -> None:
        self._sandbox = sandbox
        self._base = dict(environment)
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._home = self._cwd = Path()
        self._environment: dict[str, str] = {}
        self._background: list[subprocess.Popen[bytes]] = []
        self._last_code = 0

    def run(self, blocks: list[Block]) -> Iterator[tuple[Block, Outcome]]:
        """Run a page; yields an outcome for each block that is not plain text."""
        entered = False
        try:
            for block in blocks:
                given = block.values("given")
                if given or not entered:
                    self._enter(block, given[-1] if given else "nothing")
                    entered = True
                if block.language in DATA:
                    yield block, _parse(block)
                elif block.language in RUNNABLE and block.not_run is None:
                    yield block, self._run(block)
        finally:
            self._stop_background()
            os.chdir(ROOT)

    def _enter(self, block: Block, given: str) -> None:
        self._stop_background()
        self._home = self._cwd = self._sandbox.enter(block.page, given)
        self._environment = {**self._base, "HF_TOKEN": self._sandbox.token, "HOME": str(self._home)}
        os.environ.update(self._environment)
        os.chdir(self._cwd)

    def _run(self, block: Block) -> Outcome:
        for command in block.values("setup"):
            code, printed = self._shell(command.replace("{root}", str(ROOT)))
            if code != 0:
                return Outcome(f"{block.where}: setup {command!r} exits with {code}: {printed}")
        if block.language == "python":
            return self._python(block)
        outcome = Outcome()
        commands = commands_of(block)
        for number, command in enumerate(commands):
            problem = self._command(block, command, commands[number + 1 :], outcome)
            outcome.problem = outcome.problem or problem
        return outcome

    def _command(
        self, block: Block, command: Command, following: list[Command], outcome: Outcome
    ) -> str | None:
        text = command.text
        for before, after in block.replacements:
            text = text.replace(before, after.replace("{port}", self._free_port))
        if text == "echo $?":
            code, printed = 0, f"{self._last_code}\n"
        else:
            code, printed = self._shell(text)
            self._last_code = code
        printed = printed.replace(str(self._home), HOME)
        outcome.outputs.append(printed)
        code_is_shown = bool(following) and following[0].text == "echo $?"
        expected = block.exit_code if not following else 0
        if not code_is_shown and code != expected:
            return f"{block.where}: $ {text}\nexits with {code}, not {expected}:\n{printed}"
        shown = "\n".join(command.output)
        if shown.strip() and not agree(block, shown, printed):
            lines = difflib.unified_diff(
                shown.splitlines(), printed.splitlines(), "shown", "real", lineterm="", n=99
            )
            return f"{block.where}: $ {text}\nprints something else:\n" + "\n".join(lines)
        return None

    def _shell(self, text: str) -> tuple[int, str]:
        """Run one command line; (exit code, what a terminal would show)."""
        words = text.split()
        if words[0] == "cd" and len(words) == 2:
            self._cwd = (self._cwd / words[1]).resolve()
            os.chdir(self._cwd)
            return 0, ""
        if words[0] == "export":
            return self._export(text)
        if text.endswith("&"):
            return self._start(text.removesuffix("&"))
        if words[0] == "sla-ckpt" and not _SHELL_WORDS & set(text) and self._is_base():
            return _call(shlex.split(text, comments=True)[1:])
        result = subprocess.run(
            ["bash", "-c", text],
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
        return result.returncode, result.stdout.decode()

    def _is_base(self) -> bool:
        """Whether no block has exported a variable that this process read at its start."""
        return all(
            self._environment.get(name) == value
            for name, value in self._base.items()
            if name != "HOME"
        )

    def _export(self, text: str) -> tuple[int, str]:
        """``export A=B``, expanded by a shell."""
        script = f"{text} && env -0"
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=self._cwd,
            env=self._environment,
            stdout=subprocess.PIPE,
            check=False,
        )
        pairs = dict(entry.split("=", 1) for entry in result.stdout.decode().split("\0") if entry)
        changed = pairs.items() - self._environment.items()
        exported = {name: value for name, value in changed if name not in _OF_BASH}
        self._environment |= exported
        os.environ.update(exported)
        return result.returncode, ""

    def _start(self, text: str) -> tuple[int, str]:
        """A command in the background, until the page ends."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._background.append(process)
        return 0, ""

    @functools.cached_property
    def _free_port(self) -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return str(listener.getsockname()[1])

    def _stop_background(self) -> None:
        for process in self._background:
            process.terminate()
            process.wait(timeout=20)
        self._background.clear()

    def _python(self, block: Block) -> Outcome:
        text = block.text
        for before, after in block.replacements:
            text = text.replace(before, after)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                for hidden in block.values("python:"):
                    exec(hidden, self._names)  # noqa: S102  (our own pages)
                # Padded, so that a traceback shows the page's own line.
                source = "\n" * block.line + text
                exec(compile(source, str(ROOT / block.page), "exec"), self._names)  # noqa: S102
        except Exception:
            lines = traceback.format_exc().splitlines()
            return Outcome(f"{block.where}:\n" + "\n".join(lines[-12:]) + printed.getvalue())
        return Outcome(outputs=[printed.getvalue().replace(str(self._home), HOME)])


def _call(arguments: list[str]) -> tuple[int, str]:
    """``sla-ckpt`` in this process."""
    from sla_ckpt.cli.main import run

    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            run(arguments)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
    return code, printed.getvalue()


def _parse(block: Block) -> Outcome:
    """Data that is shown must at least be well formed."""
    parsers = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    try:
        parsers[block.language](block.text)
    except (ValueError, yaml.YAMLError) as error:
        return Outcome(f"{block.where}: this is no {block.language}: {error}")
    return Outcome()
