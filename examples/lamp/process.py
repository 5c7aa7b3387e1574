"""What the processes have in common: each deals with the events of the log, and waits when there are none."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from examples.lamp.log import Log
from examples.lamp.tags import DEFAULT, Tags
from warmstart.errors import InputError

PAUSE = 0.2  # seconds after which a process looks at the clock, and whether its supervisor still lives
BAD_INPUT = 2  # exit status: somebody has to mend something first


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every process has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--log", type=Path, required=True, help="the log, an SQLite file")
    parser.add_argument("--tags", type=Path, default=DEFAULT, help="the states of the switch, a TOML file")
    parser.add_argument("--parent", type=int, help="end as soon as this process is no longer the parent")
    return parser


def work(log: Log, step: Callable[[], bool], parent: int | None = None) -> None:
    """Call ``step`` as long as it finds something to do, else wait for the log to grow; end with the parent."""
    while parent is None or os.getppid() == parent:
        if not step():
            log.wait(PAUSE)


def run(
    parser: argparse.ArgumentParser,
    prepare: Callable[[Log, Tags, argparse.Namespace], Callable[[], bool]],
    command: Sequence[str] | None = None,
) -> int:
    """Read the options, open the log, and work until the parent ends or somebody presses Ctrl-C.

    ``prepare`` gets log, tags and options, and returns the step. The status is that of the process.
    """
    options = parser.parse_args(command)
    try:
        with Log(options.log) as log, _told(log, Path(parser.prog).stem):
            work(log, prepare(log, Tags.read(options.tags), options), options.parent)
    except (InputError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    return 0


@contextlib.contextmanager
def _told(log: Log, process: str) -> Iterator[None]:
    """Write into the log why a process ends, for the page."""
    try:
        yield
    except (InputError, OSError) as error:
        log.append("trouble", {"process": process, "why": str(error)})
        raise
