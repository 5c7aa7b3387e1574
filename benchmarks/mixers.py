"""Softmax attention and three memories as language models of one size, each from a cold and a warm start.

A GPT-2 whose attention is replaced, on WikiText-2. Every arm finds its own rate by shorter runs that anneal to their
own end, until the best rate has a neighbour on both sides. Then every seed is run: it decides the random weights and
the windows that are read.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks import harness, render
from benchmarks.decoders import Recipe, Start, mean_curve, prepare, train_start
from benchmarks.harness import Results, Workers
from warmstart.adapters import load_into, replace_attention
from warmstart.counts import NGrams, PairStatistics
from warmstart.finetune.compare import reached
from warmstart.memory import FastWeightAttention, TTTLinear, elu_plus_one
from warmstart.progress import Progress

SHAPE = {"vocab_size": 4096, "width": 128, "layers": 3, "heads": 4, "context": 256, "windows": 12, "scored": 120}
TOKENS, SEARCH_TOKENS, START_RATE, SCALE = 5_000_000, 1_000_000, 5e-3, 0.1
STEP = SHAPE["windows"] * SHAPE["context"]  # tokens
WARMUP_STEPS = 30
SEEDS = (0, 1, 2)
SHOWN = (0, 500_000, 1_000_000, 2_500_000, TOKENS)
MIXERS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "delta rule": partial(FastWeightAttention, token_shift=True),
    "softmax attention": None,
    "linear attention": partial(FastWeightAttention, feature_map=elu_plus_one, rule="sum", token_shift=True),
    "TTT linear": partial(TTTLinear, token_shift=True),
}
STARTS = ("cold", "warm")


def build(mixer: str, start: str, seed: int, pairs: PairStatistics) -> Start:
    """Return the model of an arm; its random weights are drawn with the seed."""
    arm = Start.random("gpt2", seed, pairs.vocab_size, SHAPE, tie_word_embeddings=False)
    if (make := MIXERS[mixer]) is not None:
        replace_attention(arm.model, make)
    if start == "warm":
        load_into(arm.model, pairs, scale=SCALE)
    return arm


def tune(folder: str, workers: Workers, quick: bool, mixer: str, start: str) -> dict[str, Any]:
    """Find the rate of an arm, then train it for every seed; only these runs read the test text."""

    def key_of(seed: int, rate: float, tokens: int) -> dict[str, Any]:
        key = {"mixer": mixer, "start": start, "seed": seed, "rate": rate, **SHAPE, "tokens": tokens}
        key |= {"warmup_steps": WARMUP_STEPS, "beta2": 0.95, "clip": 1.0, "scale": SCALE}
        return key | {"precision": harness.precision(), "text": "wikitext-2"}

    def result(seed: int, rate: float, tokens: int) -> Any:
        steps = tokens // STEP
        recipe = Recipe(min(1.0, WARMUP_STEPS / steps), beta2=0.95, blocks=1.0)
        at = {*range(0, steps, max(1, min(steps, TOKENS // STEP // 20))), steps}
        arguments = (folder, partial(build, mixer, start, seed), seed, rate, recipe, SHAPE, steps, at, tokens == TOKENS)
        return workers.do(key_of(seed, rate, tokens), train_start, *arguments)

    if quick:
        return {"rate": START_RATE, "runs": [result(0, START_RATE, 2 * STEP)], "mark": ""}
    best, _ = harness.search(
        lambda at: float(result(0, at["rate"], SEARCH_TOKENS)["nats"][-1]), {"rate": START_RATE}, trials=3
    )
    runs = workers.together([partial(result, seed, best["rate"], TOKENS) for seed in SEEDS])
    mark = workers.results.mark(*(key_of(seed, best["rate"], TOKENS) for seed in SEEDS))
    return {"rate": best["rate"], "runs": runs, "mark": mark}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm, write a table and a plot; ``quick``: two arms for two steps, nothing is written."""
    results = Results(None if quick else docs / "results" / "mixers.jsonl", __name__)
    wiki, size = data / "wikitext-2", 1024 if quick else SHAPE["vocab_size"]
    arms = [(mixer, start) for mixer in MIXERS for start in STARTS]
    if quick:
        arms = [("delta rule", "warm"), ("softmax attention", "cold")]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        pairs = prepare(folder, wiki / "train.txt", [wiki / "valid.txt", wiki / "test.txt"], size)
        test = np.load(Path(folder, "test.npy"))
        unigram, bigram = NGrams(pairs.pairs.sum(axis=0), pairs.pairs).cross_entropies(test)
        runs = workers.together([partial(tune, folder, workers, quick, *arm) for arm in arms])
    tuned = dict(zip(arms, runs, strict=True))
    if not quick:
        write(tuned, float(unigram), float(bigram), docs, results)
    return {"unigram": unigram, "bigram": bigram, "arms": {", ".join(arm): value for arm, value in tuned.items()}}


