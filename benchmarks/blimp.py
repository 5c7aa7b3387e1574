"""BLiMP: to which sentence of a pair a language model gives the higher probability, grammatical or not.

The models are of classic books and have no gradient step. A tie counts one half: a model that looks at one token and
cannot see the difference must not score. Source: Warstadt et al. 2020, arXiv 1912.00582.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import render
from benchmarks.harness import Results
from warmstart.corpus import Corpus
from warmstart.counts import NGrams
from warmstart.estimators.language_model import WarmStartLM
from warmstart.ngrams import count_ngrams
from warmstart.progress import Progress

MODELS: dict[str, dict[str, Any]] = {  # settings of WarmStartLM, except for the n-grams
    "unigram": {},
    "bigram": {},
    "micro": {"preset": "micro", "contexts": ("radial", "block", "document")},
    "base": {"contexts": ("radial", "block", "document")},
    "base, radial": {"contexts": ("radial",)},
    "bits 4096, radius 4, radial": {"bits": 4096, "radius": 4, "contexts": ("radial",)},
}
QUICK = ("unigram", "bigram", "base, radial")
TIE = 1e-6  # nats
Pairs = Sequence[tuple[str, str, str]]  # good sentence, bad sentence, field
Score = Callable[[list[int]], float]  # token ids of a text, a document of its own, to nats


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Fit the models and score the pairs."""
    results = Results(None if quick else docs / "results" / "blimp.jsonl", __name__, progress=progress)
    vocabulary, text = 1024 if quick else 8192, data / "classics" / "train.txt.xz"
    corpus = cache(partial(Corpus.build, text, vocab_size=vocabulary, split_documents=r"\n\n"))
    lines = (data / "blimp" / "blimp_dev15.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(pair["sentence_good"], pair["sentence_bad"], pair["field"]) for pair in map(json.loads, lines)]

    def shares(name: str) -> dict[str, float]:
        return by_field(score(name, corpus()), corpus(), pairs)

    rows = []
    for name in QUICK if quick else MODELS:
        key = {"model": name, **MODELS[name], "text": "classics", "vocabulary": vocabulary, "tie": TIE}
        rows.append(results.row(key, partial(shares, name), model=name))
    if not quick:
        best = max(rows, key=lambda row: float(row["all"]))
        conclusion = (
            f"The best warm start ({best['model']}) prefers the grammatical sentence in {best['all']:.1%} of the "
            f"pairs, a bigram model in {rows[1]['all']:.1%}, a unigram model in {rows[0]['all']:.1%}: all are little "
            "above chance (50%)."
        )
        columns = {name: name for name in ("model", "all", *sorted({field for *_, field in pairs}))}
        body = f"""{len(pairs):,} pairs of 15 paradigms; models of classic books, no gradient step; share of the pairs
in which the grammatical sentence has the higher probability; a tie counts one half.

{render.rows_table(columns, rows)}"""
        render.write(docs, "blimp", "BLiMP: grammatical pairs", conclusion, body, results)
    return {"arms": rows}


def by_field(score: Score, corpus: Corpus, pairs: Pairs) -> dict[str, float]:
    """Return the share of pairs whose good sentence has the lower nats, in each field and in all; a tie is one half."""
    good, bad = (np.array([score(corpus.tokenizer.encode(pair[i]).ids) for pair in pairs]) for i in (0, 1))
    won = np.where(np.abs(good - bad) <= TIE, 0.5, (good < bad).astype(np.float64))
    fields = np.array([field for *_, field in pairs])
    return {"all": float(won.mean())} | {str(f): float(won[fields == f].mean()) for f in np.unique(fields)}


def score(name: str, corpus: Corpus) -> Score:
    """Return the function of a model that gives the nats of a text."""
    if name in ("unigram", "bigram"):
        ngrams = NGrams.of(count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2))
        return lambda ids: ngrams.cross_entropies(np.array([corpus.separator, *ids]))[name == "bigram"] * len(ids)
    return near_shallow(WarmStartLM(**MODELS[name]).fit(corpus))


def near_shallow(model: WarmStartLM) -> Score:
    """Return the function of a fitted model that gives the nats of a text."""
    module = model.to_torch()
    separator = module.config.separator

    @torch.no_grad()
    def score(ids: list[int]) -> float:
        text = torch.tensor([separator, *ids])
        return functional.cross_entropy(module(text[None, :-1])[0].double(), text[1:], reduction="sum").item()

    return score
