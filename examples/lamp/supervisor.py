"""Starts the five processes, and starts again what ends.

A process that dies is started again at once; one that dies again and again, less and less often. The processes end when
their supervisor ends, however it ends. A folder has one supervisor.
"""

import argparse
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from examples.lamp.log import Log
from examples.lamp.process import BAD_INPUT
from examples.lamp.tags import DEFAULT
from warmstart.errors import InputError

PROCESSES = ("recorder", "transcriber", "anticipator", "trainer", "operator")
LOG = "lamp.sqlite"
ROOT = Path(__file__).parents[2]
STEADY = 1.0  # seconds: what lived longer is started again at once
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds before it is started again otherwise
GOODBYE = 5.0  # seconds that a process has to end


class Supervisor:
    """The processes of a folder, while a ``with`` block runs.

    Parameters
    ----------
    folder : Path
        Holds the log and the model; it is made if there is none.
    tags : Path
        The states of the switch.
    options : mapping of str to sequence of str
        Further options of a process on its command line, such as ``{"recorder": ["--file", "notes.txt"]}``.

    Raises
    ------
    InputError
        The folder or its log cannot be used, or it has a supervisor already.
    """

    def __init__(self, folder: Path, tags: Path = DEFAULT, options: Mapping[str, Sequence[str]] | None = None) -> None:
        self.folder, self.log = folder, folder / LOG
        self._tags, self._options = tags, options or {}
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Supervisor":
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"expected a folder for the lamp, got {self.folder}: {error.strerror}") from error
            stack.enter_context(_alone(self.folder))
            with Log(self.log):  # it is made here, or refused
                pass
            threads = [threading.Thread(target=self._keep, args=(name,), name=name) for name in PROCESSES]
            stack.callback(self._stop, threads)
            for thread in threads:
                thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def pids(self) -> dict[str, int]:
        """Return the number of each process that runs."""
        with self._starting:
            return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def _keep(self, name: str) -> None:
        """Start a process, again and again."""
        pause = 0.0
        while not self._stopping.wait(pause):
            with self._starting:
                if self._stopping.is_set():
                    return
                process = self._processes[name] = subprocess.Popen(  # noqa: S603 - our own
                    self._command(name), env=_environment(), stdin=subprocess.DEVNULL, start_new_session=True
                )
            began = time.monotonic()
            status = process.wait()
            if self._stopping.is_set():
                return
            steady = time.monotonic() - began > STEADY
            pause = 0.0 if steady else min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            if status != BAD_INPUT:  # else it has said itself what is wrong
                self._tell(name, status, pause)

    def _command(self, name: str) -> list[str]:
        common = ["--log", str(self.log), "--tags", str(self._tags), "--parent", str(os.getpid())]
        return [sys.executable, "-m", f"examples.lamp.{name}", *common, *self._options.get(name, ())]

    def _tell(self, name: str, status: int, pause: float) -> None:
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"failed (status {status})"
        when = f"in {pause:.3g} seconds" if pause else "now"
        why = f"The {name} {how}. It is started again {when}; nothing is lost."
        try:
            with Log(self.log) as log:
                log.append("trouble", {"process": name, "why": why})
        except InputError as error:
            sys.stderr.write(f"{why} {error}\n")

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        self._stopping.set()
        with self._starting:
            processes = list(self._processes.values())
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(GOODBYE)
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, which ends with this process. SQLite has one for every system."""
    with contextlib.closing(sqlite3.connect(folder / "running", timeout=0, check_same_thread=False)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise InputError(f"expected {folder} to be free, a lamp runs there already; stop it first") from error
        yield


def _environment() -> dict[str, str]:
    """Return the environment of a process: it finds this package, and computes on one core."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


def main() -> int:
    """Keep the processes of a folder running until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="holds the log and the model")
    parser.add_argument("--tags", type=Path, default=DEFAULT, help="the states of the switch, a TOML file")
    options = parser.parse_args()
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    try:
        with Supervisor(options.folder, options.tags):
            done.wait()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
