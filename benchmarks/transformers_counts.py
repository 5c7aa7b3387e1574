"""GPT-2 that starts beside what was counted: counted targets, experts of counts, a cache of the document, and controls.

Every arm is a start of `benchmarks.transformers` with an `Extra`. It has the recipe and the rate that were found there
for this start alone, so nothing is tuned in favour of the extras. A control with weights of its own may choose between
three rates. The test text is read once, at the end of a run.
"""

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import counted_costs, harness, render, words_seen
from benchmarks.beside_decoders import ORDER, Beside, Extra, prepare, solve_attention
from benchmarks.decoders import Start, mean_curve, train_start
from benchmarks.harness import Results, Workers
from benchmarks.starts import LONG_STEPS, RECIPES, SHAPE, STEPS, build
from warmstart.counts import PairStatistics
from warmstart.progress import Progress

NGRAMS, CACHE, BOTH, ALL = "ngrams", "cache", "ngrams,cache", "ngrams,classes,cache"
STARTS = {  # arm, recipe and rate, found by `benchmarks.transformers`
    "cold": ("log-unigram bias", "keeping", 5e-3),
    "warm": ("spectral + heads", "short", 1e-2),
}
SEEDS = (0, 1, 2)
HASHED = 540_000  # rows of width 128: as many bytes as the tables of the n-grams
SHARES = (1.0, 0.5, 2.0)  # of the rate, for the control with weights of its own
LONGEST_SHARES = (1.0, 0.5)  # of the rate, for the longest runs: the rates were found by short ones


class Arm(NamedTuple):
    """A start and what it is trained with."""

    start: str
    extra: Extra = Extra()
    arch: str = "gpt2"


PLAIN = {start: Arm(start) for start in STARTS}
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
HASHES = {"hashed bigrams, cold": Arm("cold", Extra(hashed=HASHED))}
BRACKETS = {"brackets first, cold": Arm("cold", Extra(brackets=0.002))}
ATTENTION = {f"published attention, {how}, warm": Arm("warm", Extra(attention=how)) for how in ("identity", "solved")}
LEFT_BEHIND = {
    "mixture's loss falls to 0, warm": Arm("warm", Extra(NGRAMS, leave=True)),
    "counted targets in the last fifth, warm": Arm("warm", Extra(NGRAMS, late=0.9)),
}
VARIANTS = {
    f"counted targets, {how}": Arm("warm", extra)
    for how, extra in {
        "weight 0.5, constant": Extra(targets=0.5, constant=True),
        "weight 1": Extra(targets=1.0),
        "trigrams": Extra(targets=0.9, order=3),
        "temperature 1.5": Extra(targets=0.9, temperature=1.5),
    }.items()
}
LLAMA = {
    f"Llama, {name}": arm._replace(arch="llama")
    for name, arm in {**PLAIN, **TARGETS, **BESIDE}.items()
    if name in ("cold", "warm", "counted targets, warm", "n-grams and cache, cold", "n-grams and cache, warm")
}
ARMS = {
    **PLAIN, **TARGETS, **BESIDE, **TOGETHER, **HASHES, **BRACKETS, **ATTENTION, **LEFT_BEHIND, **VARIANTS, **LLAMA
}  # fmt: skip
SEVERAL = {*PLAIN, *TARGETS, *BESIDE, *TOGETHER, *HASHES, *BRACKETS, *ATTENTION}  # contenders: every seed
LONG = (*PLAIN, "counted targets, warm", "cache alone, cold", "n-grams, warm", "n-grams and cache, cold",
        "n-grams and cache, warm")  # fmt: skip
QUICK = ("counted targets, warm", "n-grams and cache, cold")


def beside(arm: Arm, folder: str, seed: int, pairs: PairStatistics) -> Start:
    """Return the start of an arm; its random weights are drawn with the seed."""
    start, recipe, _ = STARTS[arm.start]
    return Beside(build(arm.arch, start, seed, pairs, scale=RECIPES[recipe].scale), arm.extra, folder)


