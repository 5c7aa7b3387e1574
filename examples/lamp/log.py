"""The durable log of all that happens: one SQLite file, which is also the queue between the processes.

A process reads the events after its own position, and writes what it makes of them and its new position in one
transaction. So it can be killed at any moment: nothing is lost, and nothing is done twice.

| kind | about | body | written by |
|---|---|---|---|
| `typed` | the sound, if it was spoken | text, via: "typed", "speech" or "file" | page, command line, transcriber |
| `sound` | | the recording, as WAV bytes, until it is transcribed | page |
| `said` | typed | text, via; its id is the number of the utterance, its time that of typing or speaking | recorder |
| `refused` | typed | why | recorder |
| `flip` | | tag: the person has set the switch | page |
| `guess` | said | probabilities, tag, act, ms, why | anticipator |
| `act` | said | tag: the lamp was moved because of a guess | operator |
| `lesson` | said | tag, reason; the newest of an utterance counts | anticipator |
| `trained` | | lessons, ms, model: the name of its file | trainer |
| `forget` | said | | page |
| `trouble` | | process, why: in plain words | all |
"""

import contextlib
import json
import sqlite3
import time as clock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.lamp.tags import Tags
from warmstart.errors import InputError

KINDS = frozenset(
    ["typed", "sound", "said", "refused", "flip", "guess", "act", "lesson", "trained", "forget", "trouble"]
)
TRAINER = "trainer"  # the process that takes forgotten text out of the model and the log
PATIENCE = 60.0  # seconds to wait for another process that writes; each writes for milliseconds
GLANCE = 0.005  # seconds between two looks whether another process has written; a look takes microseconds
APPLICATION = 0x4C616D70  # "Lamp": marks the file
SCHEMA = (
    "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,"
    " about INTEGER, body TEXT NOT NULL, sound BLOB)",
    "CREATE INDEX abouts ON events (about)",
    "CREATE INDEX times ON events (time)",
    "CREATE TABLE positions (process TEXT PRIMARY KEY, event INTEGER NOT NULL)",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    f"PRAGMA application_id = {APPLICATION}",
)


class Event(NamedTuple):
    """A row of the log."""

    id: int
    time: float
    kind: str
    about: int | None
    body: dict[str, Any]
    sound: bytes | None


class Setting(NamedTuple):
    """A number that the person can change: its value at the start, and its range."""

    start: float
    low: float
    high: float


SETTINGS = {
    "threshold": Setting(0.6, 0.0, 1.0),  # the lamp acts by itself if it is at least so sure
    "window": Setting(10.0, 0.2, 60.0),  # seconds after an utterance in which a flip belongs to it
}


