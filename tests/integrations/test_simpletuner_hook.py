"""examples/simpletuner_hook.sh, expanded and run by SimpleTuner's own script runner."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import factories
from tests.hub.running import environment
from tests.integrations.conftest import ROOT
from tests.interop.simpletuner_wheel import downloaded_wheel
from tools.loopback_hub import LoopbackHub

pytestmark = pytest.mark.interop

HOOK = ROOT / "examples" / "simpletuner_hook.sh"
MODULE = "simpletuner/helpers/training/script_runner.py"
ONE_LINER = "sla-ckpt verify '{local_checkpoint_path}'"

Save = Callable[[str, Path], None]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """The module of SimpleTuner that runs such scripts, with what it imports stubbed."""
    folder = tmp_path_factory.mktemp("simpletuner")
    with zipfile.ZipFile(downloaded_wheel()) as archive:
        archive.extract(MODULE, folder)
    training, utils = "simpletuner.helpers.training", "simpletuner.helpers.utils"
    contents: dict[str, dict[str, object]] = {
        "simpletuner": {},
        "simpletuner.helpers": {},
        training: {},
        utils: {},
        f"{training}.local_metrics": {
            "is_local_metrics_enabled": lambda report_to: False,
            "render_static_report": None,
        },
        f"{training}.state_tracker": {"StateTracker": None},
        f"{utils}.checkpoint_manager": {"CheckpointManager": None},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in contents.items():
            stub = types.ModuleType(name)
            vars(stub).update(attributes)
            patch.setitem(sys.modules, name, stub)
        spec = importlib.util.spec_from_file_location("script_runner", folder / MODULE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def saved(runner: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Save:
    """``saved(template, checkpoint)``: what happens after a save, waited for."""
    bin_folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def do(template: str, checkpoint: Path) -> None:
        config = types.SimpleNamespace(output_dir=str(checkpoint.parent), report_to=None)
        runner.run_hook_script(template, config=config, local_path=str(checkpoint), global_step=500)
        runner._get_executor().shutdown(wait=True)
        runner._EXECUTOR = None

    return do


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """In a folder with a space, which the template must survive."""
    return factories.write_full_checkpoint(tmp_path / "my run" / "checkpoint-500", trainer=True)


def template(*args: str) -> str:
    return " ".join([shlex.quote(str(HOOK)), "'{local_checkpoint_path}'", *args])


def test_a_good_checkpoint_is_verified_and_nothing_is_complained_about(
    saved: Save, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(template(), checkpoint)
    log = (checkpoint.parent / "sla-ckpt.log").read_text()
    assert str(checkpoint) in log and "good" in log
    assert not caplog.records


def test_a_broken_checkpoint_is_logged_and_training_goes_on(
    saved: Save, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint / "sla_attention.pt").write_bytes(b"")
    with caplog.at_level(logging.ERROR):
        saved(template("alice/model"), checkpoint)  # returns: nothing is raised
    (record,) = caplog.records
    assert "External script failed" in record.getMessage()
    assert "exit status 1" in record.getMessage()
    log = (checkpoint.parent / "sla-ckpt.log").read_text()
    assert "SLA002" in log and "pushed" not in log


def test_the_one_line_variant_of_the_documentation_works(
    saved: Save,
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert ONE_LINER in (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    saved(ONE_LINER, checkpoint)
    assert not caplog.records
    assert "128:bf16" in capfd.readouterr().out, "its output is the training's output"


def test_a_good_checkpoint_is_pushed_where_a_repository_is_named(
    saved: Save, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        for name, value in environment(hub, tmp_path / "home", hub.token("write")).items():
            monkeypatch.setenv(name, value)
        saved(template("alice/model"), checkpoint)
        assert "pushed" in (checkpoint.parent / "sla-ckpt.log").read_text()
        assert "sla_attention.pt" in hub.files("alice/model")
