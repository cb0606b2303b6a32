"""The judge of system calls finds what a power cut could damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.campaign.powerloss import Call, parse_strace, violations

RIGHT = [
    Call("open", (".t.tmp",)),
    Call("write", (".t.tmp",)),
    Call("fsync", (".t.tmp",)),
    Call("rename", (".t.tmp", "state")),
    Call("fsync", (".",)),
]


def test_the_right_order_is_accepted() -> None:
    assert violations(RIGHT) == []


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([c for c in RIGHT if c.paths != (".t.tmp",) or c.name != "fsync"], "not synced before"),
        ([*RIGHT[:3], RIGHT[1], *RIGHT[3:]], "written after its fsync"),
        (RIGHT[:4], "folder is not synced after the rename"),
        ([RIGHT[4], *RIGHT[:4]], "folder is not synced after the rename"),
        (
            [
                *RIGHT[:2],
                Call("fsync", (".t.tmp",), (1, 1)),
                Call("rename", RIGHT[3].paths, (2, 2)),
            ],
            "changed between fsync and rename",
        ),
        ([Call("mkdir", ("transformer",)), *RIGHT[:4]], "new folder transformer is not synced"),
        ([Call("link", ("state", "state.bak-1")), *RIGHT[:3]], "not synced after the backup"),
        (
            [
                Call("fsync", ("t",)),
                Call("rename", ("t", ".sla_ckpt-migrate/journal.json")),
                *RIGHT,
                Call("fsync", (".sla_ckpt-migrate",)),
            ],
            "replaced before .sla_ckpt-migrate/journal.json is durable",
        ),
    ],
)
def test_a_wrong_order_is_named(calls: list[Call], words: str) -> None:
    assert any(words in text for text in violations(calls)), violations(calls)


def test_calls_are_read_from_a_trace() -> None:
    text = """\
7 openat(AT_FDCWD</c>, "/c/x/.t.tmp", O_RDWR|O_CREAT|O_EXCL, 0600) = 5</c/x/.t.tmp>
7 openat(AT_FDCWD</c>, "/c/x/state", O_RDONLY|O_CLOEXEC) = 6</c/x/state>
7 write(5</c/x/.t.tmp>, "PK", 2 <unfinished ...>
8 write(1</dev/pts/0>, "progress", 8) = 8
7 <... write resumed>) = 2
7 fsync(5</c/x/.t.tmp>) = 0
7 rename("/c/x/.t.tmp", "/c/x/state") = 0
7 unlink("/c/x/absent") = -1 ENOENT (No such file or directory)
7 fsync(6</c/x>) = 0
"""
    calls = parse_strace(text, Path("/c/x"))
    assert [(call.name, *call.paths) for call in calls] == [
        ("open", ".t.tmp"),
        ("write", ".t.tmp"),
        ("fsync", ".t.tmp"),
        ("rename", ".t.tmp", "state"),
        ("fsync", "."),
    ]
    assert violations(calls) == []
