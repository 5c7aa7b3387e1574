"""Warm starts of GPT-2 and Llama beside the starts that others use: the same tokens, steps, optimizer and shape.

Every start may choose between three recipes of training. It finds its own rate for each by the validation text, with
the first seed and the same minimum number of trials. Then it is run for every seed.
"""

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, render, transformers_counts
from benchmarks.decoders import Recipe, mean_curve, prepare, train_start
from benchmarks.harness import Results, Workers, search
from benchmarks.starts import (
    ARMS,
    BLIND,
    HIGH_RATE,
    KEEPING,
    KNOWING,
    LONG_STEPS,
    OURS,
    RECIPES,
    SHAPE,
    STEPS,
    USUAL,
    WITHOUT,
    build,
)  # fmt: skip
from warmstart.adapters.decoders import SCALE
from warmstart.finetune.compare import crossing, reached
from warmstart.finetune.phases import DECODER_RATE
from warmstart.progress import Progress

CHECKED = (*range(0, 100, 10), *range(100, STEPS + 1, 50))  # steps of the validations
SHOWN = (0, 50, 100, 200)  # steps with a column in the tables, before the end
SEEDS = (0, 1, 2)
START_RATE, TRIALS = 5e-3, 4
ARCHITECTURES = {"gpt2": "GPT-2", "llama": "Llama"}


