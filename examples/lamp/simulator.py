"""A person with a switch, played from a file of utterances with the tags that are meant.

The person says a sentence and watches. If the lamp does what is meant, nothing happens. If not, the person flips the
switch after a few seconds: sometimes the wrong way, which is set right at once, and sometimes too late, when nobody
knows any more what it belongs to. The clock is the simulator's own. Before a sentence that asks for a state, the lamp
has another one, so that there is something to do.
"""

import csv
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.lamp.baselines import Keywords, Learner, LogisticRegression, Majority
from examples.lamp.log import SETTINGS
from examples.lamp.model import LampModel, warm_up
from examples.lamp.pairing import Lesson, Pairing
from examples.lamp.tags import Tags
from warmstart.errors import InputError
from warmstart.progress import Progress

WINDOW, THRESHOLD = SETTINGS["window"].start, SETTINGS["threshold"].start  # those of the application
PAUSE = 30.0  # seconds between two utterances
WRONG, LATE = 0.03, 0.05  # shares of the flips
CURVE, SPAN = 10, 100  # points of the curve, and interactions that each looks back to


class Said(NamedTuple):
    """An utterance, and the tag that is meant."""

    text: str
    tag: str


class Scores(NamedTuple):
    """How well tags are told: the mean of the F1 of each tag, the share of right ones, and both sides of each F1."""

    macro_f1: float
    accuracy: float
    precision: dict[str, float]
    recall: dict[str, float]


class Lamp:
    """The model as a `Learner`."""

    def __init__(self, tags: Tags, **settings: float) -> None:
        self.model = LampModel(tags.names, tags.none, **settings)

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Add a lesson, or give one another tag."""
        self.model.learn(utterance, text, tag)

    def tags(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable tag of each text."""
        predictor = self.model.solve()
        return [predictor.predict(text).tag for text in texts]


