"""How regeneration tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to stages and to ticks within them."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins, of ``total`` ticks; 0 if that is not known."""

    def tick(self, count: int = 1) -> None:
        """``count`` ticks of the current stage are done."""

    def note(self, text: str) -> None:
        """A remark of one line."""


class _Silent:
    def stage(self, name: str, total: int) -> None:
        pass

    def tick(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT: Progress = _Silent()
