"""Running sla-ckpt, or a script with the real client, as a process against a loopback Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[2]
UNSET = ("NO_COLOR", "FORCE_COLOR", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE")


def environment(
    hub: LoopbackHub, home: Path, token: str | None, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a user whose Hub is `hub`: no proxies, nothing of the real home."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in UNSET and not name.lower().endswith("_proxy") and name[:4] != "SLA_"
    }
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "SLA_CKPT_RETRY_DELAY": "0.05",
        "OMP_NUM_THREADS": "1",
    }
    if not hub.has_xet:
        env["HF_HUB_DISABLE_XET"] = "1"
    if token is not None:
        env["HF_TOKEN"] = token
    return {**env, **(extra or {})}


class Runner:
    """Runs commands for one user; every output is searched for the token."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(
        self,
        *args: object,
        hub: LoopbackHub,
        token: str | None = "write",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `sla-ckpt ARGS`. `token` is a role (read, write), a token's value, or None."""
        return self._finish(self.start(*args, hub=hub, token=token, env=env, cwd=cwd), timeout)

    def start(
        self,
        *args: object,
        hub: LoopbackHub,
        token: str | None = "write",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return self._popen(["-m", "sla_ckpt", *map(str, args)], hub, token, env, cwd)

    def script(
        self,
        code: str,
        *args: object,
        hub: LoopbackHub,
        token: str | None = "write",
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python code, which finds `args` in sys.argv[1:]."""
        process = self._popen(["-c", code, *map(str, args)], hub, token, env, None)
        return self._finish(process, timeout)

    def _popen(
        self,
        command: list[str],
        hub: LoopbackHub,
        token: str | None,
        env: Mapping[str, str] | None,
        cwd: Path | None,
    ) -> subprocess.Popen[str]:
        value = hub.token(token) if token in ("read", "write") else token
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self._home,
            env=environment(hub, self._home, value, env),
        )

    def _finish(
        self, process: subprocess.Popen[str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"still running after {timeout} s\n{stdout}\n{stderr}") from None
        assert "hf_" not in (stdout + stderr).replace("hf_xet", "").replace("hf_hub", "")
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
