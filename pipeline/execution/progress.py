"""Progress of long tasks: a live bar on a terminal, a plain line every few seconds elsewhere (logs, CI), or JSON lines for programs."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.execution.messages import MessageSettings, print_progress
from pipeline.execution.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 10.0


class Progress:
    """Counts how many of ``total`` units are done; shows rate, remaining time and a note on standard error. Several threads may count.

    If ``total`` is None it is unknown, and so is the remaining time.

    >>> with Progress("Sharding", total=2, unit="images") as progress:
    ...     progress.advance(2, note="0 rejects")
    """

    def __init__(self, title: str, *, total: int | None, unit: str, quiet: bool = False) -> None:
        self.quiet = quiet or MessageSettings.quiet
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.printed = 0
        self.note = ""
        self.started = self.last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self.started = self.last_line = time.monotonic()
        if sys.stderr.isatty() and not self.quiet and not MessageSettings.as_json:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(printable(self.title), total=self.total, rate="", note="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not self.quiet and self.done > self.printed and self._needs_last_line():
            self._line(time.monotonic())

    def _needs_last_line(self) -> bool:
        return MessageSettings.as_json or time.monotonic() - self.started > LINE_SECONDS

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def advance(self, count: int, note: str = "") -> None:
        """Report ``count`` more units done."""
        with self._lock:
            self._advance(count, note)

    def _advance(self, count: int, note: str) -> None:
        self.done += count
        self.note = note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=f"{self.rate:,.1f} {self.unit}/s", note=printable(note))
            return
        now = time.monotonic()
        if not self.quiet and now - self.last_line >= LINE_SECONDS:
            self._line(now)

    def _line(self, now: float) -> None:
        self.last_line, self.printed = now, self.done
        left = None if self.total is None else round((self.total - self.done) / max(self.rate, 1e-9), 1)
        total = "" if self.total is None else f" of {self.total:,}"
        remaining = "" if left is None else f", {left:,.0f} s left"
        note = f", {self.note}" if self.note else ""
        text = f"{self.title}: {self.done:,}{total} {self.unit}, {self.rate:,.1f} {self.unit}/s{remaining}{note}"
        counts = {"title": self.title, "done": self.done, "total": self.total, "unit": self.unit, "note": self.note}
        print_progress(text, **counts, per_second=round(self.rate, 3), seconds_left=left)
