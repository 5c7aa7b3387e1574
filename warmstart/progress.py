"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere; and its peak memory."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Progress = Callable[[str, int, int | None], None]  # stage, done, total; a total of None is unknown
STATUS = Path("/proc/self/status")
PLAIN_EVERY = 10.0  # seconds between two plain lines of one stage


class _Rate(ProgressColumn):
    """Items a second, in millions or thousands."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_short(speed)}/s" if speed else "")


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f} "


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if STATUS.exists():  # on Linux ru_maxrss begins at what the parent process held
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Reporter:
    """Show ``reporter(stage, done, total)`` on stderr; a total of 0 or None is unknown. Use as a context manager.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.plain = not sys.stderr.isatty()
        self.stage = ""
        self.began = self.shown = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = rich.progress.Progress(*columns, console=Console(stderr=True), disable=quiet or self.plain)
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` items of a stage are finished."""
        if self.quiet:
            return
        now = time.monotonic()
        new = stage != self.stage
        if new:
            self.stage, self.began = stage, now
            self.task = None if self.plain else self.bar.add_task(stage, total=total or None)
        if self.task is not None:
            self.bar.update(self.task, completed=done, total=total or None)
        elif new or now - self.shown > PLAIN_EVERY:
            share = f" {done / total:4.0%}" if total else f" {done}" if done else ""
            left = f", {(now - self.began) * (total / done - 1):.0f} s left" if total and done and not new else ""
            print(f"{stage}{share}{left}", file=sys.stderr, flush=True)
            self.shown = now
