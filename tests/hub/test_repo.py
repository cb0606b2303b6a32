"""Repository names in every form that people paste."""

from __future__ import annotations

from pathlib import Path

import pytest

from sla_ckpt.checks.verify import open_target
from sla_ckpt.errors import UsageError
from sla_ckpt.hub.repo import RepoRef, looks_like_repo, parse_repo

FORMS = {
    "org/model": RepoRef("org/model"),
    " org/model/ ": RepoRef("org/model"),
    "org/model@v1": RepoRef("org/model", "v1"),
    "org/model@refs/pr/3": RepoRef("org/model", "refs/pr/3"),
    "org/model@refs/pr/3/sub": RepoRef("org/model", "refs/pr/3", "sub"),
    "org/model@v1/checkpoint-500": RepoRef("org/model", "v1", "checkpoint-500"),
    "org/model/checkpoint-500": RepoRef("org/model", None, "checkpoint-500"),
    "org/model/a/b/": RepoRef("org/model", None, "a/b"),
    "org/model#readme": RepoRef("org/model"),
    "hf://org/model": RepoRef("org/model"),
    "hf://models/org/model@dev/sub": RepoRef("org/model", "dev", "sub"),
    "https://huggingface.co/org/model": RepoRef("org/model"),
    "https://huggingface.co/org/model/": RepoRef("org/model"),
    "https://huggingface.co/org/model?not-for-all-audiences=true#x": RepoRef("org/model"),
    "https://huggingface.co/org/model/tree/main?x#y": RepoRef("org/model", "main"),
    "https://huggingface.co/org/model/tree/dev/a/b": RepoRef("org/model", "dev", "a/b"),
    "https://huggingface.co/org/model/tree/refs%2Fpr%2F1": RepoRef("org/model", "refs/pr/1"),
    "https://huggingface.co/org/model/blob/main/sub/sla_attention.pt": RepoRef(
        "org/model", "main", "sub"
    ),
    "https://huggingface.co/org/model/resolve/main/sla_attention.pt": RepoRef("org/model", "main"),
    "https://hf.co/org/model/settings": RepoRef("org/model"),
    "huggingface.co/org/model": RepoRef("org/model"),
    "https://HuggingFace.co/org/model": RepoRef("org/model"),
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_people_paste_is_read(text: str) -> None:
    assert parse_repo(text) == FORMS[text]


@pytest.mark.parametrize("text", ["~/none", "./none", "../none", "C:\\none", "/none", "a\\b", "."])
def test_a_path_that_is_not_there_is_no_such_folder(text: str) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        parse_repo(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model", "neither a folder here nor a repository"),
        ("https://huggingface.co/datasets/org/data", "not a model"),
        ("hf://spaces/org/app", "not a model"),
        ("https://example.com/org/model", "is not the Hub"),
        ("https://huggingface.co/org", "names no repository"),
        ("org/model/sub@v1", "the revision comes before the folder"),
        ("org/mo..del", "not a name the Hub accepts"),
        ("org/model--x", "not a name the Hub accepts"),
        ("org/-model", "not a name the Hub accepts"),
        ("org/model/../x", "not a folder of a repository"),
        ("org/model@", "not a revision"),
        ("org/model@a b", "not a revision"),
        ("org/" + "m" * 97, "not a name the Hub accepts"),
    ],
)
def test_what_is_no_repository_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        parse_repo(text)
    assert "\n" not in raised.value.message


def test_the_own_endpoint_is_the_hub_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    assert parse_repo("https://hub.example.org/org/model/tree/v2") == RepoRef("org/model", "v2")


def test_a_local_folder_wins_over_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source, _ = open_target("org/model")
    assert not source.is_remote


def test_names_and_urls_look_like_repositories_and_paths_do_not() -> None:
    assert looks_like_repo("org/model") and looks_like_repo("hf://org/model@v1/sub")
    assert not looks_like_repo("./org/model") and not looks_like_repo("out/sla_attention.pt")
