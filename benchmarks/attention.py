"""Self-attention without gradients: W from hidden targets beside uniform attention and hand-made recency decays.

Every arm attends to blocks of the classics, counts the superposed contexts ``A^T X`` with the next token and solves
them into the vocabulary. The decays may choose the best of eleven on the very text they are measured on; the hidden
targets stop by training windows held out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import report
from warmstart import attention, contexts, figures, solution
from warmstart.accumulators import Accumulator, empty, update
from warmstart.corpus import Corpus
from warmstart.near_shallow import cipher_vectors
from warmstart.near_shallow.fit import SAMPLE, STRETCHES
from warmstart.progress import Progress

SPLIT = r"\n\n"  # a blank line between books
BITS, BLOCK, SMOOTHING = 256, 8, 1.0
TOKENS, EVERY = 1_000_000, 4  # training tokens; every 4th token of the validation books is scored
DECAYS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
CODE = (
    "bitcipher/codes.py",
    *(f"warmstart/{name}.py" for name in ("contexts", "accumulators", "_kernels", "solution", "attention")),
)
MEASURES = {"temperature_1": "temperature 1", "fitted": "temperature fitted", "mixture": "mixture"}

Attend = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Windows:
    """Windows (B, n) of token ids, newest first, -1 empty, and the tokens (n,) that came next."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """What all arms share: blocks to count and to score, full windows to learn W from, vectors and prior."""

    blocks: Windows
    full: Windows
    scored: Windows
    vectors: sparse.csr_array
    prior: NDArray[np.float64]


def read(books: Path, n: int, vocab_size: int, progress: Progress | None) -> Text:
    """Read ``n`` training tokens, from stretches all over the books, and every 4th validation token."""
    train = Corpus.build(books / "train.txt.xz", vocab_size=vocab_size, split_documents=SPLIT, progress=progress)
    valid = Corpus.encode(books / "valid.txt", train.tokenizer, split_documents=SPLIT)
    length = n // STRETCHES
    starts = np.linspace(1, train.tokens.size - length, STRETCHES).astype(int)
    chunks = [contexts.read(train.tokens, train.documents, BLOCK, s, s + length) for s in starts]
    targets = np.concatenate([chunk.targets for chunk in chunks])
    windows = np.concatenate([chunk.window for chunk in chunks], axis=1)
    whole = windows[-1] >= 0
    scored = contexts.read(valid.tokens, valid.documents, BLOCK, 1, valid.tokens.size)
    return Text(
        Windows(np.concatenate([chunk.block(BLOCK) for chunk in chunks], axis=1), targets),
        Windows(windows[:, whole], targets[whole]),
        Windows(scored.block(BLOCK)[:, ::EVERY], scored.targets[::EVERY]),
        cipher_vectors(train.vocab_size, BITS),
        solution.class_prior(np.bincount(targets, minlength=train.vocab_size)),
    )


def decay(rate: float) -> Attend:
    """Return attention that falls by ``rate`` a position, normalised over the filled positions."""

    def attend(window: NDArray[np.int64]) -> NDArray[np.float32]:
        A = np.where(window >= 0, rate ** np.arange(len(window))[:, None], 0.0).T
        return np.asarray(A / A.sum(axis=1, keepdims=True), dtype=np.float32)

    return attend


def count(windows: Windows, A: NDArray[np.float32], text: Text) -> tuple[sparse.csr_array, Accumulator]:
    """Return the superposed contexts (n, b) and their counts with the targets (b, V)."""
    X = contexts.superposed(windows.tokens, A, text.vectors)
    values = empty(BITS, text.prior.size)
    update(values, X, windows.targets)
    return X, values


def solve(values: Accumulator, text: Text, temperatures: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return the weights (b, V) of the read-out."""
    return solution.solve([values], text.prior, k=1.0, smoothing=SMOOTHING, temperatures=temperatures)


def measure(attend: Attend, text: Text) -> dict[str, Any]:
    """Count with an attention and return its perplexities on the validation books, and the fitted temperature.

    ``temperature_1`` and ``fitted``: the superposed context read out; ``mixture``: ``sum_i A_i P(y | x_i)``.
    """
    X, values = count(text.blocks, attend(text.blocks.tokens), text)
    picked = np.linspace(0, text.blocks.targets.size - 1, SAMPLE).astype(int)
    Y = sparse.eye_array(text.prior.size, format="csr")[text.blocks.targets[picked]]
    found = solution.fit(solution.Sample([X[picked]], Y), [values], text.prior, k=1.0, smoothing=SMOOTHING)
    published, fitted = solve(values, text, np.ones(1)), solve(values, text, found.temperatures)
    window, y, A = text.scored.tokens, text.scored.targets, attend(text.scored.tokens)
    X = contexts.superposed(window, A, text.vectors)
    norm = attention.log_normalisers(text.vectors, published)
    nats = {
        "temperature_1": read_out(X, y, published),
        "fitted": read_out(X, y, fitted),
        "mixture": attention.mixture(window, y, A, text.vectors, published, norm)[0],
    }
    return {name: float(np.exp(value)) for name, value in nats.items()} | {"temperature": float(found.temperatures[0])}


