"""BLiMP: which sentence of a pair a language model gives the higher probability, the grammatical one or the other.

Models of classic books, no gradient step. A tie counts one half: a model that cannot see the difference, because it
looks at one token, must not score. Source: Warstadt et al. 2020, arXiv 1912.00582.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.report import Book
from warmstart import solution
from warmstart.corpus import Corpus
from warmstart.counts import NGrams, bigram_counts
from warmstart.errors import InputError
from warmstart.estimators import WarmStartLM
from warmstart.layers import NearShallowLM
from warmstart.progress import Progress

FITS: dict[str, dict[str, Any]] = {
    "micro": {"preset": "micro"},
    "base (default)": {},
    "base, radial": {"contexts": ("radial",)},
    "bits 4096, radius 4, radial": {"bits": 4096, "radius": 4, "contexts": ("radial",)},
}
TIE = 1e-6  # nats
BATCH = 64  # sentences scored at once
Nats = Callable[[Sequence[Sequence[int]]], NDArray[np.float64]]


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Fit the models, score the pairs, write the table; ``quick``: one small model, nothing is written."""
    pairs = read_pairs(data / "blimp" / "blimp_dev15.jsonl")
    size = 1024 if quick else 8192
    corpus = Corpus.build(
        data / "classics" / "train.txt.xz", vocab_size=size, split_documents=r"\n\n", progress=progress
    )
    code = report.code_digest(
        "bitcipher/codes.py", *(f"warmstart/{n}.py" for n in ("language_model", "solution", "counts"))
    )
    book = Book(None if quick else docs / "results" / "blimp.jsonl", code)
    ngrams = NGrams(np.asarray(corpus.counts), bigram_counts(corpus.tokens, corpus.vocab_size))
    unigram = solution.class_prior(np.asarray(corpus.counts))
    models: dict[str, Callable[[], Nats]] = {
        "unigram": lambda: partial(_unigram, -np.log(unigram)),
        "bigram": lambda: partial(_bigram, ngrams, corpus.separator),
    }
    models |= {name: partial(_fitted, corpus, options) for name, options in FITS.items()}
    if quick:
        models = {name: models[name] for name in ("unigram", "bigram", "base, radial")}
    rows = {name: book.do(name, partial(_row, make, corpus, pairs)) for name, make in models.items()}
    if not quick:
        fields = sorted(next(iter(rows.values())))
        body = "## BLiMP: grammatical pairs\n\n"
        body += (
            f"{len(pairs):,} pairs of 15 paradigms, models of classic books, no gradient step; a tie is one half.\n\n"
        )
        body += report.table(["model", *fields], [[name, *(row[f] for f in fields)] for name, row in rows.items()])
        report.write(docs, "blimp", body)
    return {"arms": [{"name": name, **row} for name, row in rows.items()]}


def read_pairs(path: Path) -> list[tuple[str, str, str]]:
    """Return the good sentence, the bad one and the field of every pair."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(r["sentence_good"], r["sentence_bad"], r["field"]) for r in records]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: expected BLiMP pairs, a JSON object a line, got: {error}") from error


def by_field(nats: Nats, corpus: Corpus, pairs: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Return the share of pairs won, in each field and in all."""
    good, bad = (nats([corpus.tokenizer.encode(pair[i]).ids for pair in pairs]) for i in (0, 1))
    won = wins(good, bad)
    fields = np.array([field for *_, field in pairs])
    return {"all": float(won.mean())} | {str(f): float(won[fields == f].mean()) for f in np.unique(fields)}


def wins(good: NDArray[np.float64], bad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 where the good sentence has the lower nats, 0 where the bad one has, 1/2 for a tie.

    Examples
    --------
    >>> wins(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.where(np.abs(good - bad) <= TIE, 0.5, (good < bad).astype(np.float64))


def _row(make: Callable[[], Nats], corpus: Corpus, pairs: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    return by_field(make(), corpus, pairs)


def _fitted(corpus: Corpus, options: dict[str, Any]) -> Nats:
    return near_shallow(WarmStartLM(**options).fit(corpus))


def _unigram(nats: NDArray[np.float64], texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    return np.array([nats[list(ids)].sum() for ids in texts])


def _bigram(ngrams: NGrams, separator: int, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    return np.array([ngrams.cross_entropies(np.array([separator, *ids]))[1] * len(ids) for ids in texts])


def near_shallow(model: WarmStartLM) -> Nats:
    """Return the function that scores token ids by a fitted model, each text a document of its own."""
    module, separator = NearShallowLM.from_model(model.model_), model.model_.config.separator

    def nats(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        out = np.zeros(len(texts))
        for start in range(0, len(texts), BATCH):
            rows = texts[start : start + BATCH]
            length = max(map(len, rows))
            ids = torch.full((len(rows), length + 1), separator)
            for i, row in enumerate(rows):
                ids[i, 1 : len(row) + 1] = torch.tensor(row)
            with torch.no_grad():
                scores = module(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            there = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
            out[start : start + BATCH] = -(scores.double() * there).sum(dim=1).numpy()
        return out

    return nats
