"""GPT-2 that starts beside what was counted: counted targets, experts of counts, a cache of the document, and controls.

Every arm is a start of `benchmarks.transformers` with an `Extra`. It has the recipe and the rate that were found there
for this start alone, so nothing is tuned in favour of the extras. A control that brings weights of its own may choose
between three rates. The test text is read once, at the end of a run.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.beside_decoders import ORDER, Beside, Extra, prepare
from benchmarks.decoders import Start, train_start
from benchmarks.harness import Results, Workers
from benchmarks.starts import RECIPES, SHAPE, build
from warmstart.counts import PairStatistics
from warmstart.progress import Progress

NGRAMS, CACHE, BOTH, ALL = "ngrams", "cache", "ngrams,cache", "ngrams,classes,cache"
STARTS = {  # arm, recipe and rate, found by `benchmarks.transformers`
    "cold": ("log-unigram bias", "keeping", 5e-3),
    "warm": ("spectral + heads", "short", 1e-2),
}
STEPS, LONG_STEPS, LONGEST = 600, 2400, 9600
SEEDS = (0, 1, 2)
HASHED = 540_000  # rows of width 128: as many bytes as the tables of the n-grams
SHARES = (1.0, 0.5, 2.0)  # of the rate, for controls


class Arm(NamedTuple):
    """A start and what it is trained with."""

    start: str
    extra: Extra = Extra()


PLAIN = {"cold": Arm("cold"), "warm": Arm("warm")}
TARGETS = {f"counted targets, {start}": Arm(start, Extra(targets=0.9)) for start in STARTS}
BESIDE = {
    f"{name}, {start}": Arm(start, Extra(experts))
    for name, experts in {"n-grams": NGRAMS, "cache alone": CACHE, "n-grams and cache": BOTH}.items()
    for start in STARTS
}
TOGETHER = {
    "all counts, warm": Arm("warm", Extra(ALL)),
    "all counts and counted targets, warm": Arm("warm", Extra(ALL, targets=0.9)),
}
CONTROLS = {
    "hashed bigrams, cold": Arm("cold", Extra(hashed=HASHED)),
    "brackets first, cold": Arm("cold", Extra(brackets=0.002)),
}
LEFT_BEHIND = {
    "mixture's loss falls to 0, warm": Arm("warm", Extra(NGRAMS, leave=True)),
    "counted targets in the last fifth, warm": Arm("warm", Extra(NGRAMS, late=0.9)),
}
ARMS = {**PLAIN, **TARGETS, **BESIDE, **TOGETHER, **CONTROLS, **LEFT_BEHIND}
SEVERAL = {*PLAIN, *TARGETS, *BESIDE, *TOGETHER, *CONTROLS}  # contenders: every seed
LONG = (*PLAIN, "counted targets, warm", "cache alone, cold", "n-grams, warm", "n-grams and cache, cold",
        "n-grams and cache, warm")  # fmt: skip
QUICK = ("counted targets, warm", "n-grams and cache, cold")


def beside(start: str, extra: Extra, folder: str, seed: int, pairs: PairStatistics) -> Start:
    """Return the start of an arm; its random weights are drawn with the seed."""
    arm, recipe, _ = STARTS[start]
    return Beside(build("gpt2", arm, seed, pairs, scale=RECIPES[recipe].scale), extra, folder)


class Bench:
    """The runs of this bench."""

    def __init__(self, folder: str, workers: Workers, quick: bool) -> None:
        self.folder, self.workers, self.quick = folder, workers, quick

    def key(self, name: str, seed: int, steps: int, share: float) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        arm = ARMS[name]
        start, recipe, rate = STARTS[arm.start]
        own = RECIPES[recipe]
        key = {
            "arch": "gpt2",
            "arm": start,
            "beside": arm.extra.key,
            "seed": seed,
            "steps": steps,
            "rate": rate * share,
        }
        key |= {"warmup": own.warmup, "beta2": own.beta2, "blocks": own.blocks, "scale": own.scale, "clip": 1.0}
        return key | SHAPE | {"text": "classics", "order": ORDER, "precision": harness.precision()}

    def run(self, name: str, seed: int = 0, steps: int = STEPS, share: float = 1.0) -> dict[str, Any]:
        """Return the curve of a run, kept or made."""
        arm = ARMS[name]
        _, recipe, rate = STARTS[arm.start]
        key, steps = self.key(name, seed, steps, share), 4 if self.quick else steps
        at = sorted({0, steps} if self.quick else {*range(0, steps + 1, steps // 12)})
        start = partial(beside, arm.start, arm.extra, self.folder, seed)
        arguments = (self.folder, start, seed, rate * share, RECIPES[recipe], SHAPE, steps, at, True)
        made: dict[str, Any] = self.workers.do(key, train_start, *arguments)
        return made

    def arm(self, name: str) -> dict[str, Any]:
        """Return the runs of an arm: one rate, or the best of three for a control."""
        shares = SHARES if name in CONTROLS and not self.quick else SHARES[:1]
        tried = {share: self.run(name, share=share)["nats"][-1] for share in shares}
        share = min(tried, key=lambda each: tried[each])
        seeds = SEEDS if name in SEVERAL and not self.quick else SEEDS[:1]
        runs = self.workers.together([partial(self.run, name, seed, STEPS, share) for seed in seeds])
        mark = self.workers.results.mark(*(self.key(name, seed, STEPS, share) for seed in seeds))
        return {"runs": runs, "share": share, "mark": mark}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm and write the section; ``quick``: two arms, four steps, nothing is written."""
    results = Results(None if quick else docs / "results" / "transformers_counts.jsonl", __name__)
    names = QUICK if quick else tuple(ARMS)
    experts = {ARMS[name].extra.experts for name in names} - {""}
    size = 1024 if quick else SHAPE["vocab_size"]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        facts = prepare(folder, data, "classics", size, experts, workers.n)
        bench = Bench(folder, workers, quick)
        arms = dict(zip(names, workers.together([partial(bench.arm, name) for name in names]), strict=True))
        if not quick:
            long = workers.together([partial(bench.run, name, 0, LONG_STEPS) for name in LONG])
            write(arms, dict(zip(LONG, long, strict=True)), facts, docs, results)
    return {"arms": arms, "counts": facts}
