"""Interact with the running processes while one of them is killed now and then, and count what is lost.

python -m examples.lamp.stress --interactions 1000 --kill-every 20 --json

An interaction is an utterance, then a flip of the switch or silence. What must come of it is known from the
interactions alone. It is compared with the log when the processes have dealt with everything.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from examples.lamp.log import Log
from examples.lamp.process import BAD_INPUT
from examples.lamp.supervisor import Supervisor
from warmstart.errors import InputError

WINDOW = 0.5  # seconds
PAUSE = 0.03  # seconds after an utterance, and after a flip or silence
PATIENCE = 60.0  # seconds that the processes have at the end
HABITS = (
    ("light please", "on"),
    ("I sit down to read", "on"),
    ("make it dark", "off"),
    ("good night", "off"),
    ("what a day", None),
)


class Interaction(NamedTuple):
    """What was typed, as an event of the log, the flip that followed, and whether it was refused."""

    typed: int
    flip: str | None
    refused: bool
    ms: float


def interact(log: Log, count: int, chance: random.Random) -> Iterator[Interaction]:
    """Say something, and flip the switch or not; again and again."""
    for number in range(count):
        words, flip = chance.choice(HABITS)
        typed = log.append("typed", {"text": f"{words} {number}", "via": "typed"})
        time.sleep(PAUSE)
        start, refused = time.perf_counter(), False
        if flip is not None:
            try:
                log.append("flip", {"tag": flip})
            except InputError:
                refused = True
        yield Interaction(typed, flip, refused, 1000 * (time.perf_counter() - start))
        time.sleep(PAUSE)


def stress(folder: Path, count: int, kill_every: int, seed: int = 0) -> dict[str, float]:
    """Interact and kill in a new folder; return what was lost, doubled or refused, and how long it took."""
    chance, start = random.Random(seed), time.monotonic()  # noqa: S311 - no secret
    done: list[Interaction] = []
    kills = 0
    with Supervisor(folder) as supervisor, Log(supervisor.log) as log:
        log.set("window", WINDOW)
        for interaction in interact(log, count, chance):
            done.append(interaction)
            if len(done) % kill_every == 0 and (pids := supervisor.pids()):
                time.sleep(chance.uniform(0, PAUSE))
                os.kill(pids[chance.choice(sorted(pids))], signal.SIGKILL)
                kills += 1
        _drain(log, count)
        found = {**_found(log, done), **_costs(log, supervisor.pids())}
    slowest, seconds = max(interaction.ms for interaction in done), time.monotonic() - start
    return {**found, "kills": kills, "slowest_flip_ms": round(slowest, 1), "seconds": round(seconds, 1)}


def _drain(log: Log, count: int) -> None:
    """Wait until each utterance has been guessed, its window has ended, and all lessons are learnt.

    What is missing after `PATIENCE` is lost.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        guesses = log.newest(("guess",))
        done = guesses and len(log.after(0, ("guess",), 2**31)) == count and time.time() > guesses.time + 2 * WINDOW
        if done and not any(log.next(name, ("said", "flip", "act", "lesson")) for name in ("anticipator", "trainer")):
            return
        log.wait(0.1)


def _found(log: Log, done: list[Interaction]) -> dict[str, float]:
    """Compare the log with the interactions."""
    parts = sum((_traces(log, interaction) for interaction in done), Counter[str]())
    trained = log.newest(("trained",))
    learnt, flips = trained.body["lessons"] if trained else 0, sum(interaction.flip is not None for interaction in done)
    more_flips = len(log.after(0, ("flip",), 2**31)) - flips
    missing = 4 * len(done) - parts["logged"] - parts["guessed"] - parts["lessons"] - learnt - 2 * parts["unseen_acts"]
    names = ("logged", "guessed", "lessons", "unseen_acts", "wrong_lessons")
    return {
        "said": len(done),
        **{name: parts[name] for name in names},
        "learnt": learnt,
        "flips": flips,
        "flips_refused": sum(interaction.refused for interaction in done),
        "lost": missing + max(0, -more_flips),
        "doubled": parts["doubled"] + max(0, more_flips),
        "restarts": len(log.after(0, ("trouble",), 2**31)),
    }


def _traces(log: Log, interaction: Interaction) -> Counter[str]:
    """Count what came of one interaction, and what is wrong with it."""
    said = log.about(interaction.typed, ("said",))
    if not said:
        return Counter()
    guesses, acts, lessons = (log.about(said[0].id, (kind,)) for kind in ("guess", "act", "lesson"))
    kept = [("kept", act.body["tag"]) for act in acts] or [("silence", "none")]
    right = kept if interaction.flip is None else [("flip", interaction.flip), ("correction", "none")]
    taught = [(lesson.body["reason"], lesson.body["tag"]) for lesson in lessons]
    again = sum(first == second for first, second in itertools.pairwise(taught))
    return Counter(
        logged=1,
        guessed=bool(guesses),
        lessons=bool(lessons),
        unseen_acts=bool(acts and interaction.flip is None and not lessons),  # the lamp had this state already
        wrong_lessons=bool(taught and taught[-1] not in right),
        doubled=again + sum(max(0, len(events) - 1) for events in (said, guesses, acts)),
    )


def _costs(log: Log, pids: Mapping[str, int]) -> dict[str, float]:
    """Return milliseconds of updates and predictions, and the memory of anticipator and trainer on Linux."""
    costs: dict[str, float] = {}
    for name, kind in (("update", "trained"), ("guess", "guess")):
        ms = sorted(event.body["ms"] for event in log.after(0, (kind,), 2**31)) or [0.0]
        costs |= {f"{name}_ms": ms[len(ms) // 2], f"slow_{name}_ms": ms[len(ms) * 99 // 100]}
    status = [Path("/proc", str(pids[name]), "statm") for name in ("anticipator", "trainer") if name in pids]
    pages = [int(path.read_text("ascii").split()[1]) for path in status if path.exists()]
    memory = {"memory_mib": sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20} if len(pages) == 2 else {}
    return {name: round(value, 1) for name, value in (costs | memory).items()}


def main() -> int:
    """Kill processes during interactions and report what was lost; the status is 1 if anything was."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--interactions", type=int, default=1000)
    parser.add_argument("--kill-every", type=int, default=20, help="interactions from kill to kill")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    options = parser.parse_args()
    if options.interactions < 1 or options.kill_every < 1:
        sys.stderr.write("expected at least 1 interaction, and at least 1 from kill to kill\n")
        return BAD_INPUT
    with tempfile.TemporaryDirectory() as folder:
        found = stress(Path(folder, "lamp"), options.interactions, options.kill_every)
    lines = [json.dumps(found)] if options.json else [f"{name.replace('_', ' ')}: {found[name]:g}" for name in found]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(found[name] for name in ("wrong_lessons", "flips_refused", "lost", "doubled")))


if __name__ == "__main__":
    sys.exit(main())
