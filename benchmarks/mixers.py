"""Softmax attention and three memories as language models of one size, each from a cold and a warm start.

A GPT-2 whose attention is replaced, on WikiText-2. Every arm finds its own learning rate by shorter runs that anneal to
their own end: it is halved, or else doubled, for as long as that helps. Then each is run for every seed: of what is
random in the model, and of the windows that it reads. Finished runs are kept in ``docs/results/mixers.jsonl`` and not
run again by the same code. As many runs at a time as there are cores, one thread each.
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import report, transformers
from benchmarks.report import Book
from benchmarks.transformers import WARMUP, Start
from warmstart import figures
from warmstart.adapters import load_into, replace_attention
from warmstart.corpus import Corpus
from warmstart.counts import NGrams, PairStatistics, count_pairs
from warmstart.finetune.compare import reached
from warmstart.memory import FastWeightAttention, TTTLinear, elu_plus_one
from warmstart.progress import Progress

VOCAB_SIZE, WIDTH, LAYERS, HEADS, CONTEXT, ROWS = 4096, 128, 3, 4, 256, 12
TOKENS, SWEEP, RATE = 5_000_000, 1_000_000, 5e-3  # of the long run and of those that find its rate; the first rate
STEP = ROWS * CONTEXT  # tokens
SEEDS = (0, 1, 2)
SHOWN = (0, 500_000, 1_000_000, 2_500_000, TOKENS)
MIXERS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "delta rule": partial(FastWeightAttention, shift=True),
    "softmax attention": None,
    "linear attention": partial(FastWeightAttention, feature_map=elu_plus_one, rule="sum", shift=True),
    "TTT linear": partial(TTTLinear, shift=True),
}
STARTS = ("cold", "warm")
ARMS = tuple((mixer, start) for mixer in MIXERS for start in STARTS)
QUICK = (ARMS[1], ARMS[2])
CODE = tuple(
    f"warmstart/{name}.py" for name in ("memory/__init__", "memory/feature_maps", "memory/layers", "memory/rules",
    "memory/shift", "memory/ttt", "adapters/decoders", "adapters/heads", "adapters/memories", "spectral", "counts",
    "layers/softmax")
)  # fmt: skip


def build(mixer: str, start: str, seed: int, pairs: PairStatistics) -> Start:
    """Return the model of an arm; what is random has the seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
    shape |= {"vocab_size": pairs.vocab_size, "tie_word_embeddings": False}
    shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shape |= dict.fromkeys(("bos_token_id", "eos_token_id"))
    shape["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's own, in one kernel
    model = GPT2LMHeadModel(GPT2Config(**shape))
    if (make := MIXERS[mixer]) is not None:
        replace_attention(model, make)
    if start == "warm":
        load_into(model, pairs)
    return Start(model)


def _run(folder: str, mixer: str, start: str, seed: int, rate: float, tokens: int) -> dict[str, Any]:
    """Build and train one arm, in a process of its own; the test text is read by the long runs alone."""
    torch.set_num_threads(1)
    text, valid, test = (np.load(Path(folder, f"{name}.npy"), mmap_mode="r") for name in ("train", "valid", "test"))
    pairs = PairStatistics.load(Path(folder, "pairs.safetensors"))
    began = time.process_time()
    arm = build(mixer, start, seed, pairs)
    made = time.process_time() - began
    steps = max(1, tokens // STEP)
    every = max(1, min(steps, TOKENS // STEP // 20))
    found = transformers.train(arm, (text, valid), rate, steps, seed=seed, shape=(ROWS, CONTEXT), every=every)
    if tokens == TOKENS:
        found["test"] = transformers.score(arm, test, test.size, CONTEXT + 1)
    return {**found, "made": made, "parameters": arm.n_parameters}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm, write a table and a plot; ``quick``: two arms for two steps, nothing is written."""
    book = Book(None if quick else docs / "results" / "mixers.jsonl", report.code_digest(*CODE))
    wiki = data / "wikitext-2"
    text = Corpus.build(wiki / "train.txt", vocab_size=1024 if quick else VOCAB_SIZE, split_documents=r"\n\n")
    parts = {
        name: Corpus.encode(wiki / f"{name}.txt", text.tokenizer, split_documents=r"\n\n").tokens
        for name in ("valid", "test")
    }
    began = time.process_time()
    pairs = count_pairs(text.tokens, text.vocab_size)
    results: dict[str, Any] = {"counting": time.process_time() - began, "arms": {}}
    unigrams, bigrams = NGrams(pairs.pairs.sum(axis=0), pairs.pairs).cross_entropies(parts["test"])
    results |= {"unigram": float(unigrams), "bigram": float(bigrams)}
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        pairs.save(Path(folder, "pairs.safetensors"))
        for name, ids in ({"train": text.tokens} | parts).items():
            np.save(Path(folder, f"{name}.npy"), ids[: 20_000 if quick else None])
        with ProcessPoolExecutor(1 if quick else os.cpu_count(), get_context("spawn")) as processes:
            do = partial(_arm, folder, book, processes, progress, quick)
            arms = QUICK if quick else ARMS
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                for arm, found in zip(arms, threads.map(do, arms), strict=True):
                    results["arms"][", ".join(arm)] = found
    if not quick:
        _write(results, docs)
    return results


def _arm(
    folder: str,
    book: Book,
    processes: ProcessPoolExecutor,
    progress: Progress | None,
    quick: bool,
    arm: tuple[str, str],
) -> dict[str, Any]:
    """Find the rate of an arm, then train it for every seed; what is in the book is not done again."""

    def train(seed: int, rate: float, tokens: int) -> Any:
        name = f"{', '.join(arm)}, seed {seed}, rate {rate:g}, {tokens} tokens"
        found = book.do(name, lambda: processes.submit(_run, folder, *arm, seed, rate, tokens).result())
        if progress:
            progress(name, 0, None)
        return found

    if quick:
        return {"rate": RATE, "runs": [train(0, RATE, 2 * STEP)]}
    ends = climb(lambda rate: train(0, rate, SWEEP)["nats"][-1], RATE)
    best = min(ends, key=ends.__getitem__)
    return {"sweep": ends, "rate": best, "runs": [train(seed, best, TOKENS) for seed in SEEDS]}


def climb(end: Callable[[float], float], rate: float) -> dict[float, float]:
    """Return the ends of rates: from the first one it is halved, or else doubled, for as long as the end gets lower."""
    ends = {rate: end(rate)}
    for factor in (0.5, 2.0):
        at, best = rate, np.inf
        while ends[at] < best:
            best = ends[at]
            at *= factor
            ends[at] = end(at)
        if len(ends) > 2:
            break
    return ends


def row(name: str, arm: dict[str, Any], counting: float) -> list[Any]:
    """Return a row of the table; a warm start pays for counting and solving."""
    warm = name.endswith("warm")
    seconds = np.mean([run["seconds"][-1] + warm * (counting + run["made"]) for run in arm["runs"]])
    steps, mean = transformers.mean_curve(arm)
    nats = [float(np.interp(at, steps * STEP, mean)) for at in SHOWN]
    test = report.spread([run["test"] for run in arm["runs"]])
    return [name, arm["runs"][0]["parameters"], f"{arm['rate']:g}", *nats, test, f"{seconds:,.0f}"]


def gains(arms: dict[str, Any]) -> list[list[Any]]:
    """Return for each mixer what the warm start gains: nats on the test text, share of the tokens to the cold end."""
    rows = []
    for mixer in MIXERS:
        cold, warm = (arms[f"{mixer}, {start}"] for start in STARTS)
        gained = [a["test"] - b["test"] for a, b in zip(cold["runs"], warm["runs"], strict=True)]
        steps, nats = transformers.mean_curve(warm)
        at = reached((steps, nats), transformers.mean_curve(cold)[1][-1])
        rows.append([mixer, report.spread(gained), None if at is None else at / steps[-1]])
    return rows


def _write(results: dict[str, Any], docs: Path) -> None:
    arms = results["arms"]
    headers = ["attention, start", "parameters", "rate", *(f"{n / 1e6:g} M" for n in SHOWN), "test", "seconds"]
    rows = [row(name, arm, results["counting"]) for name, arm in arms.items()]
    _draw(docs / "images" / "mixers.png", arms)
    body = f"""## Memories as language models

A GPT-2 of {LAYERS} layers, d = {WIDTH}, {HEADS} heads, V = {VOCAB_SIZE:,}, untied, whose attention is replaced;
WikiText-2, windows of {CONTEXT} tokens, {TOKENS / 1e6:g} M tokens in steps of {STEP:,}, AdamW, cosine after {WARMUP}
steps; products in bfloat16, memories in float32. Nats a token on validation text after so many tokens, and on the test
text, read once. On it the unigram model has {results["unigram"]:.3f}, a bigram model with absolute discounting
{results["bigram"]:.3f}. Every arm finds its rate by runs of {SWEEP:,} tokens, with the first seed, that anneal to their
own end: {RATE:g} is halved, or else doubled, for as long as that helps. Nats are means of {len(SEEDS)} seeds, with the
standard deviation on the test text; both starts of a seed read the same windows. Seconds are of one core, for a warm
start with counting and solving. The keys of all memories see a learned mix of a token and the one before, cold or warm;
softmax attention starts warm with half its heads of the first layer at the token before. Cold: the defaults of PyTorch
and transformers.

{report.table(headers, rows)}
What the warm start gains on the test text, and the share of the tokens after which it has the validation loss that the
cold start has at its end:

{report.table(["", "nats", "share of tokens"], gains(arms))}
![Nats over tokens](images/mixers.png)
"""
    report.write(docs, "mixers", body)


def _draw(path: Path, arms: dict[str, Any]) -> None:
    figure, (axis,) = figures.figure(1)
    for i, mixer in enumerate(MIXERS):
        for start, style in zip(STARTS, ("--", "-"), strict=True):
            arm = arms[f"{mixer}, {start}"]
            steps, nats = transformers.mean_curve(arm)
            axis.plot(steps * STEP / 1e6, nats, style, color=f"C{i}", label=f"{mixer}, {start}")
    axis.set(xlabel="tokens (M)", ylabel="nats a token, validation", ylim=(None, 6.0))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figures.save_figure(figure, path)
