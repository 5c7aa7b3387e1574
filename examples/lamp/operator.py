"""The process that works the lamp: it acts on sure guesses, and lets a real lamp follow.

A person is always right: there is no act if the switch was set after the utterance, or if the guess comes so late that
nobody would know why the lamp moves. The switch itself needs no operator; its flips are in the log.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from examples.lamp.log import Event, Log
from examples.lamp.process import arguments, run
from examples.lamp.tags import Tags

NAME = "operator"
KINDS = ("flip", "guess")


class Operator:
    """Reads ``flip`` and ``guess``, writes ``act``, and tells a real lamp the newest state, if there is one."""

    def __init__(self, log: Log, tags: Tags, drive: Callable[[str], None] | None = None) -> None:
        self.log, self.tags, self.drive = log, tags, drive
        self._tell()

    def step(self) -> bool:
        """Deal with all that waits: act on each guess that may, then tell the lamp only the newest state."""
        with self.log.transaction():
            events = self.log.after(self.log.position(NAME), KINDS)
            for event in events:
                if event.kind == "guess" and event.about is not None and self._may(event, event.about):
                    self.log.append("act", {"tag": event.body["tag"]}, event.about)
            if events:
                self.log.move(NAME, events[-1].id)
        if events:
            self._tell()
        return bool(events)

    def _may(self, guess: Event, utterance: int) -> bool:
        said, flip = self.log.event(utterance), self.log.newest(("flip",))
        if not guess.body["act"] or said is None:  # unsure, or forgotten meanwhile
            return False
        return time.time() <= said.time + guess.body["window"] and not (flip and flip.time > said.time)

    def _tell(self) -> None:
        if self.drive:
            self.drive(self.log.lamp(self.tags))


def prepare(log: Log, tags: Tags, options: argparse.Namespace) -> Callable[[], bool]:
    """Return the step of the process; connect it with a real lamp if the options name one."""
    return Operator(log, tags, _driver(log.path, tags, options)).step


def _driver(path: Path, tags: Tags, options: argparse.Namespace) -> Callable[[str], None] | None:
    given = (options.mqtt, options.home_assistant, options.entity, options.token)
    if not any(given):
        return None
    from examples.lamp.bridges import Driver, open_bridge

    bridge = open_bridge(tags, *given)

    def report(why: str) -> None:
        with Log(path) as log:  # the driver has a thread of its own
            log.append("trouble", {"process": NAME, "why": why})

    return Driver(bridge, report).__enter__().set if bridge else None  # its thread ends with the process


if __name__ == "__main__":
    parser = arguments("Work the lamp: act on sure guesses, and let a real lamp follow.")
    parser.add_argument("--home-assistant", metavar="URL", help="address of Home Assistant")
    parser.add_argument("--entity", help="the lamp there, such as light.kitchen")
    parser.add_argument("--token", type=Path, help="file with an access token (else WARMSTART_LAMP_TOKEN)")
    parser.add_argument("--mqtt", metavar="HOST:PORT/TOPIC", help="broker, and topic where the lamp listens")
    sys.exit(run(parser, prepare))
