"""How little data: counts alone, a GPT-2 from a cold and a warm start, and the warm one beside counts, by size of text.

A text of a size is the beginning of `BOOKS` books, as much of each. Its tokenizer is trained on it alone, so losses are
compared within a size, not between sizes. Every arm is read at its best validation, since small texts are soon learnt
by heart, and with the better of its usual rate and a fifth of it.
"""

import itertools
import lzma
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness, render, texts
from benchmarks.beside_decoders import ORDER, Extra, prepare
from benchmarks.decoders import train_start
from benchmarks.harness import Results, Workers
from benchmarks.starts import RECIPES, SHAPE, STEPS
from benchmarks.transformers_counts import STARTS, Arm, beside
from warmstart.progress import Progress

SIZES = {  # characters, 0 for all, and steps
    "10 k tokens": (40_000, 100),
    "100 k tokens": (400_000, 200),
    "1 M tokens": (4_000_000, STEPS),
    "14 M tokens": (0, STEPS),
}
SHARES = (1.0, 0.2)  # of the rate
BOOKS = 16
COUNTED = "ngrams,cache"
COUNTS = "n-grams and cache alone"
ARMS = {
    "cold start": Arm("cold"),
    "warm start": Arm("warm"),
    "warm start beside n-grams and cache": Arm("warm", Extra(COUNTED)),
}
AT = (0, 10, 20, 50, 100, 200, 300, 400, 500, 600)
SHOWN = (0, 100, 600)


