"""What a migration would do, before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One change, for the user.

    Attributes:
        title: What is done, as a short phrase.
        path: The file it changes, relative to the checkpoint.
        before: What is there.
        after: What will be there.
        code: The rule whose finding this repairs, if one does.
    """

    title: str
    path: str
    before: str
    after: str
    code: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "path": self.path,
            "before": self.before,
            "after": self.after,
            "code": self.code,
        }


@dataclass(frozen=True)
class Problem:
    """Something that stays wrong, and what can be done about it."""

    message: str
    hint: str | None = None
    code: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"message": self.message, "hint": self.hint, "code": self.code}


@dataclass(frozen=True)
class FileChange:
    """One file of the plan.

    Attributes:
        path: Target relative to the plan's root; may not exist yet.
        write: Writes the new content to the given (staging) path.
        check: Reads the staged file back and compares it with what was meant.
        seen: :func:`fingerprint` of the target when the plan was made.
    """

    path: str
    write: Callable[[Path], None]
    check: Callable[[Path], None]
    seen: tuple[int, int] | None


def fingerprint(path: Path) -> tuple[int, int] | None:
    """Size and modification time, to notice that a file changed; None when it is absent."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Plan:
    """Everything a migration will do to one checkpoint, all of it or nothing.

    Attributes:
        root: The folder it changes.
        source: What was detected, for the user.
        steps: What is done, in order.
        changes: The files that carry it out.
        notes: What the user should know.
        problems: What stays wrong.
    """

    root: Path
    source: str
    steps: tuple[Step, ...] = ()
    changes: tuple[FileChange, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Nothing to do."""
        return not self.changes

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return {
            "root": str(self.root),
            "source": self.source,
            "steps": [step.to_dict() for step in self.steps],
            "writes": [change.path for change in self.changes],
            "notes": list(self.notes),
            "problems": [problem.to_dict() for problem in self.problems],
        }