class Log:
    """A connection to the log, for one thread. It creates the file if there is none.

    Raises
    ------
    InputError
        The file is damaged, is no log, or cannot be opened. It is left as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained():
            _check(self.path)
            self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "temp_store = MEMORY"):
                self._database.execute(f"PRAGMA {pragma}")
            with self.transaction():
                if self._execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    for statement in SCHEMA:
                        self._execute(statement)
        self._version = -1

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all that the block writes, or nothing. Inside another transaction it is a part of that."""
        if self._database.in_transaction:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._execute("ROLLBACK")

    def append(
        self,
        kind: str,
        body: dict[str, Any] | None = None,
        about: int | None = None,
        sound: bytes | None = None,
        time: float | None = None,
    ) -> int:
        """Write an event durably and return its number. Its time is now, unless it is given."""
        if kind not in KINDS:
            raise ValueError(f"expected one of the kinds {', '.join(sorted(KINDS))}, got {kind!r}")
        with self.transaction():  # the time is taken inside, so that numbers and times have one order
            row = (clock.time() if time is None else time, kind, about, json.dumps(body or {}), sound)
            cursor = self._execute("INSERT INTO events (time, kind, about, body, sound) VALUES (?, ?, ?, ?, ?)", *row)
        return int(cursor.lastrowid or 0)

    def after(self, event: int, kinds: Sequence[str], limit: int = 1000) -> list[Event]:
        """Return the oldest events of these kinds after the given number."""
        return self._events(f"id > ? AND {_among(kinds)} ORDER BY id LIMIT ?", event, *kinds, limit)

    def since(self, time: float, kinds: Sequence[str]) -> list[Event]:
        """Return the events of these kinds from a time on, in the order of their times."""
        return self._events(f"time >= ? AND {_among(kinds)} ORDER BY time, id", time, *kinds)

    def newest(self, kinds: Sequence[str], before: int = 2**62) -> Event | None:
        """Return the newest event of these kinds, before the given number."""
        return next(iter(self._events(f"id < ? AND {_among(kinds)} ORDER BY id DESC LIMIT 1", before, *kinds)), None)

    def event(self, number: int) -> Event | None:
        """Return the event of this number, or None if it was erased."""
        return next(iter(self._events("id = ?", number)), None)

    def about(self, number: int, kinds: Sequence[str]) -> list[Event]:
        """Return the events of these kinds about an event, the oldest first."""
        return self._events(f"about = ? AND {_among(kinds)} ORDER BY id", number, *kinds)

    def position(self, process: str) -> int:
        """Return the number of the last event that a process has dealt with."""
        row = self._execute("SELECT event FROM positions WHERE process = ?", process).fetchone()
        return int(row[0]) if row else 0

    def move(self, process: str, event: int) -> None:
        """Move the position of a process forward, or to 0: it begins anew.

        Raises
        ------
        InputError
            It is there already: another process of this name works on the same log.
        """
        with self.transaction():
            if 0 < event <= self.position(process):
                raise InputError(f"expected one {process} for {self.path}, got two; stop one of them")
            self._execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", process, event)

    def next(self, process: str, kinds: Sequence[str]) -> Event | None:
        """Return the next event after the position of a process, without moving it."""
        return next(iter(self.after(self.position(process), kinds, 1)), None)

    def step(self, process: str, kinds: Sequence[str], handle: Callable[[Event], None]) -> bool:
        """Let ``handle`` deal with the next event, in one transaction with the move of the position.

        Others cannot write meanwhile: long work belongs before the step, see `next`. It returns whether there was an
        event.
        """
        if self.next(process, kinds) is None:
            return False
        with self.transaction():
            if (event := self.next(process, kinds)) is None:
                return False
            handle(event)
            self.move(process, event.id)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until another connection has written since the last wait; return False when the time is over."""
        end = clock.monotonic() + seconds
        while True:
            (version,) = self._execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version = version
                return True
            if (rest := end - clock.monotonic()) <= 0:
                return False
            clock.sleep(min(GLANCE, rest))

    def blank(self, sound: int) -> None:
        """Take the recording out of a ``sound`` event, once it is transcribed."""
        with self.transaction():
            self._execute("UPDATE events SET sound = NULL WHERE id = ?", sound)

    def erase(self, utterance: int) -> None:
        """Take an utterance out of the files of the log, with all events about it and those that it came from.

        That it moved the lamp stays, without the utterance; so does a ``forget``, which has only its number. The file
        is written anew and the write-ahead log is emptied, so that no byte of the text stays behind in them.
        """
        with self.transaction():
            chain = [utterance]
            while (event := self.event(chain[-1])) and event.about is not None:
                chain.append(event.about)
            for number in chain:
                self._execute("UPDATE events SET about = NULL WHERE kind = 'act' AND about = ?", number)
                self._execute("DELETE FROM events WHERE kind <> 'forget' AND (id = ? OR about = ?)", number, number)
        self._execute("VACUUM")
        if self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise InputError(f"expected {self.path} to be free within {PATIENCE:.0f} seconds; close what reads it")

    def setting(self, name: str) -> float:
        """Return the value of a setting."""
        row = self._execute("SELECT value FROM settings WHERE name = ?", name).fetchone()
        return float(json.loads(row[0])) if row else SETTINGS[name].start

    def set(self, name: str, value: float) -> None:
        """Change a setting.

        Raises
        ------
        InputError
            There is no such setting, or the value is not a number of its range.
        """
        if name not in SETTINGS:
            raise InputError(f"expected one of the settings {', '.join(SETTINGS)}, got {name!r}")
        _, low, high = SETTINGS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InputError(f"expected as {name} a number from {low:g} to {high:g}, got {value!r}")
        with self.transaction():
            self._execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, json.dumps(value))

    def lamp(self, tags: Tags, before: int = 2**62) -> str:
        """Return the state of the lamp, or the one that it had before the event of this number."""
        newest = self.newest(("flip", "act"), before)
        return newest.body["tag"] if newest and newest.body["tag"] in tags.names[:-1] else tags.start

    def _events(self, condition: str, *values: object) -> list[Event]:
        rows = self._execute(f"SELECT id, time, kind, about, body, sound FROM events WHERE {condition}", *values)  # noqa: S608 - our own
        return [Event(i, time, kind, about, json.loads(body), sound) for i, time, kind, about, body, sound in rows]

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        with self._explained():
            return self._database.execute(statement, values)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # of `_check`: none
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                problem, way = str(error).splitlines()[-1], "move it away to begin anew, or restore a copy"
                message = f"expected a log of the lamp, {self.path} is damaged ({problem}). It is left as it is: {way}"
                raise InputError(message) from error
            if code == sqlite3.SQLITE_ERROR:  # a mistake in a statement
                raise
            raise InputError(f"expected a log that can be written, got {self.path}: {error}") from error


def _check(path: Path) -> None:
    """Refuse a damaged file, or one of another kind, before anything is written to it."""
    if not path.exists() or not path.stat().st_size:
        return
    address = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, timeout=PATIENCE, uri=True)) as database:
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and database.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
            raise InputError(f"expected a log of the lamp, {path} is another SQLite database; name another file")


def _among(kinds: Sequence[str]) -> str:
    return f"kind IN ({', '.join('?' * len(kinds))})"