class Bench:
    """The runs of this bench: their keys, and the search for a recipe and a rate."""

    def __init__(self, folder: str, workers: Workers, quick: bool) -> None:
        self.folder, self.workers, self.quick = folder, workers, quick
        self.steps, self.checked = (4, (0, 4)) if quick else (STEPS, CHECKED)

    def key(self, arch: str, arm: str, recipe: Recipe, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        key = {"arch": arch, "arm": arm, "seed": seed, "steps": steps, "rate": rate, "warmup": recipe.warmup}
        key |= {"beta2": recipe.beta2, "clip": 1.0, "blocks": recipe.blocks, "precision": harness.precision()}
        return key | SHAPE | {"text": "classics"} | ({"scale": recipe.scale} if arm in OURS else {})

    def run(self, arch: str, arm: str, recipe: Recipe, rate: float, seed: int = 0, steps: int | None = None) -> Any:
        """Return the curve of a run, kept or made; a longer run is validated a dozen times."""
        at: Sequence[int] = self.checked if steps is None else range(0, steps + 1, steps // 12)
        steps = steps or self.steps
        start = partial(build, arch, arm, seed, scale=recipe.scale)
        key = self.key(arch, arm, recipe, rate, seed, steps)
        return self.workers.do(key, train_start, self.folder, start, seed, rate, recipe, SHAPE, steps, at)

    def tune(self, arch: str, arm: str) -> dict[str, Any]:
        """Find recipe and rate of a start, then run every seed."""

        def end(recipe: Recipe, at: dict[str, float]) -> float:
            return float(self.run(arch, arm, recipe, at["rate"])["nats"][-1])

        name, rate = "usual", START_RATE
        if not self.quick:
            tried = {
                (name, at["rate"]): loss
                for name, recipe in RECIPES.items()
                for at, loss in search(partial(end, recipe), {"rate": START_RATE}, TRIALS)[1]
            }
            name, rate = min(tried, key=lambda choice: tried[choice])
        seeds = harness.cut(SEEDS, self.quick)
        runs = self.workers.together([partial(self.run, arch, arm, RECIPES[name], rate, seed) for seed in seeds])
        keys = [self.key(arch, arm, RECIPES[name], rate, seed, self.steps) for seed in seeds]
        return {"recipe": name, "rate": rate, "runs": runs, "mark": self.workers.results.mark(*keys)}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every start, write tables and plots; ``quick``: two starts of each architecture, four steps."""
    results = Results(None if quick else docs / "results" / "transformers.jsonl", __name__)
    books, size = data / "classics", 1024 if quick else SHAPE["vocab_size"]
    arms = ("log-unigram bias", OURS[1]) if quick else ARMS
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        prepare(folder, books / "train.txt.xz", [books / "valid.txt"], size)
        bench = Bench(folder, workers, quick)
        pairs = [(arch, arm) for arch in ARCHITECTURES for arm in arms]
        tuned = dict(zip(pairs, workers.together([partial(bench.tune, *pair) for pair in pairs]), strict=True))
        starts = {arch: {arm: tuned[arch, arm] for arm in arms} for arch in ARCHITECTURES}
        if not quick:
            write(starts, parts_left_out(bench, starts), longer(bench, starts["gpt2"]), docs, results)
    return {"starts": starts, "beside counts": transformers_counts.section(data, docs, quick, progress)}


def parts_left_out(bench: Bench, starts: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Run our better start of each architecture with one part of the keeping recipe left out, every seed."""
    ours = {arch: best(OURS, arms) for arch, arms in starts.items()}
    names = [(arch, name) for arch in starts for name in WITHOUT]
    jobs = [partial(bench.run, arch, ours[arch], *WITHOUT[name], seed) for arch, name in names for seed in SEEDS]
    runs, n = bench.workers.together(jobs), len(SEEDS)
    return {name: {"runs": runs[n * i : n * (i + 1)]} for i, name in enumerate(names)}


def longer(bench: Bench, arms: dict[str, Any]) -> dict[str, Any]:
    """Run the best start that knows unigrams at most, and ours, for four times the steps; a rate is best of three."""
    names = (best(BLIND, arms), *OURS)
    jobs = [
        partial(bench.run, "gpt2", arm, RECIPES[arms[arm]["recipe"]], arms[arm]["rate"] * share, steps=LONG_STEPS)
        for arm in names
        for share in (1.0, 0.5, 0.25)
    ]
    runs = bench.workers.together(jobs)
    return {arm: min(runs[3 * i : 3 * i + 3], key=lambda run: run["nats"][-1]) for i, arm in enumerate(names)}


def ends(arm: dict[str, Any]) -> list[float]:
    """Return the last validation loss of every seed."""
    return [run["nats"][-1] for run in arm["runs"]]


def best(names: Sequence[str], arms: dict[str, Any]) -> str:
    """Return the arm with the lowest mean loss at the end."""
    return min(names, key=lambda name: statistics.mean(ends(arms[name])))


def highest_rise(arm: dict[str, Any]) -> float:
    """Return how far the validation loss of any seed is above its value at step 0 at most."""
    return float(max(max(run["nats"]) - run["nats"][0] for run in arm["runs"]))


def marks(arms: dict[str, Any]) -> dict[str, Any]:
    """Return what the best of our starts gains over the best that ignores the text, and over the best of the others."""
    ours, blind, knowing = (best(names, arms) for names in (OURS, BLIND, KNOWING))
    end, blind_end, knowing_end = (statistics.mean(ends(arms[name])) for name in (ours, blind, knowing))
    curve = mean_curve(arms[ours])
    step, crossed = reached(curve, blind_end), crossing(curve, mean_curve(arms[blind]))
    return {
        "our best": ours,
        "best start that knows unigrams at most": blind,
        "lead over it at the end": render.nats(blind_end - end),
        "share of the steps after which ours is at its end": None if step is None else step / STEPS,
        "step at which the curves cross": "none" if crossed is None else f"{crossed:.0f}",
        "best other start that knows pairs": knowing,
        "lead over that at the end": render.nats(knowing_end - end),
        "CPU seconds to solve the start": statistics.mean(run["made"] for run in arms[ours]["runs"]),
    }


def start_row(name: str, arm: dict[str, Any]) -> list[Any]:
    """Return the row of a start: size, recipe and rate, losses over the steps, highest rise."""
    run, losses = arm["runs"][0], np.interp(SHOWN, *mean_curve(arm))
    choice = [name + arm["mark"], run["parameters"], arm["recipe"], f"{arm['rate']:g}"]
    return [*choice, *map(render.nats, losses), render.spread(ends(arm)), render.nats(highest_rise(arm))]


def write(
    starts: dict[str, Any], parts: dict[tuple[str, str], Any], long: dict[str, Any], docs: Path, results: Results
) -> None:  # fmt: skip
    """Write the section of docs/benchmarks.md and its picture."""
    headers = ["start", "parameters", "recipe", "rate", *(f"step {n}" for n in (*SHOWN, STEPS)), "highest rise"]
    tables = "".join(
        f"{title}:\n\n{render.table(headers, [start_row(*each) for each in starts[arch].items()])}\n"
        for arch, title in ARCHITECTURES.items()
    )
    columns = [marks(arms) for arms in starts.values()]
    summary = render.table(["", *ARCHITECTURES.values()], [[n, *(c[n] for c in columns)] for n in columns[0]])
    left_out: list[list[Any]] = [[name] for name in WITHOUT]
    for row in left_out:
        for arm in (parts[arch, row[0]] for arch in ARCHITECTURES):
            row += [render.nats(highest_rise(arm)), render.spread(ends(arm))]
    heads = [f"{title}, {what}" for title in ARCHITECTURES.values() for what in ("rise", "end")]
    at = range(0, LONG_STEPS + 1, STEPS)
    losses = {arm: np.interp(at, run["steps"], run["nats"]) for arm, run in long.items()}
    blind, *ours = losses.values()
    lead = blind - np.min(ours, axis=0)
    long_rows = [[name, *map(render.nats, values)] for name, values in (*losses.items(), ("lead", lead))]
    panels = {
        f"{title}, {STEPS} steps": {name: mean_curve(arm) for name, arm in starts[arch].items()}
        for arch, title in ARCHITECTURES.items()
    }
    panels[f"GPT-2, {LONG_STEPS} steps"] = {n: (np.array(run["steps"]), run["nats"]) for n, run in long.items()}
    styles = {arm: {"linewidth": 2 if arm in OURS else 1} for arm in ARMS}
    render.curves(docs / "images" / "transformers.png", panels, "steps", "nats a token, validation", 7.0, styles)
    gpt2, llama = (column["lead over it at the end"] for column in columns)
    conclusion = (
        f"A spectral start leads the best start without pair counts by {gpt2} nats (GPT-2) and {llama} nats (Llama) "
        f"after {STEPS} steps; the lead shrinks to {lead[-1]:.3f} nats after {LONG_STEPS:,}."
    )
    body = f"""{SHAPE["layers"]} layers, width {SHAPE["width"]}, {SHAPE["heads"]} heads, windows of {SHAPE["context"]}
tokens, V = {SHAPE["vocab_size"]:,}, classic books. A run has {STEPS} steps of {SHAPE["windows"] * SHAPE["context"]:,}
tokens, 1.8 M in all; what knows pairs has counted the whole text of 14.2 M tokens before. AdamW without weight decay,
gradients clipped at 1, cosine to 0, matrix products in {harness.precision()}. Losses are nats a token on
{SHAPE["scored"]} windows of validation books; the end is mean and deviation of {len(SEEDS)} seeds.

The keeping recipe and the rows of {SCALE:g} were found for our starts on the same validation books; all starts may use
the recipe. Every start chose between three recipes, by the validation loss of the first seed, each with at least
{TRIALS} rates around {START_RATE:g} and until the best rate had a neighbour on both sides. *Usual*: warm-up
{USUAL.warmup:g} of the run, second moment {USUAL.beta2:g}, one rate. *Keeping*: warm-up {KEEPING.warmup:g} of the
run, second moment {KEEPING.beta2:g}, blocks at {KEEPING.blocks:g} times the rate of embedding and head. *Short*: the
same with a warm-up of {USUAL.warmup:g}. "Highest rise" is the largest validation loss of any seed above its own loss at
step 0 (checked every 10 steps up to 100, then every 50).

{tables}The marks:

{summary}
What keeps the start: our better start with `decoder_schedule()`, that is the keeping recipe at a rate of
{DECODER_RATE:g} and embedding rows of standard deviation {SCALE:g}, and with parts of it left out: the lower rate
({HIGH_RATE:g} instead), and one more part each. {len(SEEDS)} seeds. "Rise" is the highest rise of any seed.

{render.table(["left out", *heads], left_out)}
![Validation loss over steps](images/transformers.png)

GPT-2 for {LONG_STEPS:,} steps, one seed, recipe as above, the best of the rate above, a half and a quarter of it:

{render.table(["start", *(f"step {n:,}" for n in at)], long_rows)}"""
    render.write(docs, "transformers", "Transformers: spectral warm starts", conclusion, body, results)
