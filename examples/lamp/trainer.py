"""The process that learns: whenever there are lessons, it counts, solves, and hands over a new model.

All lessons that wait are learnt at once. "Forget that" takes an utterance out of the model first, then out of the log.
When it starts, it reads the lessons from the log; a model that is missing, or not the one of the log, is solved anew.
"""

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from examples.lamp.log import TRAINER, Event, Log
from examples.lamp.model import LampModel, warm_up
from examples.lamp.process import arguments, run
from examples.lamp.tags import Tags

NAME = TRAINER
KINDS = ("lesson", "forget")
MODEL = "lamp.model"  # the name of the file, beside the log


class Trainer:
    """Reads ``lesson`` and ``forget``, writes the model and ``trained``."""

    def __init__(self, log: Log, tags: Tags) -> None:
        self.log, self.tags, self.path = log, tags, log.path.with_name(MODEL)
        for half in self.path.parent.glob(f".{MODEL}.*"):  # what a trainer that was killed has left
            shutil.rmtree(half)
        warm_up()
        self.learnt: set[int] = set()
        self.unknown: set[str] = set()
        self.model = LampModel(tags.names, tags.none)
        self._learn(self._earlier())
        self.stale = not self._is_current()

    def step(self) -> bool:
        """Learn and forget all that waits, and write the model; return whether there was anything."""
        events = self.log.after(self.log.position(NAME), KINDS)
        if not events and not self.stale:
            return False
        start = time.perf_counter()
        forgotten = {event.about for event in events if event.kind == "forget" and event.about is not None}
        self._learn(event for event in events if event.kind == "lesson")
        for utterance in forgotten & self.learnt:
            self.model.forget(utterance)
        self.learnt -= forgotten
        self.model.solve()
        self.model.save(self.path)
        seconds = time.perf_counter() - start
        for utterance in forgotten:  # if it is killed before the position moves, all this is done again
            self.log.erase(utterance)
        with self.log.transaction():
            self.log.append("trained", self._body(1000 * seconds))
            if events:
                self.log.move(NAME, events[-1].id)
        self.stale = False
        return True

    def _learn(self, lessons: Iterable[Event]) -> None:
        unknown = set()
        for lesson in lessons:
            said = None if lesson.about is None else self.log.event(lesson.about)
            if said and (tag := lesson.body["tag"]) in self.tags.names:
                self.model.learn(said.id, said.body["text"], tag)
                self.learnt.add(said.id)
            elif said:  # else it was forgotten meanwhile
                unknown.add(tag)
        if unknown - self.unknown:
            states = " and ".join(sorted(unknown))
            why = f"The switch no longer has the state {states}: what was learnt of it is left out."
            self.log.append("trouble", {"process": NAME, "why": why})
        self.unknown |= unknown

    def _earlier(self) -> Iterator[Event]:
        """Yield the lessons that were dealt with before."""
        end, event = self.log.position(NAME), 0
        while batch := [lesson for lesson in self.log.after(event, ("lesson",)) if lesson.id <= end]:
            yield from batch
            event = batch[-1].id

    def _is_current(self) -> bool:
        trained = self.log.newest(("trained",))
        if trained is None or trained.body["names"] != list(self.tags.names) or not self.path.is_file():
            return False
        return bool(trained.body["digest"] == self._digest())

    def _digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _body(self, ms: float) -> dict[str, object]:
        names = list(self.tags.names)
        return {"lessons": len(self.learnt), "ms": ms, "model": MODEL, "digest": self._digest(), "names": names}


def prepare(log: Log, tags: Tags, _options: argparse.Namespace) -> Callable[[], bool]:
    """Return the step of the process."""
    return Trainer(log, tags).step


if __name__ == "__main__":
    sys.exit(run(arguments("Learn: count the lessons, solve, and write the model."), prepare))
