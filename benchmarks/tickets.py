"""Lottery tickets: heads and rows of a GPT-2 pruned by their magnitude before training, from a warm and a cold start.

The starts and their recipes are those of `benchmarks.starts`; every arm finds its own rate by validation text, with the
first seed, from the one found there. What is pruned has no effect on the output and never comes back.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import claims, harness, render
from benchmarks.decoders import Start, prepare, train_start
from benchmarks.harness import Results, Workers
from benchmarks.starts import RECIPES, SHAPE, build
from benchmarks.transformers_counts import STARTS
from warmstart.counts import PairStatistics
from warmstart.progress import Progress

TEXT, VOCAB_SIZE, STEPS, TRIALS = "wikitext-2", 2048, 200, 3
SEEDS = (1, 2, 3)  # of the runs that read the test text; 0 finds the rate
TRAINED = SHAPE | {"vocab_size": VOCAB_SIZE, "windows": 8, "scored": 120}
NONE, HALF, RANDOM, MOST = "nothing", "half by magnitude", "half at random", "nine tenths by magnitude"
PRUNED = {NONE: 0.0, HALF: 0.5, RANDOM: 0.5, MOST: 0.9}


def kept(scores: Tensor, share: float) -> Tensor:
    """Return a mask of the parts that stay: all but a share, the lowest scores of all layers together.

    Examples
    --------
    >>> kept(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 0.5).int().tolist()
    [[1, 0], [0, 1]]
    """
    mask = torch.ones(scores.numel())
    mask[scores.flatten().argsort(stable=True)[: round(share * scores.numel())]] = 0.0
    return mask.view_as(scores)


def prune(model: Any, share: float, seed: int | None) -> None:
    """Take away a share of the heads, and of the rows of the feed-forward layers, of a GPT-2.

    The magnitude of a head is the sum of squares of its part of query, key, value and output weights, that of a row the
    sum of its weights in and out. With a seed, parts are chosen at random. The output weights of a part become zero and
    get no gradient, so none of its weights has one.
    """
    blocks, n_heads = model.base_model.h, model.config.n_head
    with torch.no_grad():
        heads, rows = [], []
        for block in blocks:
            width = block.attn.c_proj.weight.shape[0]
            inward = block.attn.c_attn.weight.view(width, 3, n_heads, -1).square().sum(dim=(0, 1, 3))
            heads.append(inward + block.attn.c_proj.weight.view(n_heads, -1).square().sum(dim=1))
            rows.append(block.mlp.c_fc.weight.square().sum(dim=0) + block.mlp.c_proj.weight.square().sum(dim=1))
        scores = [torch.stack(heads), torch.stack(rows)]
        if seed is not None:
            random = np.random.default_rng(seed)
            scores = [torch.from_numpy(random.random(tuple(part.shape))) for part in scores]
        for block, head, row in zip(blocks, *(kept(part, share) for part in scores), strict=True):
            weight = block.attn.c_proj.weight
            _cut(weight, head.repeat_interleave(weight.shape[0] // n_heads)[:, None])
            _cut(block.mlp.c_proj.weight, row[:, None])


def _cut(weight: nn.Parameter, mask: Tensor) -> None:
    """Set rows to zero, for good."""
    weight.mul_(mask)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient.device))  # type: ignore[no-untyped-call]


def ticket(start: str, pruned: str, seed: int, pairs: PairStatistics) -> Start:
    """Return a start with parts pruned."""
    arm, recipe, _ = STARTS[start]
    made = build("gpt2", arm, seed, pairs, scale=RECIPES[recipe].scale)
    if PRUNED[pruned]:
        prune(made.model, PRUNED[pruned], seed if pruned == RANDOM else None)
    return made


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train every arm; ``quick``: two steps, one rate, one seed, two arms."""
    results = Results(None if quick else docs / "results" / "tickets.jsonl", __name__, progress=progress)
    wiki, n_steps, rows = data / TEXT, 2 if quick else STEPS, []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress, 1) as workers:
        parts = [wiki / "valid.txt", wiki / "test.txt"]
        prepare(folder, wiki / "train.txt", parts, 512 if quick else VOCAB_SIZE)

        def result(start: str, pruned: str, seed: int, share: float, test: bool) -> Any:
            arm, recipe, rate = STARTS[start]
            key = {"arm": arm, "recipe": recipe, "rate": rate * share, "pruned": pruned, "seed": seed, "test": test}
            key |= {**TRAINED, "steps": n_steps, "text": TEXT, "precision": harness.precision()}
            made = partial(ticket, start, pruned, seed)
            at = (0, n_steps)
            arguments = (folder, made, seed, rate * share, RECIPES[recipe], TRAINED, n_steps, at, test)
            return workers.do(key, train_start, *arguments)

        for start in STARTS:
            for pruned in (HALF,) if quick else PRUNED:
                best = {"share": 1.0}
                if not quick:
                    search = partial(result, start, pruned, 0, test=False)
                    best, _ = harness.search(lambda at, run=search: run(at["share"])["nats"][-1], best, TRIALS)  # type: ignore[misc]
                runs = [result(start, pruned, seed, best["share"], True) for seed in harness.cut(SEEDS, quick)]
                rows.append({"start": start, "pruned": pruned, **best, "runs": runs})
    if not quick:
        render.write(docs, "tickets", "Lottery tickets: pruned before training", *section(rows), results)
    return {"arms": rows}


def section(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    ends = {(row["start"], row["pruned"]): [run["test"] for run in row["runs"]] for row in rows}
    lost = {
        (start, pruned): [end - whole for end, whole in zip(ends[start, pruned], ends[start, NONE], strict=True)]
        for start, pruned in ends
    }
    warm, cold = (", ".join(f"{np.mean(lost[s, p]):.3f}" for p in (HALF, RANDOM, MOST)) for s in ("warm", "cold"))
    conclusion = (
        f"Half of the heads and rows pruned by magnitude, half at random, and nine tenths by magnitude cost the warm "
        f"start {warm} nats and the cold start {cold}, after {STEPS} steps on test text."
    )
    columns: dict[str, Any] = {"start": "start", "pruned": "pruned"}
    columns |= {"rate": lambda row: f"{STARTS[row['start']][2] * row['share']:g}"}
    columns |= {"step 0": lambda row: render.nats(row["runs"][0]["nats"][0])}
    columns |= {"validation": lambda row: render.spread([run["nats"][-1] for run in row["runs"]])}
    columns |= {"test": lambda row: render.spread(ends[row["start"], row["pruned"]])}
    columns |= {"cost": lambda row: render.spread(lost[row["start"], row["pruned"]])}
    tokens = STEPS * TRAINED["windows"] * TRAINED["context"]
    body = f"""{claims.claimed("tickets")}

GPT-2 of {SHAPE["layers"]} layers, width {SHAPE["width"]}, {SHAPE["heads"]} heads, WikiText-2, V = {VOCAB_SIZE:,},
{STEPS} steps, {tokens:,} tokens; cold is the log-unigram bias, warm the spectral start with heads, recipes as in
"Transformers: spectral warm starts". All layers compete. Every arm finds its rate by the validation text with a first
seed, from the one found there, until the best has a neighbour on both sides; {len(SEEDS)} other seeds read the test
text. Nats a token; "cost" is on the test text, against the same start and seed with nothing pruned; below 0 the pruned
network ends lower.

{render.rows_table(columns, rows)}"""
    return conclusion, body
