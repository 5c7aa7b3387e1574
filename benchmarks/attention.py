"""Self-attention without gradients: weights from hidden targets beside uniform attention and hand-made decays.

Every arm attends to blocks of the classics, counts the superposed contexts ``A^T X`` with the next token, and solves
the counts into the vocabulary.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import render
from benchmarks.harness import Results
from warmstart import attention, contexts, solution
from warmstart.accumulators import empty, update
from warmstart.corpus import Corpus
from warmstart.near_shallow.fit import SAMPLE, STRETCHES
from warmstart.near_shallow.model import cipher_vectors
from warmstart.progress import Progress

SPLIT = r"\n\n"  # a blank line between books
BITS, BLOCK, SMOOTHING = 256, 8, 1.0
EVERY = 4  # every 4th token of the validation books is scored
DECAYS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
SETTINGS: dict[str, Any] = {
    "tokens": 1_000_000, "vocabulary": 8192, "bits": BITS, "block": BLOCK, "smoothing": SMOOTHING, "every": EVERY,
}  # fmt: skip
QUICK = {"tokens": 30_000, "vocabulary": 1024}
MEASURES = {"superposed": "fitted", "mixture": "mixture"}

Attend = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Windows = tuple[NDArray[np.int64], NDArray[np.int64]]  # token ids (B, n), newest first, -1: empty; next tokens (n,)


class Text(NamedTuple):
    """What all arms share: blocks to count and to score, full windows to learn attention from, vectors and prior."""

    blocks: Windows
    full: Windows
    scored: Windows
    vectors: sparse.csr_array
    prior: NDArray[np.float64]


def read(books: Path, n: int, vocab_size: int) -> Text:
    """Read ``n`` training tokens, from stretches all over the books, and every 4th validation token."""
    train = Corpus.build(books / "train.txt.xz", vocab_size=vocab_size, split_documents=SPLIT)
    valid = Corpus.encode(books / "valid.txt", train.tokenizer, split_documents=SPLIT)
    length = n // STRETCHES
    starts = np.linspace(1, train.tokens.size - length, STRETCHES).astype(int)
    chunks = [contexts.read(train.tokens, train.documents, BLOCK, s, s + length) for s in starts]
    targets = np.concatenate([chunk.targets for chunk in chunks])
    windows = np.concatenate([chunk.window for chunk in chunks], axis=1)
    full = windows[-1] >= 0
    scored = contexts.read(valid.tokens, valid.documents, BLOCK, 1, valid.tokens.size)
    return Text(
        (np.concatenate([chunk.block(BLOCK) for chunk in chunks], axis=1), targets),
        (windows[:, full], targets[full]),
        (scored.block(BLOCK)[:, ::EVERY], scored.targets[::EVERY]),
        cipher_vectors(train.vocab_size, BITS),
        solution.class_prior(np.bincount(targets, minlength=train.vocab_size)),
    )


def decay(rate: float, window: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return attention (B, n) that falls by ``rate`` at each position back, normalised over the filled positions."""
    A = np.where(window >= 0, rate ** np.arange(len(window))[:, None], 0.0).T
    return np.asarray(A / A.sum(axis=1, keepdims=True), dtype=np.float32)


def measure(attend: Attend, text: Text) -> dict[str, float]:
    """Count with an attention; return perplexities on the validation books.

    ``fitted``: the superposed context read out with a fitted temperature; ``mixture``: ``sum_i A_i P(y | x_i)``.
    """
    window, targets = text.blocks
    X = contexts.superposed(window, attend(window), text.vectors)
    values = empty(BITS, text.prior.size)
    update(values, X, targets)
    sampled = np.linspace(0, targets.size - 1, SAMPLE).astype(int)
    sample = solution.Sample([X[sampled]], sparse.eye_array(text.prior.size, format="csr")[targets[sampled]])
    fit = solution.fit(sample, [values], text.prior, k=1.0, smoothing=SMOOTHING)
    published, fitted = (
        solution.solve([values], text.prior, k=1.0, smoothing=SMOOTHING, temperatures=temperatures)
        for temperatures in (np.ones(1), fit.temperatures)
    )
    window, targets = text.scored
    A = attend(window)
    X = contexts.superposed(window, A, text.vectors)
    at_target = np.asarray(X.multiply(fitted.T[targets]).sum(axis=1)).ravel()
    norm = attention.log_normalisers(text.vectors, published)
    return {
        "fitted": float(np.exp((attention.log_normalisers(X, fitted) - at_target).mean())),
        "mixture": float(np.exp(attention.mixture(window, targets, A, text.vectors, published, norm)[0])),
    }


