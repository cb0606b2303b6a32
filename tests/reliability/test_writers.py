"""migrate, verify --fix, regen and pull are killed, starved and disturbed while they write.

A seeded sample of the campaign in tools/campaign, which does all of it.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from sla_ckpt.state import STATE_FILE
from tools.campaign import faults
from tools.campaign.cases import Case, contents, inodes, is_ours
from tools.campaign.children import Server
from tools.campaign.kills import judge_killed
from tools.campaign.powerloss import calls_of, renames, violations

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")


def sample(case: Case, count: int, salt: str) -> list[int]:
    """Some of the changes that a command makes to the file system; fewer of the slow regen."""
    count = (count + 1) // 2 if case.name == "regen" else count
    rng = random.Random(f"{case.name} {salt}")
    return sorted(rng.sample(range(1, case.events + 1), min(count, case.events)))


@pytest.mark.slow
def test_kill_9_at_a_change_of_a_file_leaves_old_or_new(
    case: Case, server: Server, root: Path
) -> None:
    codes: Counter[str] = Counter()
    for at in sample(case, 5, "kill"):
        case.fresh(root)
        done = case.run(server, root, at=at, action="kill")
        assert done.code == -9, done.text
        judge_killed(case, server, root, codes)


def test_kill_9_inside_a_write_leaves_no_half_file(case: Case, server: Server, root: Path) -> None:
    """The kernel ends the process in the middle of a file (SIGXFSZ at a size limit)."""
    case.fresh(root)
    done = case.run(server, root, file_limit=512, limit_kills=True)
    assert done.code < 0, done.text
    assert case.check_killed(root) in ("old", "absent")


def test_data_is_on_the_disk_before_its_name_is(case: Case) -> None:
    assert case.whole is not None
    calls = calls_of(case.whole)
    assert renames(calls) > 1
    assert violations(calls) == []


@pytest.mark.parametrize("action", [f"from:{errno.ENOSPC}", f"once:{errno.EIO}"])
def test_an_error_at_a_change_of_a_file_is_one_line(
    case: Case, server: Server, root: Path, action: str
) -> None:
    judge = faults.Judge(print)
    for at in sample(case, 2, action):
        case.fresh(root)
        done = case.run(server, root, at=at, action=action)
        judge.failed(case, root, done)
    case.check_rerun(case.run(server, root), root)


def test_a_write_beyond_a_limit_changes_nothing(case: Case, server: Server, root: Path) -> None:
    """As a quota does, with an error in the middle of a file."""
    case.fresh(root)
    done = case.run(server, root, file_limit=800)
    faults.Judge(print).failed(case, root, done)
    assert done.code == 2 or case.name == "fix", done.text
    assert case.check_killed(root) in ("old", "absent")


def test_a_read_only_folder_is_one_line(case: Case, server: Server, root: Path) -> None:
    case.fresh(root)
    root.mkdir(parents=True, exist_ok=True)
    before = inodes(root)
    done = case.run(server, root, at=1, action=f"from:{errno.EROFS}")
    faults.Judge(print).failed(case, root, done)
    assert inodes(root) == before
    assert done.code == 2 or case.name == "fix", done.text


def test_a_state_that_vanishes_meanwhile_is_no_traceback(
    case: Case, server: Server, root: Path
) -> None:
    for at in sample(case, 2, "vanish"):
        case.fresh(root)
        done = case.run(server, root, at=at, action=f"vanish:{root / STATE_FILE}")
        faults.vanished(case, root, done, faults.Judge(print))


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_nothing_is_written_through_links(
    case: Case, server: Server, root: Path, tmp_path: Path, hard: bool
) -> None:
    case.fresh(root)
    root.mkdir(parents=True, exist_ok=True)
    blobs = tmp_path / "blobs"
    faults.link_out(root, blobs, hard)
    before = contents(blobs), inodes(blobs)
    assert case.run(server, root).code == 0
    assert (contents(blobs), inodes(blobs)) == before
    assert not [path for path in contents(root) if is_ours(path)]


def test_a_working_folder_that_is_a_link_is_refused(
    all_cases: dict[str, list[Case]], servers: dict[str, Server], root: Path, tmp_path: Path
) -> None:
    for command, name in (("migrate", ".sla_ckpt-migrate"), ("pull", ".sla_ckpt_pull")):
        case = all_cases[command][-1]
        elsewhere = tmp_path / command
        elsewhere.mkdir()
        (elsewhere / "journal.json").write_text("somebody's")
        case.fresh(root)
        (root / name).symlink_to(elsewhere)
        done = case.run(servers[command], root)
        assert done.code == 2 and "is a link" in done.stderr, done.text
        assert [path.read_text() for path in elsewhere.iterdir()] == ["somebody's"]


def test_two_writers_at_once_end_in_one_whole_result(
    all_cases: dict[str, list[Case]], servers: dict[str, Server], root: Path
) -> None:
    judge = faults.Judge(print)
    for command, other in (("migrate", "pull"), ("pull", "migrate")):
        case, pair = all_cases[command][-1], (servers[command], servers[other])
        case.fresh(root)
        for server in pair:
            server.start(*case.command(root), root=root, env=case.env)
        faults.judge_pair(case, root, (pair[0].wait(), pair[1].wait()), judge)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
def test_another_users_checkpoint_is_one_line(case: Case, server: Server) -> None:
    import tempfile

    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = case.fresh(Path(folder) / "run" / "checkpoint-3")
        root.mkdir(parents=True, exist_ok=True)
        before = inodes(root)
        done = case.run(server, root, uid=faults.NOBODY)
        faults.Judge(print).failed(case, root, done)
        assert inodes(root) == before
        assert done.code == 2 or case.name == "fix", done.text