def read(path: Path, tags: Tags) -> list[dict[str, str]]:
    """Read a table with the columns ``text`` and ``label``, separated by tabs; others are kept.

    Raises
    ------
    InputError
        The file cannot be read, a column is missing, or a label is no tag. Names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a text file with tabs, got {path}: {error}") from error
    for number, row in enumerate(rows, start=2):
        if not isinstance(row.get("text"), str) or row.get("label") not in tags.names:
            raise InputError(
                f"{path}, line {number}: expected columns text and label, and as label one of "
                f"{', '.join(tags.names)}, got {dict(row)}"
            )
    if not rows:
        raise InputError(f"{path}: expected lines of text and label under a line with these names, got none")
    return rows


def misheard(text: str, share: float, rng: random.Random) -> str:
    """Return a text as a recogniser might have it: so many of the words are dropped, swapped with the next or misspelt.

    Examples
    --------
    >>> misheard("turn on the light in the kitchen", 0.5, random.Random(1))
    'the on in light kitchen'
    """
    out, words = list[str](), text.split()
    for i, word in enumerate(words):
        if rng.random() >= share:
            out.append(word)
            continue
        kind = rng.randrange(3)
        if kind == 1 and i + 1 < len(words):
            words[i + 1], word = word, words[i + 1]
            out.append(word)
        elif kind and len(word) > 1:
            at = rng.randrange(len(word) - 1)
            out.append(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
    return " ".join(out)


def interactions(stream: Sequence[Said], tags: Tags, lamp: LampModel, seed: int) -> Iterator[dict[str, Any]]:
    """Play a stream. Yield for each utterance what was guessed and done, what it taught, and how long that took.

    The model is taught only by flips, as in the application, never by what is meant.
    """
    warm_up()
    rng, pairing, now = random.Random(seed), Pairing(tags.none, WINDOW), 0.0  # noqa: S311 - nothing secret
    states = [state.name for state in tags.states]
    state = tags.start
    for utterance, said in enumerate(stream):
        if said.tag == state:
            state = rng.choice([each for each in states if each != said.tag])
        began = time.perf_counter()
        guess = lamp.predict(said.text)
        predicted = time.perf_counter()
        pairing.said(utterance, now, state)
        before, acts = state, guess.tag != tags.none and guess.probabilities[guess.tag] >= THRESHOLD
        if acts:
            pairing.acted(utterance, guess.tag)
            state = guess.tag
        wanted = before if said.tag == tags.none else said.tag
        lessons = list[Lesson]()
        for after, tag in flips(state, wanted, states, rng):
            lessons += [*pairing.passed(now + after), *filter(None, [pairing.flip(tag, now + after)])]
            state = tag
        lessons += pairing.passed(now + PAUSE)
        taught = time.perf_counter()
        for lesson in lessons:
            lamp.learn(lesson.utterance, stream[lesson.utterance].text, lesson.tag)
        lamp.solve()
        yield {
            "guess": guess, "acts": acts, "right": guess.tag == said.tag, "lessons": lessons,
            "predict": predicted - began, "update": time.perf_counter() - taught,
        }  # fmt: skip
        now += PAUSE


def flips(state: str, wanted: str, states: Sequence[str], rng: random.Random) -> Iterator[tuple[float, str]]:
    """Yield when the person flips the switch, in seconds after the utterance, and to which state."""
    if state == wanted:
        return
    after = rng.uniform(1.0, 4.0)
    if rng.random() < LATE:
        yield WINDOW + after, wanted
    elif rng.random() < WRONG:
        wrong = rng.choice([each for each in states if each != wanted])
        yield after, wrong
        yield after + 2.0, wanted
    else:
        yield after, wanted


def play(
    path: Path, tags: Tags, source: str | None, seed: int, errors: float, baselines: bool,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Simulate the rows of a file in a random order; with a source, only its rows, and test on those of all others.

    Raises
    ------
    InputError
        The file cannot be used, or its rows are all of the source, or none is.
    """
    rows, rng = read(path, tags), random.Random(seed)  # noqa: S311 - nothing secret
    here = [row for row in rows if source is None or row.get("source") == source]
    others = [row for row in rows if source is not None and row.get("source") != source]
    if source is not None and not (here and others):
        known = ", ".join(sorted({str(row.get("source")) for row in rows}))
        raise InputError(f"{path}: expected a source among several in the column source, {known}, got {source!r}")
    rng.shuffle(here)
    stream, test = ([Said(misheard(row["text"], errors, rng), row["label"]) for row in part] for part in (here, others))
    return simulate(stream, tags, seed, test, baselines, progress)


