"""Progress of long work on stderr: a bar on a terminal, plain lines elsewhere. Also the peak memory of the process."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import rich.progress

Progress = Callable[[str, int, int | None], None]  # stage, items done, items in total; None where that is unknown
STATUS = Path("/proc/self/status")
PLAIN_EVERY = 10.0  # seconds between two plain lines of one stage


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f} "


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes; 0 on Windows, where it is not measured."""
    if STATUS.exists():  # ru_maxrss includes what the parent process held
        return _status("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Return the resident memory of this process in bytes; where it is not known, `peak_memory`."""
    return _status("VmRSS") if STATUS.exists() else peak_memory()


def _status(name: str) -> int:
    """Return a size of this process, as Linux has it."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _bar() -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


class Reporter:
    """Show ``reporter(stage, done, total)`` on stderr. Use it as a context manager.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.stage = ""
        self.began = self.shown = time.monotonic()
        self.bar = None if quiet or not sys.stderr.isatty() else _bar()
        self.task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` items of a stage are finished; a total of 0 or None is unknown."""
        if self.quiet:
            return
        now = time.monotonic()
        new_stage = stage != self.stage
        if new_stage:
            self.stage, self.began = stage, now
        seconds = now - self.began
        if self.bar:
            if self.task is None or new_stage:
                self.task = self.bar.add_task(stage, rate="")
            rate = f"{_short(done / seconds)}/s" if done and seconds else ""
            self.bar.update(self.task, completed=done, total=total or None, rate=rate)
        elif new_stage or now - self.shown > PLAIN_EVERY:
            share = f" {done / total:4.0%}" if total else f" {done}" if done else ""
            left = f", {seconds * (total / done - 1):.0f} s left" if total and done and not new_stage else ""
            print(f"{stage}{share}{left}", file=sys.stderr, flush=True)
            self.shown = now