class Bench:
    """The runs of this bench.

    Parameters
    ----------
    folder : str
        Of `benchmarks.beside_decoders.prepare`.
    workers : Workers
    quick : bool
        Four steps.
    data : Path, optional
        Of the data sets. Without it only kept results are given; those that are missing are None.
    """

    def __init__(self, folder: str, workers: Workers, quick: bool, data: Path | None = None) -> None:
        self.folder, self.workers, self.quick, self.data = folder, workers, quick, data

    def key(self, name: str, seed: int = 0, steps: int = STEPS, share: float = 1.0) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        arm = ARMS[name]
        start, recipe, rate = STARTS[arm.start]
        own = RECIPES[recipe]
        key = {"arch": arm.arch, "arm": start, "beside": arm.extra.key, "seed": seed, "steps": steps}
        key |= {"rate": rate * share, "warmup": own.warmup, "beta2": own.beta2, "blocks": own.blocks}
        key |= {"scale": own.scale, "clip": 1.0}
        return key | SHAPE | {"text": "classics", "order": ORDER, "precision": harness.precision()}

    def curve(self, name: str, seed: int = 0, steps: int = STEPS, share: float = 1.0) -> dict[str, Any] | None:
        """Return the curve of a run, kept or made."""
        arm = ARMS[name]
        _, recipe, rate = STARTS[arm.start]
        judge = partial(words_seen.judge, self.folder, self.data) if self.data and steps == words_seen.STEPS else None
        key, steps = self.key(name, seed, steps, share), 4 if self.quick else steps
        if self.data is None and not self.workers.results.has(key):
            return None
        at = sorted({0, steps} if self.quick else {*range(0, steps + 1, steps // 12)})
        start = partial(beside, arm, self.folder, seed)
        arguments = (self.folder, start, seed, rate * share, RECIPES[recipe], SHAPE, steps, at, True, judge)
        made: dict[str, Any] = self.workers.do(key, train_start, *arguments)
        return made

    def arm(self, name: str) -> dict[str, Any] | None:
        """Return the runs of an arm: one rate, or the best of three for a control."""
        shares = SHARES if name in HASHES and not self.quick else SHARES[:1]
        tried = {share: run["nats"][-1] for share in shares if (run := self.curve(name, share=share))}
        if not tried:
            return None
        share = min(tried, key=lambda each: tried[each])
        seeds = SEEDS if name in SEVERAL and not self.quick else SEEDS[:1]
        made = self.workers.together([partial(self.curve, name, seed, STEPS, share) for seed in seeds])
        runs = {seed: run for seed, run in zip(seeds, made, strict=True) if run}
        mark = self.workers.results.mark(*(self.key(name, seed, STEPS, share) for seed in runs))
        return {"runs": list(runs.values()), "share": share, "mark": mark}

    def all(self, names: Sequence[str], long: Sequence[str], longest: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the arms, and the long and the longest runs of some, without those that are missing."""
        arms = self.workers.together([partial(self.arm, name) for name in names])
        far = LONGEST_SHARES[:1] if self.quick else LONGEST_SHARES
        wanted = {"long": (LONG_STEPS, long, SHARES[:1]), "longest": (words_seen.STEPS, longest, far)}
        found = {"arms": {name: arm for name, arm in zip(names, arms, strict=True) if arm}}
        for kind, (steps, some, shares) in wanted.items():
            runs = self.workers.together([partial(self.best, name, steps, shares) for name in some])
            found[kind] = {name: run for name, run in zip(some, runs, strict=True) if run}
        return found

    def best(self, name: str, steps: int, shares: Sequence[float]) -> dict[str, Any] | None:
        """Return the run of an arm at the share of its rate that ends lowest, with all ``ends``; seed 0."""
        made = self.workers.together([partial(self.curve, name, 0, steps, share) for share in shares])
        runs = {share: run for share, run in zip(shares, made, strict=True) if run}
        if not runs:
            return None
        ends = {share: run["nats"][-1] for share, run in runs.items()}
        share = min(ends, key=lambda each: ends[each])
        mark = "" if self.quick else self.workers.results.mark(self.key(name, 0, steps, share))
        return runs[share] | {"share": share, "ends": ends, "mark": mark}


def section(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm and write the section; ``quick``: two arms, four steps, nothing is written."""
    results = Results(None if quick else docs / "results" / "transformers_counts.jsonl", __name__)
    names, long, longest = (QUICK, (), words_seen.ARMS[-1:]) if quick else (tuple(ARMS), LONG, words_seen.ARMS)
    experts = {ARMS[name].extra.experts for name in names} - {""} | {counted_costs.EXPERTS}
    size = 1024 if quick else SHAPE["vocab_size"]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        facts = prepare(folder, data, "classics", size, experts, workers.n, words_seen.sentences(data))
        counts = {each: results.do(counts_key(each), partial(facts.__getitem__, each)) for each in sorted(experts)}
        if any(ARMS[name].extra.attention for name in names):
            solve_attention(folder, SHAPE["context"])
        made = Bench(folder, workers, quick, data).all(names, long, longest)
        costs = counted_costs.measure(folder, results, quick)
        if not quick:
            write(**made, counts=counts, costs=costs, docs=docs, results=results)
    return {**made, "counts": counts, "costs": costs}


def write_kept(docs: Path) -> None:
    """Write the section from the results that are kept."""
    results = Results(docs / "results" / "transformers_counts.jsonl", __name__)
    experts = sorted({arm.extra.experts for arm in ARMS.values()} - {""})
    with Workers(results) as workers:
        made = Bench("", workers, quick=False).all(tuple(ARMS), LONG, words_seen.ARMS)
    counts = {each: results.do(counts_key(each), dict) for each in experts if results.has(counts_key(each))}
    costs = counted_costs.measure("", results, quick=False)  # all kept
    write(**made, counts=counts, costs=costs, docs=docs, results=results)


def counts_key(experts: str) -> dict[str, Any]:
    """Return the configuration of counts without a decoder."""
    return {"experts": experts, "order": ORDER, "text": "classics", "vocab_size": SHAPE["vocab_size"]}


def ends(arm: dict[str, Any], name: str = "nats") -> list[float]:
    """Return the last loss of every seed, or another number of a run."""
    return [run[name][-1] if isinstance(run[name], list) else run[name] for run in arm["runs"]]


def mean(arm: dict[str, Any], name: str = "nats") -> float:
    """Return the mean of `ends`."""
    return statistics.mean(ends(arm, name))


def row(name: str, arm: dict[str, Any]) -> list[Any]:
    """Return the row of an arm: its loss over the steps, at the end by the decoder by itself, and on the test text."""
    run = arm["runs"][0]
    shown = np.interp((0, 100, 200), *mean_curve(arm))
    alone = mean(arm, "alone") if "alone" in run else None
    label = f"{name}, {arm['share']:g} of the rate" if arm["share"] != 1.0 else name
    return [label + arm["mark"], *map(render.nats, shown), render.spread(ends(arm)), render.nats(alone),
            render.spread(ends(arm, "test"))]  # fmt: skip


def marks(arms: dict[str, Any], long: dict[str, Any]) -> list[list[Any]]:
    """Return what was to be shown: a sentence, the figure, and the mark. A figure whose runs are missing is None."""
    short = {name: mean(arm) for name, arm in arms.items()}
    ends = {name: run["nats"][-1] for name, run in long.items()}

    def lead(losses: dict[str, float], of: str, *over: str) -> float | None:
        known = {of, *over} <= losses.keys()
        return min(losses[name] for name in over) - losses[of] if known else None

    both, cached, cold = "n-grams and cache, warm", "cache alone, cold", "n-grams and cache, cold"
    steps, far = f"{STEPS} steps", f"{LONG_STEPS:,} steps"
    rows = [
        (f"{steps}, n-grams beside the spectral start", short.get("n-grams, warm"), "at most 4.48"),
        (f"{steps}, n-grams and cache beside it", short.get(both), "at most 4.15"),
        (f"{steps}, counted targets, a plain model", short.get("counted targets, warm"), "at most 4.80"),
        (f"{steps}, what the start adds beside n-grams and cache", lead(short, both, cold), "stated"),
        (f"{steps}, lead over a cold start with the cache alone", lead(short, both, cached), "stated"),
        (f"{far}, lead of n-grams and cache over the best start alone", lead(ends, both, *PLAIN), "at least 0.5"),
        (f"{far}, lead over a cold start with the cache alone", lead(ends, both, cached), "stated"),
        (f"{far}, what the start adds beside n-grams and cache", lead(ends, both, cold), "stated"),
    ]
    return [[what, render.nats(value), mark] for what, value, mark in rows]


def longer(long: dict[str, Any]) -> str:
    """Return the table of the long runs, nothing without one."""
    if not long:
        return ""
    at = range(0, LONG_STEPS + 1, STEPS)
    rows = [
        [name + run["mark"], *map(render.nats, np.interp(at, run["steps"], run["nats"])), render.nats(run["test"])]
        for name, run in long.items()
    ]
    table = render.table(["arm", *(f"step {n:,}" for n in at), "test"], rows)
    return f"{LONG_STEPS:,} steps, one seed:\n\n{table}\n"


def told(arms: dict[str, Any]) -> str:
    """Return in sentences what single arms show, as far as they have run."""
    plain, parts = mean(arms["warm"]), []
    if LEFT_BEHIND.keys() <= arms.keys():
        alone = [mean(arms[name], "alone") for name in ("n-grams, warm", *LEFT_BEHIND)]
        parts.append(
            f"Can the counts be left behind? The network alone, which has {plain:.3f} if it is trained alone, has "
            f"{alone[0]:.3f} after training beside n-grams, {alone[1]:.3f} where the loss of the mixture falls to 0 in "
            f"favour of its own, and {alone[2]:.3f} with counted targets in the last fifth; counted targets from the "
            f"beginning, without anything beside it, give {mean(arms['counted targets, warm']):.3f}."
        )
    if ATTENTION.keys() <= arms.keys():
        identity, solved = (plain - mean(arms[name]) for name in ATTENTION)
        parts.append(
            f"The published attention, `softmax((X Q K' X') W)`, ends {identity:.3f} nats lower than the usual one "
            f"with W = identity, and {solved:.3f} lower with the solved weights added (negative: higher)."
        )
    return "\n".join(parts)


def write(
    arms: dict[str, Any], long: dict[str, Any], longest: dict[str, Any], counts: dict[str, Any],
    costs: dict[str, Any], docs: Path, results: Results,
) -> None:  # fmt: skip
    """Write the section of docs/benchmarks.md and its picture."""
    headers = ["arm", "step 0", "100", "200", f"{STEPS}", "decoder by itself", "test"]
    table = render.table(headers, [row(name, arm) for name, arm in arms.items()])
    of_counts = [[name, *map(render.nats, (each["valid"], each["test"]))] for name, each in counts.items()]
    shown = [name for name in arms if name in SEVERAL and name not in ATTENTION]
    panels = {f"{STEPS} steps": {name: mean_curve(arms[name]) for name in shown}}
    if long:
        panels[f"{LONG_STEPS:,} steps"] = {name: (np.array(run["steps"]), run["nats"]) for name, run in long.items()}
    render.curves(docs / "images" / "transformers_counts.png", panels, "steps", "nats a token, validation", 5.6)
    plain, both, targets = (mean(arms[f"{name}warm"]) for name in ("", "n-grams and cache, ", "counted targets, "))
    added = mean(arms["n-grams and cache, cold"]) - both
    conclusion = (
        f"With n-grams and a cache beside it a GPT-2 ends {plain - both:.3f} nats lower after {STEPS} steps from its "
        f"spectral start, which is {added:.3f} lower than from a cold one; counted targets, which leave a plain model, "
        f"take {plain - targets:.3f} off."
    )
    if longest:
        cold, warm, beside_counts = (longest[name]["nats"][-1] for name in words_seen.ARMS)
        conclusion += (
            f" After {words_seen.STEPS:,} steps, two epochs, the cold start ends at {cold:.3f}, the warm one at "
            f"{warm:.3f} and the warm one beside counts at {beside_counts:.3f}."
        )
    tuned = " The control with a table of its own chose among three rates." if HASHES.keys() & arms.keys() else ""
    body = f"""GPT-2, text, steps and windows are those of "Transformers: spectral warm starts"; cold is its log-unigram
bias, warm its spectral start with heads. Every arm has the recipe and the rate that were found there for its start
without extras; the gate has a rate of its own, the same for all.{tuned} Training books are left out of the counts,
order {ORDER}, that score them. The decoder sees {SHAPE["context"]} tokens, n-grams see across the border of a window,
the cache sees the book. Up to {len(SEEDS)} seeds where a deviation is given, else one. The test text is read by every
finished run. "Decoder by itself": the network without the counts that it was trained beside. Counted targets have a
weight of 0.9 that falls to 0, if nothing else is said.

{table}
{told(arms)}

Marks; a dash: not run yet.

{render.table(["what", "nats", "mark"], marks(arms, long))}
Counts without a decoder, in nats a token of the whole texts:

{render.table(["experts", "validation", "test"], of_counts)}
{longer(long)}{words_seen.section(longest)}![Validation loss over steps](images/transformers_counts.png)

{counted_costs.section(costs)}"""
    render.write(docs, "transformers_counts", "Transformers beside counts", conclusion, body, results, "transformers")