def shortened(data: Path, folder: Path, characters: int) -> Path:
    """Return a folder of data whose training text has about so many characters; all of them if 0."""
    if not characters:
        return data
    target = folder / "classics"
    target.mkdir(parents=True)
    for part in ("valid", "test"):
        (target / f"{part}.txt").symlink_to(texts.source(data, "classics", part).resolve())
    with lzma.open(texts.source(data, "classics", "train"), "rt", encoding="utf-8") as file:
        books = re.split(texts.SPLITS["classics"], file.read())
    chosen = [book for book in books if len(book) >= characters / BOOKS][:BOOKS]
    with lzma.open(target / "train.txt.xz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(book[: characters // len(chosen)] for book in chosen))
    return folder


class Bench:
    """The runs of one size of text.

    Parameters
    ----------
    data, folder : Path
        Of the whole data, and for what `benchmarks.beside_decoders.prepare` writes.
    characters, steps : int
    workers : Workers
    vocab_size : int
    """

    def __init__(
        self, data: Path, folder: Path, characters: int, steps: int, workers: Workers, vocab_size: int
    ) -> None:
        self.data, self.folder, self.characters, self.steps = data, folder, characters, steps
        self.workers, self.vocab_size = workers, vocab_size
        self.facts: dict[str, Any] = {}

    def key(self, **more: Any) -> dict[str, Any]:
        """Return the configuration of a run."""
        text = {"text": "classics", "characters": self.characters, "books": BOOKS if self.characters else 0}
        return {**more, **SHAPE, **text, "order": ORDER, "precision": harness.precision()}

    def keys(self) -> dict[tuple[str, float], dict[str, Any]]:
        """Return the configuration of every arm and share of its rate."""
        keys = {}
        for (name, arm), share in itertools.product(ARMS.items(), SHARES):
            start, recipe, rate = STARTS[arm.start]
            own = {"arm": start, "beside": arm.extra.key, "recipe": recipe, "rate": rate * share}
            keys[name, share] = self.key(**own, seed=0, steps=self.steps)
        return keys

    def run(self) -> dict[str, dict[str, Any]]:
        """Return the best curve of every arm; nothing is written or counted if all are kept."""
        results, keys, counted = self.workers.results, self.keys(), self.key(counts=COUNTED)
        if not all(results.has(key) for key in (counted, *keys.values())):
            short = shortened(self.data, self.folder / "data", self.characters)
            self.facts = prepare(str(self.folder), short, "classics", self.vocab_size, {COUNTED}, self.workers.n)
        counts = results.do(counted, lambda: self.facts[COUNTED])
        made = self.workers.together([partial(self.curve, *each, key) for each, key in keys.items()])
        curves = dict(zip(keys, made, strict=True))
        found = {name: min((curves[name, s] for s in SHARES), key=lambda each: min(each["nats"])) for name in ARMS}
        return {COUNTS: {"steps": [0], "nats": [counts["valid"]]}, **found}

    def curve(self, name: str, share: float, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the curve of an arm at a share of its rate."""
        _, recipe, rate = STARTS[ARMS[name].start]
        start, at = partial(beside, ARMS[name], str(self.folder), 0), [step for step in AT if step <= self.steps]
        arguments = (str(self.folder), start, 0, rate * share, RECIPES[recipe], SHAPE, self.steps, at)
        made: dict[str, Any] = self.workers.do(key, train_start, *arguments)
        return made


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train every arm on every size of text."""
    results = Results(None if quick else docs / "results" / "little_data.jsonl", __name__, progress=progress)
    sizes = {"10 k tokens": (40_000, 2)} if quick else SIZES
    found = {}
    with Workers(results, progress) as workers:
        for name, size in sizes.items():
            with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
                found[name] = Bench(data, Path(folder), *size, workers, 512 if quick else SHAPE["vocab_size"]).run()
    if not quick:
        render.write(docs, "little_data", "How little data", *section(found), results)
    return {"sizes": found}


def best(curve: Mapping[str, Any], until: int) -> float:
    """Return the lowest validation loss of a curve in its first steps.

    Examples
    --------
    >>> best({"steps": [0, 10, 20], "nats": [3.0, 2.0, 1.0]}, until=10)
    2.0
    """
    return float(min(nats for step, nats in zip(curve["steps"], curve["nats"], strict=True) if step <= until))


def winner(arms: Mapping[str, Mapping[str, Any]], until: int, names: Sequence[str]) -> str:
    """Return the best of some arms after so many steps, and its loss."""
    name = min(names, key=lambda each: best(arms[each], until))
    return f"{name}, {best(arms[name], until):.3f}"


def section(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    names, plain = (COUNTS, *ARMS), [*ARMS][:2]
    rows = []
    for size, arms in found.items():
        ends = [arms[name]["steps"][arms[name]["nats"].index(min(arms[name]["nats"]))] for name in names]
        rows += [[size, *(f"{best(arms[n], STEPS):.3f} at {end}" for n, end in zip(names, ends, strict=True))]]
    choice = [
        [size, f"{until} steps", winner(arms, until, names), winner(arms, until, plain)]
        for size, arms in found.items()
        for until in sorted({min(steps, SIZES[size][1]) for steps in SHOWN})
    ]
    gains = {size: best(arms[plain[0]], STEPS) - best(arms[plain[1]], STEPS) for size, arms in found.items()}
    lasting = {size: best(arms[plain[1]], STEPS) - best(arms[names[0]], STEPS) for size, arms in found.items()}
    conclusion = (
        f"The warm start ends {', '.join(f'{gain:.2f}' for gain in gains.values())} nats below the cold one with "
        f"{', '.join(found)} of text, and counts alone are {', '.join(f'{gap:.2f}' for gap in lasting.values())} nats "
        f"below the warm start."
    )
    body = f"""GPT-2 of 3 layers of width 128, {", ".join(str(steps) for _, steps in SIZES.values())} steps of
{SHAPE["windows"] * SHAPE["context"]:,} tokens, one seed; recipes are those of "Transformers: spectral warm starts",
with the better of the rate found there and a fifth of it. A text is the beginning of {BOOKS} books, and its tokenizer
is trained on it alone: compare within a row. Lowest validation loss in nats a token along the run, and its step:

{render.table(["text", *names], rows)}
What to use when, by validation loss: the best of all, and the best model without counts beside it:

{render.table(["text", "trained for", "best", "best without counts"], choice)}"""
    return conclusion, body