def simulate(
    stream: Sequence[Said],
    tags: Tags,
    seed: int = 0,
    test: Sequence[Said] = (),
    baselines: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Play a stream to the lamp and to baselines, which are taught the same, and score their guesses.

    Other utterances, the test, are guessed but never taught, after each tenth of the stream.

    Returns
    -------
    dict
        ``interactions``; `Scores` of the last third; ``curve``: macro F1 of the last 100 interactions; ``actions``:
        those by itself, right and wrong; ``first_right_action``: number of the interaction; ``lessons``, and how many
        of them are not what was meant; ``milliseconds``, medians and maxima; ``test``: a curve, if there is one;
        ``baselines``: scores and curves of each.
    """
    if not stream:
        raise InputError("expected utterances to play, got none")
    lamp, arms = Lamp(tags), dict[str, Learner]()
    if baselines:
        arms = {"majority": Majority(tags), "keywords": Keywords(tags), "logistic_regression": LogisticRegression(tags)}
    guessed: dict[str, list[str]] = {name: [] for name in ("lamp", *arms)}
    tested: dict[str, list[dict[str, Any]]] = {name: [] for name in guessed}
    steps, taught = list[dict[str, Any]](), dict[int, str]()
    for step in interactions(stream, tags, lamp.model, seed):
        guessed["lamp"].append(step["guess"].tag)
        for name, arm in arms.items():
            guessed[name] += arm.tags([stream[len(steps)].text])
            for lesson in step["lessons"]:
                arm.learn(lesson.utterance, stream[lesson.utterance].text, lesson.tag)
        taught |= {lesson.utterance: lesson.tag for lesson in step["lessons"]}
        steps.append(step)
        if test and len(steps) in points(len(stream)):
            for name, arm in {"lamp": lamp, **arms}.items():
                f1 = scored([said.tag for said in test], arm.tags([said.text for said in test]), tags).macro_f1
                tested[name].append({"interactions": len(steps), "macro_f1": f1})
        if progress:
            progress("interactions", len(steps), len(stream))
    meant = [said.tag for said in stream]
    return {
        "interactions": len(stream),
        **_summary(meant, guessed["lamp"], tags),
        **actions(steps),
        "lessons": {"all": len(taught), "not_meant": sum(meant[u] != tag for u, tag in taught.items())},
        "milliseconds": {name: _times([step[name] for step in steps]) for name in ("predict", "update")},
        **({"test": tested["lamp"]} if test else {}),
        "baselines": {
            name: _summary(meant, guessed[name], tags) | ({"test": tested[name]} if test else {}) for name in arms
        },
    }


def actions(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many actions by itself were right and wrong, and the number of the first right one, from 1."""
    right = [i for i, step in enumerate(steps, start=1) if step["acts"] and step["right"]]
    wrong = sum(step["acts"] for step in steps) - len(right)
    return {"actions": {"right": len(right), "wrong": wrong}, "first_right_action": right[0] if right else None}


def points(n: int) -> list[int]:
    """Return where a curve of n interactions has its points: after each tenth."""
    return sorted({-(-i * n // CURVE) for i in range(1, CURVE + 1)})


def _summary(meant: Sequence[str], guessed: Sequence[str], tags: Tags) -> dict[str, Any]:
    """Return the scores of the last third, and a curve: macro F1 of the last `SPAN` interactions after each tenth."""
    n = len(meant)
    last = slice(n - max(1, n // 3), n)
    parts = [slice(max(0, end - SPAN), end) for end in points(n)]
    curve = [{"interactions": p.stop, "macro_f1": scored(meant[p], guessed[p], tags).macro_f1} for p in parts]
    return {**scored(meant[last], guessed[last], tags)._asdict(), "curve": curve}


def _times(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median": 1000 * ordered[len(ordered) // 2], "most": 1000 * ordered[-1]}


def scored(meant: Sequence[str], guessed: Sequence[str], tags: Tags) -> Scores:
    """Return the scores of guesses. A tag that is neither meant nor guessed is left out of the mean."""
    from sklearn.metrics import precision_recall_fscore_support

    names = [name for name in tags.names if name in {*meant, *guessed}]
    precision, recall, f1, _ = precision_recall_fscore_support(meant, guessed, labels=names, zero_division=0.0)
    right = sum(a == b for a, b in zip(meant, guessed, strict=True)) / len(meant)
    return Scores(float(f1.mean()), right, _by(names, precision), _by(names, recall))


def _by(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def told(result: dict[str, Any]) -> str:
    """Return what `simulate` found, to be read."""
    arms = {"lamp": result, **result["baselines"]}
    lines = [f"{'':20} {'macro F1':>9} {'accuracy':>9}" + ("  macro F1 on the test" if "test" in result else "")]
    for name, arm in arms.items():
        test = f"{arm['test'][-1]['macro_f1']:>23.3f}" if "test" in arm else ""
        lines.append(f"{name.replace('_', ' '):20} {arm['macro_f1']:>9.3f} {arm['accuracy']:>9.3f}{test}")
    ms, actions, lessons = result["milliseconds"], result["actions"], result["lessons"]
    curve = "  ".join(f"{point['interactions']}: {point['macro_f1']:.2f}" for point in result["curve"])
    return "\n".join([
        f"macro F1 of the lamp's last {SPAN} guesses, by interactions of {result['interactions']}:",
        curve, "", "in the last third", *lines, "",
        f"by itself: {actions['right']} right, {actions['wrong']} wrong; the first right one at interaction "
        f"{result['first_right_action'] or '-'}",
        f"lessons: {lessons['all']}, of which {lessons['not_meant']} are not what was meant",
        f"milliseconds: prediction {ms['predict']['median']:.1f}, at most {ms['predict']['most']:.1f}; update "
        f"{ms['update']['median']:.1f}, at most {ms['update']['most']:.1f}",
    ])  # fmt: skip