def gains(tuned: dict[tuple[str, str], Any]) -> list[list[Any]]:
    """Return for each mixer what the warm start gains on the test text, and the share of tokens to the cold end."""
    rows = []
    for mixer in MIXERS:
        cold, warm = (tuned[mixer, start] for start in STARTS)
        gained = [a["test"] - b["test"] for a, b in zip(cold["runs"], warm["runs"], strict=True)]
        steps, losses = mean_curve(warm)
        step = reached((steps, losses), mean_curve(cold)[1][-1])
        rows.append([mixer + cold["mark"], render.spread(gained), None if step is None else step / steps[-1]])
    return rows


def write(tuned: dict[tuple[str, str], Any], unigram: float, bigram: float, docs: Path, results: Results) -> None:
    """Write the section of docs/benchmarks.md and its picture."""
    headers = ["attention, start", "parameters", "rate", *(f"{n / 1e6:g} M" for n in SHOWN), "test", "CPU seconds"]
    rows, lines, styles = [], {}, {}
    for (mixer, start), arm in tuned.items():
        name, runs = f"{mixer}, {start}", arm["runs"]
        steps, losses = mean_curve(arm)
        lines[name] = (steps * STEP / 1e6, losses)
        styles[name] = {"color": f"C{list(MIXERS).index(mixer)}", "linestyle": "--" if start == "cold" else "-"}
        shown = [render.nats(float(loss)) for loss in np.interp(SHOWN, steps * STEP, losses)]
        seconds = float(np.mean([run["seconds"][-1] + run["made"] for run in runs]))
        test = render.spread([run["test"] for run in runs])
        rows.append([name + arm["mark"], runs[0]["parameters"], f"{arm['rate']:g}", *shown, test, seconds])
    panels = {"WikiText-2": lines}
    render.curves(docs / "images" / "mixers.png", panels, "million tokens", "nats a token, validation", 6.0, styles)
    table = gains(tuned)
    gained = [float(str(row[1]).split()[0]) for row in table]
    delta, attention = (
        [float(np.mean([run["test"] for run in tuned[mixer, start]["runs"]])) for start in STARTS]
        for mixer in ("delta rule", "softmax attention")
    )
    conclusion = (
        f"After {TOKENS / 1e6:g} M tokens a warm start is {min(gained):.2f} to {max(gained):.2f} nats ahead on the "
        f"test text; the delta rule has {delta[0]:.3f} (cold) and {delta[1]:.3f} (warm), softmax attention "
        f"{attention[0]:.3f} and {attention[1]:.3f}."
    )
    body = f"""A GPT-2 of {SHAPE["layers"]} layers, width {SHAPE["width"]}, {SHAPE["heads"]} heads, V =
{SHAPE["vocab_size"]:,}, untied, whose attention is replaced. WikiText-2, windows of {SHAPE["context"]} tokens,
{TOKENS / 1e6:g} M tokens in steps of {STEP:,}, AdamW, cosine after {WARMUP_STEPS} steps; matrix products in
{harness.precision()}, memories in float32. Losses are nats a token on validation text after so many tokens, and on the
test text, read once. On the test text the unigram model has {unigram:.3f}, a bigram model with absolute discounting
{bigram:.3f}. Every arm finds its rate by runs of {SEARCH_TOKENS:,} tokens with the first seed, from {START_RATE:g} on,
until the best rate has a neighbour on both sides. Values are means of {len(SEEDS)} seeds, with the standard deviation
on the test text; both starts of a seed read the same windows. The seconds of a warm start include solving it. The
keys of all memories see a learned mix of a token and the one before, cold or warm; softmax attention starts warm with
half the heads of its first layer at the token before. Cold: the defaults of PyTorch and transformers.

{render.table(headers, rows)}
What the warm start gains on the test text, and the share of the tokens after which its validation loss is the one that
the cold start has at its end:

{render.table(["attention", "nats", "share of tokens"], table)}
![Validation loss over tokens](images/mixers.png)"""
    render.write(docs, "mixers", "Memories as language models", conclusion, body, results)
