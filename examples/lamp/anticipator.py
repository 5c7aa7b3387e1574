"""The process that guesses what an utterance wants, and learns from what follows it.

It pairs flips with utterances (see `examples.lamp.pairing`) and writes the lessons. What it has to remember is in the
log: when it starts, it replays the utterances that may still wait. It does the same for an utterance that arrives late,
after the flip that answers it: what counts is when something was said, not when it was written down.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from examples.lamp.log import SETTINGS, Event, Log
from examples.lamp.pairing import Lesson, Pairing
from examples.lamp.predictor import Predictor
from examples.lamp.process import arguments, run
from examples.lamp.tags import Tags
from warmstart.errors import InputError

NAME = "anticipator"
PAIRED = ("said", "flip", "act")
KINDS = (*PAIRED, "trained")


class Anticipator:
    """Reads ``said``, ``flip``, ``act`` and ``trained``; writes ``guess`` and ``lesson``.

    Parameters
    ----------
    log : Log
    tags : Tags
    now : callable
        The clock by which silence is judged, in seconds, as that of the log.
    """

    def __init__(self, log: Log, tags: Tags, now: Callable[[], float] = time.time) -> None:
        self.log, self.tags, self.now = log, tags, now
        self.predictor = self._load(log.newest(("trained",)))
        end = log.position(NAME)
        times = [event.time for kind in PAIRED if (event := log.newest((kind,), end + 1))]
        self.newest = max(times, default=0.0)  # the time of the newest event that was dealt with
        with log.transaction():
            self.pairing = self._replay(self.newest, end)

    def step(self) -> bool:
        """Deal with the next event, or with windows that have ended; return whether there was anything."""
        event = self.log.next(NAME, KINDS)
        if event is None:
            return self._silence()
        guess = {}
        if event.kind == "trained":
            self.predictor = self._load(self.log.newest(("trained",)))
        elif event.kind == "said":  # before the transaction: nobody shall wait for a prediction
            guess = self._guess(event.body["text"])
        with self.log.transaction():
            if self.log.event(event.id):  # else it was forgotten meanwhile
                self._handle(event, guess)
            self.log.move(NAME, event.id)
        return True

    def _handle(self, event: Event, guess: dict[str, Any]) -> None:
        if event.kind == "trained":
            return
        if event.kind == "said":
            self.log.append("guess", guess, event.id)
        if event.time < self.newest:
            self.pairing = self._replay(event.time, event.id)
        else:
            self._write(self._pair(self.pairing, event))
        self.newest = max(self.newest, event.time)

    def _silence(self) -> bool:
        if self.pairing.end >= self.now():
            return False
        with self.log.transaction():
            if self.log.next(NAME, KINDS) is None:  # all that happened until now is known
                self._write(self.pairing.passed(self.now()))
        return True

    def _replay(self, start: float, end: int) -> Pairing:
        """Pair anew all that can touch what happened from ``start``, up to the event ``end``; mend the lessons."""
        pairing = Pairing(self.tags.none, self.log.setting("window"))
        lessons: dict[int, Lesson] = {}
        for event in self.log.since(start - SETTINGS["window"].high, PAIRED):
            if event.id <= end:
                lessons |= {lesson.utterance: lesson for lesson in self._pair(pairing, event)}
        lessons |= {lesson.utterance: lesson for lesson in pairing.passed(self.newest)}
        self._write(lessons.values())
        return pairing

    def _pair(self, pairing: Pairing, event: Event) -> list[Lesson]:
        lessons = pairing.passed(event.time)
        if event.kind == "said":
            (guess,) = self.log.about(event.id, ("guess",))
            pairing.said(event.id, event.time, self._state_before(event), guess.body["window"])
        elif event.kind == "act" and event.about is not None:
            pairing.acted(event.about, event.body["tag"])
        elif event.kind == "flip":
            for utterance in pairing.waiting:
                if self.log.event(utterance) is None:  # forgotten
                    pairing.forget(utterance)
            lessons += [lesson] if (lesson := pairing.flip(event.body["tag"], event.time)) else []
        return lessons

    def _state_before(self, said: Event) -> str:
        """Return the state of the lamp when somebody began to type or to speak."""
        first = said
        while first.about is not None and (earlier := self.log.event(first.about)):
            first = earlier
        return self.log.lamp(self.tags, before=first.id)

    def _write(self, lessons: Iterable[Lesson]) -> None:
        """Write the lessons that are new."""
        for lesson in lessons:
            body = {"tag": lesson.tag, "reason": lesson.reason}
            known = self.log.about(lesson.utterance, ("lesson",))
            if known and known[-1].body.get("by") == "page":
                continue  # what was set right by hand stands
            if self.log.event(lesson.utterance) and not (known and known[-1].body == body):
                self.log.append("lesson", body, lesson.utterance)

    def _guess(self, text: str) -> dict[str, Any]:
        start = time.perf_counter()
        guess = self.predictor.predict(text) if self.predictor else None
        ms = 1000 * (time.perf_counter() - start)
        sure = guess.probabilities if guess else {self.tags.none: 1.0}
        probabilities = {name: sure.get(name, 0.0) for name in self.tags.names}
        tag = max(probabilities, key=probabilities.__getitem__)
        return {
            "probabilities": probabilities,
            "tag": tag,
            "act": tag != self.tags.none and probabilities[tag] >= self.log.setting("threshold"),
            "ms": ms,
            "why": {"words": guess.words if guess else [], "sentences": guess.sentences if guess else []},
            "window": self.log.setting("window"),
        }

    def _load(self, trained: Event | None) -> Predictor | None:
        if trained is None or trained.body["names"] != list(self.tags.names):
            return None
        try:
            return Predictor.load(self.log.path.with_name(trained.body["model"]))
        except (OSError, InputError) as error:
            why = f"There is no model to guess with: {error}. The trainer writes a new one with the next lesson."
            self.log.append("trouble", {"process": NAME, "why": why})
            return None


def prepare(log: Log, tags: Tags, _options: argparse.Namespace) -> Callable[[], bool]:
    """Return the step of the process."""
    return Anticipator(log, tags).step


if __name__ == "__main__":
    sys.exit(run(arguments("Guess what an utterance wants, and pair flips with utterances."), prepare))