def rounds(text: Text, progress: Progress | None) -> list[dict[str, Any]]:
    """Learn W from hidden targets; measure the attention of every round, uniform first."""
    found = attention.fit_attention(text.full.tokens, text.full.targets, text.vectors, text.prior, smoothing=SMOOTHING)
    rows = []
    for i, (W, nats) in enumerate(zip(found.rounds, found.held_out_losses, strict=True)):
        if progress:
            progress("rounds of hidden targets", i, 0)
        row = measure(lambda window, W=W: contexts.attend(window, W, text.vectors), text)  # type: ignore[misc]
        name = f"hidden targets, round {i}" if i else "uniform"
        rows.append({"name": name, "held_out": float(np.exp(nats)), **row})
    return rows


def read_out(X: sparse.csr_array, targets: NDArray[np.int64], weights: NDArray[np.floating]) -> float:
    """Return the mean of ``-log softmax(X weights)`` at the targets."""
    at_target = np.asarray(X.multiply(weights.T[targets]).sum(axis=1)).ravel()
    return float((attention.log_normalisers(X, weights) - at_target).mean())


def draw(path: Path, learnt: list[dict[str, Any]], best: dict[str, dict[str, Any]]) -> None:
    """Draw perplexity by round, the best decays as horizontal lines."""
    figure, (axis,) = figures.figure(1)
    for i, (measured, name) in enumerate(MEASURES.items()):
        axis.plot([row[measured] for row in learnt], "o-", color=f"C{i}", markersize=4, label=name)
        label = f"{name}, best {best[measured]['name']}"
        axis.axhline(best[measured][measured], color=f"C{i}", linestyle="--", linewidth=1, label=label)
    axis.set(xlabel="round of hidden targets (0: uniform)", ylabel="perplexity on the validation books", yscale="log")
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_minor_formatter("{x:.0f}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figures.save_figure(figure, path)


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Compare, and write ``results/attention.jsonl``, ``images/attention.png`` and a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Folder with ``classics``.
    docs : Path
        Folder to write to.
    quick : bool
        A thirtieth of the training tokens, few words and decays; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``decays`` and ``rounds``, lists of rows; ``unigram``, a perplexity; ``tokens`` counted and scored.
    """
    text = read(data / "classics", *((TOKENS // 30, 1024) if quick else (TOKENS, 8192)), progress)
    book = report.Book(None if quick else docs / "results" / "attention.jsonl", report.code_digest(*CODE))
    decays: list[dict[str, Any]] = []
    rates = DECAYS[::4] if quick else DECAYS
    for i, rate in enumerate(rates):
        if progress:
            progress("decays", i, len(rates))
        name = f"decay {rate}"
        decays.append({"name": name, **book.do(name, partial(measure, decay(rate), text))})
    learnt = book.do("rounds of hidden targets", partial(rounds, text, progress))
    unigram = float(np.exp(-np.log(text.prior)[text.scored.targets].mean()))
    tokens = [text.blocks.targets.size, text.scored.targets.size]
    results = {"decays": decays, "rounds": learnt, "unigram": unigram, "tokens": tokens}
    if not quick:
        best = {measured: min(decays, key=lambda row: float(row[measured])) for measured in MEASURES}
        draw(docs / "images" / "attention.png", learnt, best)
        report.write(docs, "attention", _section(results))
    return results


def _section(results: dict[str, Any]) -> str:
    counted, scored = results["tokens"]
    columns = ("name", *MEASURES, "temperature", "held_out")
    rows = [[row.get(column) for column in columns] for row in results["rounds"] + results["decays"]]
    headers = ["attention", *MEASURES.values(), "fitted temperature", "held-out mixture"]
    return (
        f"## Attention: hidden targets\n\nPerplexity on {scored:,} tokens of the validation books, a single attended "
        f"context of {BLOCK} positions in blocks, read out directly: b = {BITS}, {counted:,} training tokens, "
        f"smoothing {SMOOTHING:.0f} for all; unigram {results['unigram']:,.0f}. Mixture: sum of A_i P(y | x_i). The "
        "rounds stop by training windows held out (last column: full windows, of the same books, so lower); the last "
        "round is the W that is used. Every decay is shown: its best is chosen by the text it is measured on.\n\n"
        f"{report.table(headers, rows)}\n![Perplexity by round beside recency decays](images/attention.png)"
    )