def rounds(text: Text) -> list[dict[str, Any]]:
    """Learn attention from hidden targets; measure it after every round, uniform attention first."""
    learnt = attention.fit_attention(*text.full, text.vectors, text.prior, smoothing=SMOOTHING)
    rows = []
    for i, (W, nats) in enumerate(zip(learnt.rounds, learnt.held_out_losses, strict=True)):
        row = measure(partial(contexts.attend, W=W, vectors=text.vectors), text)
        rows.append({"name": f"hidden targets, round {i}" if i else "uniform", "held_out": float(np.exp(nats)), **row})
    return rows


def sizes(text: Text) -> dict[str, float]:
    """Return the numbers of tokens counted and scored, and the perplexity of the unigram model."""
    targets = text.scored[1]
    unigram = float(np.exp(-np.log(text.prior)[targets].mean()))
    return {"counted": text.blocks[1].size, "scored": targets.size, "unigram": unigram}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every round of the hidden targets, and every decay."""
    settings = SETTINGS | (QUICK if quick else {})
    results = Results(None if quick else docs / "results" / "attention.jsonl", __name__, progress=progress)
    text = cache(lambda: read(data / "classics", settings["tokens"], settings["vocabulary"]))
    key = {"attention": "hidden targets", **settings}
    learnt = [{**row, "mark": results.mark(key)} for row in results.do(key, lambda: rounds(text()))]
    decays = []
    for rate in DECAYS[::4] if quick else DECAYS:
        work = partial(lambda rate: measure(partial(decay, rate), text()), rate)
        decays.append(results.row({"attention": "decay", "rate": rate, **settings}, work, name=f"decay {rate}"))
    output = {"rounds": learnt, "decays": decays}
    output["text"] = results.do({"text": "classics", **settings}, lambda: sizes(text()))
    if not quick:
        lines: dict[str, Any] = {}
        for title, measured in MEASURES.items():
            level = min(row[measured] for row in decays)
            lines[title] = range(len(learnt)), [row[measured] for row in learnt]
            lines[f"{title}, best decay"] = (0, len(learnt) - 1), (level, level)
        panels, x = {"validation books": lines}, "round of hidden targets (0: uniform)"
        render.curves(docs / "images" / "attention.png", panels, x, "perplexity", log="y")
        render.write(docs, "attention", "Attention from hidden targets", *_section(output), results)
    return output


def _section(output: dict[str, Any]) -> tuple[str, str]:
    text, first, last = output["text"], output["rounds"][0], output["rounds"][-1]
    columns: dict[str, Any] = {"attention": "name", **MEASURES, "held-out mixture": lambda row: row.get("held_out")}
    superposed, mixture = (min(row[measured] for row in output["decays"]) for measured in MEASURES.values())
    conclusion = (
        f"Attention from hidden targets lowers perplexity from {first['fitted']:.0f} (uniform) to "
        f"{last['fitted']:.0f}, and to {last['mixture']:.0f} as a mixture; the best of eleven hand-made decays has "
        f"{superposed:.0f} and {mixture:.0f}."
    )
    body = f"""Perplexity on {text["scored"]:,} tokens of the validation books. The only context is an attended block of
{BLOCK} positions, read out directly: {BITS} bits, {text["counted"]:,} training tokens, smoothing {SMOOTHING:.0f} for
all arms. The unigram model has {text["unigram"]:.0f}. "Superposed" is the sum of A_i x_i, read out with a fitted
temperature. "Mixture" is the sum of A_i P(y | x_i). The rounds end by held-out training windows; the last column is
measured on them (full windows of the training books, so it is lower), and the last round is the one that is used. The
best decay is chosen with the text that it is measured on.

{render.rows_table(columns, output["rounds"] + output["decays"])}
![Perplexity after every round, and of the best decays](images/attention.png)"""
    return conclusion, body
