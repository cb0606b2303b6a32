"""The loopback Hub, exercised by the real huggingface_hub and hf_xet clients."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.running import ROOT, Runner
from tools.loopback_hub import LoopbackHub

REPO = "alice/model"

# huggingface_hub's own way of uploading warns so
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def api(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The client in this process, with xet off (its switch is read at import) and no proxies."""
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    huggingface_hub.close_session()
    huggingface_hub.utils.disable_progress_bars()
    yield HfApi(endpoint=hub.url, token=hub.token("write"))
    huggingface_hub.utils.enable_progress_bars()
    huggingface_hub.close_session()


def as_user(hub: LoopbackHub, user: str, role: str = "write") -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token(role, user=user))


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations: CommitOperationAdd, **options: object) -> str:
    info = api.create_commit(REPO, list(operations), commit_message="change", **options)
    return info.oid


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_commit_holds_regular_and_large_files(hub: LoopbackHub, api: HfApi) -> None:
    weights = os.urandom(100_000)
    api.create_repo(REPO, private=True)
    commit(api, add("unet/w.safetensors", weights), add("config.json", b"{}"))
    files = hub.files(REPO)
    assert files["unet/w.safetensors"] == (100_000, sha256(weights))
    assert files["config.json"] == (2, sha256(b"{}"))
    assert [c.title for c in hub.commits(REPO)] == ["change", "initial commit"]
    assert hub.is_private(REPO)
    listed = {item.path: item for item in api.list_repo_tree(REPO, recursive=True)}
    assert listed["unet/w.safetensors"].lfs.sha256 == sha256(weights)
    assert "unet" in listed
    [info] = api.get_paths_info(REPO, ["config.json", "missing"])
    assert info.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object of {}


def test_a_stored_object_is_not_sent_twice(hub: LoopbackHub, api: HfApi) -> None:
    weights = os.urandom(100_000)
    hub.add_repo(REPO)
    commit(api, add("a.safetensors", weights))
    commit(api, add("b.safetensors", weights))
    assert len(hub.matching("^PUT /_lfs")) == 1
    assert hub.bytes_received < 200_000
    commit(api, add("b.safetensors", weights))
    assert len(hub.commits(REPO)) == 3  # initial, a, b: the client skips what is unchanged


def test_an_upload_with_the_wrong_hash_is_refused(hub: LoopbackHub) -> None:
    url = f"{hub.url}/_lfs/{sha256(b'announced')}"
    answer = httpx2.put(url, content=b"something else", trust_env=False)
    assert answer.status_code == 400
    assert "BadDigest" in answer.text


def test_a_large_upload_goes_in_parts(hub: LoopbackHub, api: HfApi) -> None:
    hub.settings.part_size = 1000
    hub.add_repo(REPO)
    commit(api, add("w.safetensors", weights := os.urandom(2500)))
    assert hub.files(REPO)["w.safetensors"] == (2500, sha256(weights))
    assert hub.read(REPO, "w.safetensors") == weights
    assert len(hub.matching("^PUT /_lfs/.*/part/")) == 3


