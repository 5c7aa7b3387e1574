"""The lamp that learns: a person with a switch teaches it with the sentences of one source, others test it.

Sentences of one source are much alike, so an order of all sources is too easy. The settings of the lamp and of logistic
regression are chosen with the validation sentences of the other sources, as many tries for each; the test has the rest.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import render
from benchmarks.harness import Results, Workers
from benchmarks.lamp_section import AT, ERRORS, ORDERS, SHOWN, SOURCES, section
from examples.lamp.baselines import Keywords, Learner, LogisticRegression, Majority
from examples.lamp.model import LampModel
from examples.lamp.simulator import THRESHOLD, Lamp, Said, actions, interactions, misheard, read, scored
from examples.lamp.stress import stress
from examples.lamp.tags import Tags
from warmstart.progress import Progress

LAMPS = [{"sharpness": sharpness, "ridge": ridge} for sharpness in (0.5, 1.0, 2.0, 4.0) for ridge in (0.1, 0.3)]
REGRESSIONS = [{"strength": c, "balanced": balanced} for c in (0.3, 1.0, 3.0, 10.0) for balanced in (False, True)]
PHRASES = ["abracadabra", "mehr licht", "rise and shine", "开灯", "💡", "movie night"]
KILLS = {"interactions": 1000, "kill_every": 20}
Row = dict[str, str]


def streams(
    rows: Sequence[Row], source: str, order: int, errors: float = 0.0, *, validate: bool = False
) -> tuple[list[Said], list[Said]]:
    """Return the utterances of a source in a random order, and those of the other sources to test with."""
    rng = random.Random(order)  # noqa: S311 - nothing secret
    own = [row for row in rows if row["source"] == source]
    rng.shuffle(own)
    others = [row for row in rows if row["source"] != source and (row["split"] == "valid") == validate]
    heard = [[Said(misheard(row["text"], errors, rng), row["label"]) for row in part] for part in (own, others)]
    return heard[0], heard[1]


def chosen(
    rows: Sequence[Row], tags: Tags, tries: Sequence[dict[str, Any]], make: Callable[..., Learner]
) -> list[float]:
    """Return for each setting the mean macro F1 on validation sentences, taught what was meant."""
    means = []
    for settings in tries:
        found = []
        for source in SOURCES:
            for order in ORDERS[:3]:
                stream, test = streams(rows, source, order, validate=True)
                arm = make(tags, **settings)
                for i, said in enumerate(stream[: max(SHOWN)], start=1):
                    arm.learn(i, said.text, said.tag)
                    if i in SHOWN:
                        found.append(_f1(arm, test, tags))
        means.append(statistics.mean(found))
    return means


def _f1(arm: Learner, test: Sequence[Said], tags: Tags) -> float:
    return scored([said.tag for said in test], arm.tags([said.text for said in test]), tags).macro_f1


def played(
    rows: Sequence[Row], tags: Tags, source: str, order: int, errors: float, settings: dict[str, Any], at: Sequence[int]
) -> dict[str, Any]:
    """Play one order of a source to the lamp; teach the baselines the same lessons; test all of them at some points."""
    stream, test = streams(rows, source, order, errors)
    lamp = Lamp(tags)
    arms: dict[str, Learner] = {
        "lamp": lamp,
        "logistic regression": LogisticRegression(tags),
        "logistic regression, chosen": LogisticRegression(tags, **settings),
        "keywords": Keywords(tags),
        "majority": Majority(tags),
    }
    curves: dict[str, list[float]] = {name: [] for name in arms}
    steps = []
    for step in interactions(stream[: max(at)], tags, lamp.model, order):
        steps.append(step)
        for lesson in step["lessons"]:
            for name in [*arms][1:]:
                arms[name].learn(lesson.utterance, stream[lesson.utterance].text, lesson.tag)
        if len(steps) in at:
            for name, arm in arms.items():
                curves[name].append(_f1(arm, test, tags))
    done = actions(steps)
    return {"curves": curves, **done["actions"], "first": done["first_right_action"]}


def novel(tags: Tags, phrases: Sequence[str], lessons: Sequence[Said]) -> dict[str, int]:
    """Return how often each new phrase has to be taught before the lamp acts on it, after some lessons."""
    found = {}
    for phrase in phrases:
        model = LampModel(tags.names, tags.none)
        for i, said in enumerate(lessons):
            model.learn(i, said.text, said.tag)
        times, tag = 0, tags.states[0].name
        while (guess := model.predict(phrase)).tag != tag or guess.probabilities[tag] < THRESHOLD:
            model.learn(len(lessons) + times, phrase, tag)
            times += 1
        found[phrase] = times
    return found


def killed(interactions: int, kill_every: int) -> dict[str, Any]:
    """Interact with the processes of the application while they are killed, see `examples.lamp.stress`."""
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        return stress(Path(folder, "lamp"), interactions, kill_every)


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Choose the settings, play every order of every source, and kill processes."""
    results = Results(None if quick else docs / "results" / "lamp.jsonl", __name__, progress=progress)
    tags, rows = Tags.read(), read(data / "lamp" / "lamp.tsv", Tags.read())
    if quick:
        quick_runs = {"quick": played(rows, tags, next(iter(SOURCES)), 0, 0.1, REGRESSIONS[0], AT[:1])}
        return {"runs": quick_runs, "killed": killed(20, 10)}
    with Workers(results, progress) as workers:
        tries = {"lamp": (LAMPS, Lamp), "logistic regression": (REGRESSIONS, LogisticRegression)}
        found = {
            name: workers.do({"choose": name, "tries": settings}, chosen, rows, tags, settings, make)
            for name, (settings, make) in tries.items()
        }
        best = {name: tries[name][0][max(range(len(means)), key=means.__getitem__)] for name, means in found.items()}
        keys = [(source, errors, order) for source in SOURCES for errors in ERRORS for order in ORDERS]
        jobs = [
            partial(
                workers.do,
                {"source": source, "errors": errors, "order": order, **best["logistic regression"]},
                played, rows, tags, source, order, errors, best["logistic regression"], AT,
            )
            for source, errors, order in keys
        ]  # fmt: skip
        runs = dict(zip(keys, workers.together(jobs), strict=True))
        taught = streams(rows, "xliuhw/NLU-Evaluation-Data", order=0)[0][:100]
        new = workers.do({"new phrases": PHRASES, "lessons": len(taught)}, novel, tags, PHRASES, taught)
    costs = results.do({"killed": KILLS}, partial(killed, **KILLS))
    choices = {name: (best[name], max(means)) for name, means in found.items()}
    render.write(docs, "lamp", "A lamp that learns", *section(docs, choices, runs, new, costs), results)
    return {"runs": {" ".join(map(str, key)): run for key, run in runs.items()}, "killed": costs, "new": new}
