"""Stages of long work on stderr: a bar on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sla_ckpt.cli._output import Output

if TYPE_CHECKING:
    from sla_ckpt.regen.progress import Progress


class LineProgress:
    """One line per stage."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def stage(self, name: str, total: int) -> None:
        of = f" ({total:,} steps)" if 0 < total < 1_000_000 else ""
        self._output.note(f"{name}{of} …")

    def tick(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self._output.note(text)


class BarProgress:
    """A bar that belongs to the current stage."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None
        self._started = 0.0

    def stage(self, name: str, total: int) -> None:
        self.finish()
        self._started = time.monotonic()
        self._task = self._bar.add_task(name, total=total or None)

    def tick(self, count: int = 1) -> None:
        if self._task is not None:
            self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        if self._task is None:
            return
        task = next(item for item in self._bar.tasks if item.id == self._task)
        seconds = time.monotonic() - self._started
        self._bar.remove_task(self._task)
        self.note(f"{task.description}  {seconds:.1f} s")
        self._task = None


@contextlib.contextmanager
def progress_for(output: Output) -> Iterator[Progress]:
    """The progress that suits stderr."""
    if output.quiet:
        from sla_ckpt.regen.progress import SILENT

        yield SILENT
        return
    if not sys.stderr.isatty():
        yield LineProgress(output)
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%", markup=False),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = BarProgress(bar)
        yield shown
        shown.finish()