def test_a_download_is_whole_and_ranges_are_exact(
    hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    weights = os.urandom(300_000)
    hub.add_repo(REPO, private=True, files={"w.safetensors": weights, "config.json": "{}"})
    folder = Path(api.snapshot_download(REPO, local_dir=tmp_path / "down"))
    assert (folder / "w.safetensors").read_bytes() == weights
    assert (folder / "config.json").read_text() == "{}"
    hub.clear_requests()
    files = HfFileSystem(endpoint=hub.url, token=hub.token("read"))
    assert files.read_block(f"{REPO}/w.safetensors", 299_990, 100) == weights[-10:]
    url = f"{hub.url}/{REPO}/resolve/main/config.json"
    headers = {"Authorization": f"Bearer {hub.token('read')}", "Range": "bytes=-1"}
    tail = httpx2.get(url, headers=headers, trust_env=False)
    assert (tail.status_code, tail.content) == (206, b"}")
    assert tail.headers["Content-Range"] == "bytes 1-1/2"


def test_a_token_is_not_sent_on_to_the_storage(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO, private=True, files={"w.safetensors": b"\0" * 1000})
    api.hf_hub_download(REPO, "w.safetensors", local_dir=Path(hub.root) / "down")
    [stored] = hub.matching("^GET /_cdn/")
    assert not stored.has_token


def test_a_virtual_repo_costs_no_room(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    for index in range(10):
        hub.add_virtual_file(REPO, f"s{index}.safetensors", 2_400_000_000, header=b"head")
    info = api.repo_info(REPO, files_metadata=True)
    assert sum(item.size for item in info.siblings) > 24_000_000_000
    files = HfFileSystem(endpoint=hub.url, token=False)
    with files.open(f"{REPO}/s3.safetensors", block_size=1000) as shard:
        assert shard.read(6) == b"head\0\0"
        shard.seek(2_399_999_990)
        assert shard.read() == b"\0" * 10
    assert hub.bytes_sent < 100_000


def test_a_stale_parent_is_412(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    first = hub.commits(REPO)[0].id
    hub.add_files(REPO, {"other.txt": "someone was faster"})
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, add("a.txt", b"1"), parent_commit=first)
    assert caught.value.response.status_code == 412
    assert "a.txt" not in hub.files(REPO)


def test_a_commit_that_names_a_missing_object_changes_nothing(hub: LoopbackHub) -> None:
    hub.add_repo(REPO)
    lines = [
        {"key": "header", "value": {"summary": "x", "description": ""}},
        {"key": "file", "value": {"path": "a", "content": "", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "b", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    answer = httpx2.post(
        f"{hub.url}/api/models/{REPO}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {hub.token('write')}"},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert list(hub.files(REPO)) == [".gitattributes"]


def test_branches_tags_and_history(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    api.create_branch(REPO, branch="dev/one")
    commit(api, add("a.txt", b"1"), revision="dev/one")
    api.create_tag(REPO, tag="v1", revision="dev/one")
    assert "a.txt" in hub.files(REPO, "v1")
    assert "a.txt" not in hub.files(REPO)
    assert [c.title for c in api.list_repo_commits(REPO, revision="dev/one")] == [
        "change",
        "initial commit",
    ]
    refs = api.list_repo_refs(REPO)
    assert {branch.name for branch in refs.branches} == {"main", "dev/one"}
    assert [tag.name for tag in refs.tags] == ["v1"]
    api.delete_branch(REPO, branch="dev/one")
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files(REPO, revision="dev/one")
    commit(api, CommitOperationDelete(".gitattributes"))  # type: ignore[arg-type]
    assert hub.files(REPO) == {}


def test_a_pull_request_is_a_ref_until_it_is_merged(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    bob = as_user(hub, "bob")
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(bob, add("a.safetensors", b"\0\1"))
    made = bob.create_commit(
        REPO, [add("a.safetensors", b"\0\1")], commit_message="m", create_pr=True
    )
    assert made.pr_revision == "refs/pr/1"

    assert "a.safetensors" in hub.files(REPO, "refs/pr/1")
    assert "a.safetensors" not in hub.files(REPO)
    assert api.get_discussion_details(REPO, 1).is_pull_request
    api.merge_pull_request(REPO, 1)
    assert "a.safetensors" in hub.files(REPO)
    assert [item.status for item in api.get_repo_discussions(REPO)] == ["merged"]


def test_roles_of_tokens(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    reader = as_user(hub, "alice", "read")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(reader, add("a.txt", b"1"))
    scoped = HfApi(
        endpoint=hub.url,
        token=hub.token("fineGrained", scopes={REPO: ["repo.content.read", "repo.write"]}),
    )
    commit(scoped, add("a.txt", b"1"))
    with pytest.raises(HfHubHTTPError, match="403"):
        scoped.create_repo("alice/other")
    api.create_repo("acme/shared")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("strangers/model")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()


def test_private_repos_do_not_exist_for_others(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO, private=True, files={"config.json": "{}"})
    assert api.file_exists(REPO, "config.json")
    for stranger in (as_user(hub, "bob"), HfApi(endpoint=hub.url, token=False)):
        with pytest.raises(RepositoryNotFoundError):
            stranger.repo_info(REPO)
        assert list(stranger.list_models(author="alice")) == []
    assert [model.id for model in api.list_models(author="alice")] == [REPO]


def test_a_gate_lets_only_the_allowed_read(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo(REPO, gated=True, files={"config.json": "{}"})
    bob = as_user(hub, "bob")
    assert bob.repo_info(REPO).gated == "manual"
    with pytest.raises(GatedRepoError):
        bob.hf_hub_download(REPO, "config.json", local_dir=tmp_path)
    with pytest.raises(GatedRepoError):
        bob.auth_check(REPO)
    hub.allow(REPO, "bob")
    assert Path(bob.hf_hub_download(REPO, "config.json", local_dir=tmp_path)).exists()


def test_what_is_missing_is_told_apart(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("alice/none")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="none")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "none.txt", local_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "none"))


def test_listings_come_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    hub.settings.page_size = 2
    hub.add_repo(REPO, files={f"f{index}.txt": "x" for index in range(6)})
    for index in range(3):
        hub.add_repo(f"alice/other{index}")
    assert len(list(api.list_repo_tree(REPO))) == 7
    assert len(hub.matching("/tree/")) == 4
    assert len(list(api.list_models(author="alice"))) == 4


def test_the_gitignore_of_the_repo_is_obeyed(hub: LoopbackHub, api: HfApi) -> None:
    ignored = "*.pt\n!keep.pt\n/logs/\n"
    hub.add_repo(REPO, files={".gitignore": ignored})
    commit(api, add("sla_attention.pt", b"1"), add("keep.pt", b"2"), add("logs/a.txt", b"3"))
    assert sorted(hub.files(REPO)) == [".gitattributes", ".gitignore", "keep.pt"]


@pytest.mark.parametrize(
    ("front", "fault"),
    [("tags: x", "tags"), ("license: null", "null"), ("base_model: /home/me/x", "base_model")],
)
def test_a_bad_card_is_refused(hub: LoopbackHub, api: HfApi, front: str, fault: str) -> None:
    hub.add_repo(REPO)
    with pytest.raises(ValueError, match=fault):
        commit(api, add("README.md", f"---\n{front}\n---\n# Model\n".encode()))
    assert "README.md" not in hub.files(REPO)
    commit(api, add("README.md", b"---\ntags: [x]\nbase_model: a/b\n---\n# Model\n"))
    assert "README.md" in hub.files(REPO)


def test_limits_refuse_an_upload_before_it_is_sent(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    hub.settings.max_file_size = 1000
    with pytest.raises(ValueError, match="exceeds the limit"):
        commit(api, add("w.safetensors", b"\0" * 1001))
    hub.settings.quota = 1500
    commit(api, add("w.safetensors", b"\0" * 1000))
    with pytest.raises(HfHubHTTPError, match="storage limit"):
        commit(api, add("v.safetensors", b"\1" * 1000))
    assert len(hub.matching("^PUT")) == 1


def test_state_outlives_a_restart(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    weights = os.urandom(1000)
    token = hub.token("read")
    hub.add_repo(REPO, private=True, files={"w.safetensors": weights})
    commit(api, add("a.txt", b"1"))
    hub.stop()
    with LoopbackHub(hub.root) as again:
        assert again.commits(REPO) == hub.commits(REPO)
        reader = HfApi(endpoint=again.url, token=token)
        local = reader.hf_hub_download(REPO, "w.safetensors", local_dir=tmp_path / "down")
        assert Path(local).read_bytes() == weights


# faults


def test_a_status_fault_strikes_as_often_as_asked(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    fault = hub.faults.add("preupload", status=429, retry_after=0, times=2, skip=1)
    for index in range(2):
        commit(api, add("a.txt", b"%d" % index))
    assert fault.hits == 2  # the client tried again twice
    assert [r.status for r in hub.matching("preupload")] == [200, 429, 429, 200]
    hub.faults.add("/commit/", status=403, message="No more", error_code="Odd")
    with pytest.raises(HfHubHTTPError, match="No more") as caught:
        commit(api, add("a.txt", b"2"))
    assert caught.value.response.headers["X-Error-Code"] == "Odd"


def test_a_lost_answer_hides_a_commit_that_landed(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "lose")
    with pytest.raises(httpx2.TransportError):
        commit(api, add("a.txt", b"1"))
    assert "a.txt" in hub.files(REPO)
    hub.faults.add("POST .*/commit/", status=504, phase="response")
    with pytest.raises(HfHubHTTPError, match="504"):
        commit(api, add("b.txt", b"1"))
    assert "b.txt" in hub.files(REPO)


def test_a_connection_cut_before_the_work_leaves_no_commit(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    hub.faults.add("POST .*/commit/", "drop")
    with pytest.raises(httpx2.TransportError):
        commit(api, add("a.txt", b"1"))
    assert "a.txt" not in hub.files(REPO)


def test_an_upload_cut_midway_is_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo(REPO)
    weights = os.urandom(3_000_000)
    hub.faults.add("PUT /_lfs", "drop", after=1_000_000)
    commit(api, add("w.safetensors", weights))
    assert hub.files(REPO)["w.safetensors"] == (3_000_000, sha256(weights))
    first, second = hub.matching("PUT /_lfs")
    assert first.status is None
    assert 1_000_000 <= first.bytes_received < 2_000_000
    assert second.status == 200


def test_a_download_cut_midway_goes_on_where_it_stopped(
    hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    weights = os.urandom(3_000_000)
    hub.add_repo(REPO, files={"w.safetensors": weights})
    hub.faults.add("GET /_cdn", "drop", phase="response", after=1_000_000)
    local = api.hf_hub_download(REPO, "w.safetensors", local_dir=tmp_path)
    assert Path(local).read_bytes() == weights
    assert hub.matching("GET /_cdn")[0].bytes_sent < 1_100_000


def test_a_flipped_byte_arrives_flipped(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, files={"a.txt": "abc"})
    hub.faults.add("GET .*/resolve/", "corrupt", after=1)
    url = f"{hub.url}/{REPO}/resolve/main/a.txt"
    assert httpx2.get(url, trust_env=False).content == b"a\x9dc"
    assert httpx2.get(url, trust_env=False).content == b"abc"


@pytest.mark.parametrize("phase", ["request", "response"])
def test_a_stall_lets_the_client_time_out(hub: LoopbackHub, phase: str) -> None:
    hub.add_repo(REPO, files={"a.txt": "abc"})
    hub.faults.add("GET .*/resolve/", "stall", phase=phase, after=2 if phase == "response" else 0)
    url = f"{hub.url}/{REPO}/resolve/main/a.txt"
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(url, trust_env=False, timeout=0.2)
    assert httpx2.get(url, trust_env=False).text == "abc"


def test_it_runs_as_a_command_with_faults_over_http(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.loopback_hub", "--root", str(tmp_path / "hub")]
    process = subprocess.Popen(
        [*command, "--token", "carol:write"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        token = process.stdout.readline().split()[1]
        with httpx2.Client(base_url=url, trust_env=False) as client:
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/api/whoami-v2", headers=headers).json()["name"] == "carol"
            fault = {"match": "whoami", "status": 429, "retry_after": 7}
            assert client.post("/_admin/faults", json=fault).status_code == 200
            assert client.post("/_admin/faults", json={"match": "x", "action": "?"}).is_error
            answer = client.get("/api/whoami-v2", headers=headers)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
            [_, struck] = client.get("/_admin/requests").json()
            assert struck["fault"] == "status whoami"
            assert token not in client.get("/_admin/requests").text
    finally:
        process.terminate()
        assert process.wait(timeout=10) == 0
        process.stdout.close()


# xet, in processes of their own: hf_xet reads its settings from the environment once

UPLOAD = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("alice/model", exist_ok=True)
operations = [CommitOperationAdd(path.rsplit("/", 1)[-1], path) for path in sys.argv[1:]]
print(api.create_commit("alice/model", operations, commit_message="change").oid)
"""
DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download("alice/model", local_dir=sys.argv[1]))
"""


def test_xet_uploads_and_downloads(xet_hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    weights = os.urandom(2_000_000)
    local = tmp_path / "w.safetensors"
    local.write_bytes(weights)
    sent = cli.script(UPLOAD, local, hub=xet_hub)
    assert sent.returncode == 0, sent.stderr
    assert xet_hub.files(REPO)["w.safetensors"] == (2_000_000, sha256(weights))
    assert xet_hub.matching("^POST /_cas/v1/xorbs/")
    assert not xet_hub.matching("^PUT /_lfs")
    got = cli.script(DOWNLOAD, tmp_path / "down", hub=xet_hub, token="read")
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "down/w.safetensors").read_bytes() == weights
    url = f"{xet_hub.url}/{REPO}/resolve/main/w.safetensors"
    part = httpx2.get(url, headers={"Range": "bytes=10-19"}, trust_env=False, follow_redirects=True)
    assert (part.status_code, part.content) == (206, weights[10:20])
    xet_hub.clear_requests()
    assert cli.script(UPLOAD, local, hub=xet_hub).returncode == 0
    assert not xet_hub.matching("xorbs|/commit/")


def test_xet_state_outlives_a_restart(xet_hub: LoopbackHub, cli: Runner, tmp_path: Path) -> None:
    local = tmp_path / "w.safetensors"
    local.write_bytes(os.urandom(100_000))
    assert cli.script(UPLOAD, local, hub=xet_hub).returncode == 0
    xet_hub.stop()
    with LoopbackHub(xet_hub.root, xet=True) as again:
        got = cli.script(DOWNLOAD, tmp_path / "down", hub=again)
        assert got.returncode == 0, got.stderr
    assert (tmp_path / "down/w.safetensors").read_bytes() == local.read_bytes()


def test_xet_uploads_survive_a_cut_connection(
    xet_hub: LoopbackHub, cli: Runner, tmp_path: Path
) -> None:
    local = tmp_path / "w.safetensors"
    local.write_bytes(os.urandom(2_000_000))
    cut = xet_hub.faults.add("POST /_cas/v1/xorbs/", "drop", after=500_000)
    sent = cli.script(UPLOAD, local, hub=xet_hub)
    assert sent.returncode == 0, sent.stderr
    assert cut.hits == 1
    assert xet_hub.files(REPO)["w.safetensors"][1] == sha256(local.read_bytes())


def test_storage_needs_its_own_token(xet_hub: LoopbackHub) -> None:
    xet_hub.add_repo(REPO)
    answer = httpx2.post(
        f"{xet_hub.url}/_cas/v1/xorbs/default/{'0' * 64}",
        content=b"x",
        headers={"Authorization": f"Bearer {xet_hub.token('write')}"},
        trust_env=False,
    )
    assert answer.status_code == 401
