"""BLiMP: to which sentence of a pair a language model gives the higher probability, grammatical or not.

The models are of classic books. All sentences are scored at once, each a document of its own that begins as sentences
of the books do: with a new line, or at once. What makes the sentences of validation books more probable is taken. A tie
counts one half: a model that looks at one token and cannot see the difference must not score. Source: Warstadt et al.
2020, arXiv 1912.00582.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import harness, render, texts
from benchmarks.decoders import Batch, Start, prepare, train_start
from benchmarks.harness import Results
from benchmarks.starts import RECIPES, SHAPE, STEPS, build
from warmstart.contexts import read_all
from warmstart.corpus import Corpus
from warmstart.counts import NGrams, discounted
from warmstart.estimators.language_model import WarmStartLM
from warmstart.kneser_ney import KneserNey
from warmstart.mixture import Ids
from warmstart.near_shallow import token_losses
from warmstart.ngrams import NGramCounts, count_ngrams, joined
from warmstart.progress import Progress
from warmstart.solution import class_prior

ORDER = 5
COUNTED = ("unigram", "bigram", "Kneser-Ney")
FITTED: dict[str, dict[str, Any]] = {  # settings of WarmStartLM
    "mixture, small": {"preset": "small"},
    "mixture, base": {"preset": "base"},
    "network, base": {"preset": "base", "contexts": ("radial",)},
    "network, 4096 bits, radius 4": {"preset": "base", "bits": 4096, "radius": 4, "contexts": ("radial",)},
}
TRAINED = {  # start of `benchmarks.transformers`, recipe and rate, found there
    "GPT-2, trained from a cold start": ("log-unigram bias", "keeping", 0.005),
    "GPT-2, trained from a spectral start": ("spectral + heads", "short", 0.01),
}
QUICK = (*COUNTED, "GPT-2, trained from a spectral start")
STARTS = {"a new line": "\n", "nothing": ""}
SENTENCES = 2000  # of validation books, to choose the start with
TIE = 1e-6  # nats
Pairs = Sequence[tuple[str, str, str]]  # good sentence, bad sentence, field
Score = Callable[[Ids, Ids], NDArray[np.float64]]  # tokens and positions of separators to log P of every target


class Books:
    """The books that the models are of."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.folder, self.vocabulary = folder, vocabulary

    @cached_property
    def corpus(self) -> Corpus:
        """The training books."""
        split = texts.SPLITS["classics"]
        return Corpus.build(self.folder / "train.txt.xz", vocab_size=self.vocabulary, split_documents=split)

    @cached_property
    def counts(self) -> NGramCounts:
        """Their n-grams."""
        return count_ngrams(self.corpus.tokens, self.corpus.documents, self.corpus.vocab_size, ORDER, workers=2)

    @cached_property
    def kneser_ney(self) -> KneserNey:
        """The n-gram model of the books."""
        return KneserNey(self.counts)

    def starts(self) -> dict[str, float]:
        """Return nats a token of lines of validation books, after each start."""
        lines = (self.folder / "valid.txt").read_text(encoding="utf-8").splitlines()
        sentences = [line for line in lines if line.endswith(".")][:SENTENCES]
        found = {}
        for name, start in STARTS.items():
            tokens, documents, sentence = packed(sentences, self.corpus, start)
            found[name] = -float(self.kneser_ney.log_probs(tokens, documents)[sentence >= 0].mean())
        return found


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Fit the models and score the pairs."""
    results = Results(None if quick else docs / "results" / "blimp.jsonl", __name__, progress=progress)
    books = Books(data / "classics", 1024 if quick else 8192)
    pairs = read(data)
    about = {"text": "classics", "vocabulary": books.vocabulary}
    starts = results.do({"starts": STARTS, "sentences": SENTENCES, "order": ORDER, **about}, books.starts)
    start = min(starts, key=lambda name: starts[name])
    rows = []
    for name in QUICK if quick else (*COUNTED, *FITTED, *TRAINED):
        key = {"model": name, **settings(name, quick), **about, "start": start, "tie": TIE}
        make = partial(shares, name, books, pairs, STARTS[start], quick)
        rows.append(results.row(key, make, model=f"{name}, order {ORDER}" if name == "Kneser-Ney" else name))
    if not quick:
        render.write(docs, "blimp", "BLiMP: grammatical pairs", *_section(rows, starts, pairs), results)
    return {"starts": starts, "arms": rows}


def read(data: Path) -> Pairs:
    """Return the pairs."""
    lines = (data / "blimp" / "blimp_dev15.jsonl").read_text(encoding="utf-8").splitlines()
    return [(pair["sentence_good"], pair["sentence_bad"], pair["field"]) for pair in map(json.loads, lines)]


def settings(name: str, quick: bool) -> dict[str, Any]:
    """Return what decides a model."""
    if name in TRAINED:
        arm, recipe, rate = TRAINED[name]
        return {"arm": arm, "recipe": recipe, "rate": rate, "steps": 4 if quick else STEPS, **SHAPE}
    return FITTED.get(name, {"order": ORDER} if name == "Kneser-Ney" else {})


def shares(name: str, books: Books, pairs: Pairs, start: str, quick: bool) -> dict[str, float]:
    """Return the share of pairs that a model gets right, in each field and in all."""
    if name in TRAINED:
        return trained(name, books, quick, partial(by_field, corpus=books.corpus, pairs=pairs, start=start))
    return by_field(score(name, books), books.corpus, pairs, start)


def by_field(score: Score, corpus: Corpus, pairs: Pairs, start: str) -> dict[str, float]:
    """Return the share of pairs whose good sentence has the higher probability; a tie is one half."""
    sentences = [pair[i] for pair in pairs for i in (0, 1)]
    tokens, documents, sentence = packed(sentences, corpus, start)
    scored = sentence >= 0
    good, bad = np.bincount(sentence[scored], score(tokens, documents)[scored]).reshape(-1, 2).T
    won = np.where(np.abs(good - bad) <= TIE, 0.5, (good > bad).astype(np.float64))
    fields = np.array([field for *_, field in pairs])
    return {"all": float(won.mean())} | {str(f): float(won[fields == f].mean()) for f in np.unique(fields)}


def packed(sentences: Sequence[str], corpus: Corpus, start: str) -> tuple[Ids, Ids, NDArray[np.int64]]:
    """Return sentences as documents: tokens, positions of separators, and the sentence of every target.

    The targets of the start and of the ends of documents belong to none, -1.
    """
    encode = corpus.tokenizer.encode
    first = encode(start, add_special_tokens=False).ids
    ids = [np.array([*first, *encode(sentence, add_special_tokens=False).ids]) for sentence in sentences]
    tokens, documents = joined(ids, corpus.separator, corpus.vocab_size)
    own = [np.repeat([-1, i, -1], [len(first), each.size - len(first), 1]) for i, each in enumerate(ids)]
    return tokens, documents, np.concatenate(own)


def score(name: str, books: Books) -> Score:
    """Return the function of a model of counts that gives ``log P`` of every target."""
    if name == "Kneser-Ney":
        return books.kneser_ney.log_probs
    if name in COUNTED:
        ngrams = NGrams.of(books.counts)
        prior, (pairs, backoff) = class_prior(ngrams.unigrams), discounted(ngrams.bigrams, ngrams.discount)
        if name == "unigram":
            return lambda tokens, _: np.log(prior[tokens[1:]])
        return lambda tokens, _: np.log(
            np.asarray(pairs[tokens[:-1], tokens[1:]]).ravel() + backoff[tokens[:-1]] * prior[tokens[1:]]
        )
    return fitted(WarmStartLM(**FITTED[name], n_jobs=2).fit(books.corpus))


def fitted(model: WarmStartLM) -> Score:
    """Return the function of a fitted model that gives ``log P`` of every target."""
    if (mixture := model.mixture_).experts.counted:
        return lambda tokens, documents: mixture.score(tokens, documents, workers=2).log_probs
    network, prior = model.model_, class_prior(model.unigrams_)
    assert network is not None  # noqa: S101 - a model without counts is a network

    def score(tokens: Ids, documents: Ids) -> NDArray[np.float64]:
        state = network.start()
        chunks = read_all(tokens, documents, network.config.window)
        return -np.concatenate([token_losses(network, chunk, state, prior, workers=2)[0] for chunk in chunks])

    return score


def beside(model: Any) -> Score:
    """Return the function of a `warmstart.hub.CountedForCausalLM` that gives ``log P`` of every target."""

    def score(tokens: Ids, documents: Ids) -> NDArray[np.float64]:
        borders = zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True)
        return np.concatenate([model.score(tokens[first : end + 1]).log_probs for first, end in borders])

    return score


def trained(name: str, books: Books, quick: bool, shares: Callable[[Score], dict[str, float]]) -> dict[str, float]:
    """Train a decoder as in `benchmarks.transformers` and return its shares of pairs."""
    arm, recipe, rate = TRAINED[name]
    steps = 4 if quick else STEPS
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        prepare(folder, books.folder / "train.txt.xz", [books.folder / "valid.txt"], books.vocabulary)
        make = partial(build, "gpt2", arm, 0)
        curve = train_start(
            folder, make, 0, rate, RECIPES[recipe], SHAPE, steps, (0, steps), judge=lambda s: shares(decoder(s))
        )
    return {**curve["judged"][-1], "nats": curve["nats"][-1]}


def decoder(start: Start, part: str = "") -> Score:
    """Return the function of a start that gives ``log P`` of every target of documents shorter than its window.

    Experts beside a decoder have what they say of the tokens in the ``part`` of its folder.
    """

    @torch.no_grad()
    def score(tokens: Ids, documents: Ids) -> NDArray[np.float64]:
        found, sizes = np.empty(tokens.size - 1), np.diff(documents)
        for size in np.unique(sizes):
            firsts = documents[:-1][sizes == size].astype(np.int64)
            places = firsts[:, None] + np.arange(size)
            ids = torch.from_numpy(tokens[np.append(places, firsts[:, None] + size, axis=1)].astype(np.int64))
            nats = start.nats(Batch(part, firsts, ids.to(harness.device())))[0]
            found[places] = -nats.double().cpu().numpy().reshape(places.shape)
        return found

    return score


def _section(rows: list[dict[str, Any]], starts: dict[str, float], pairs: Pairs) -> tuple[str, str]:
    share = {row["model"]: row["all"] for row in rows}
    best = max((name for name in share if name not in TRAINED), key=lambda name: share[name])
    conclusion = (
        f"Without a gradient step, the best model of counts ({best}) prefers the grammatical sentence in "
        f"{share[best]:.1%} of the pairs, a bigram model in {share['bigram']:.1%}, a unigram model in "
        f"{share['unigram']:.1%}; a small GPT-2 after {STEPS} steps in {max(share[name] for name in TRAINED):.1%}."
    )
    columns = {name: name for name in ("model", "all", *sorted({field for *_, field in pairs}))}
    after = " and ".join(f"{value:.3f} after {name}" for name, value in starts.items())
    body = f"""{len(pairs):,} pairs of 15 paradigms; models of classic books; share of the pairs in which the
grammatical sentence has the higher probability; a tie counts one half. A sentence is a document that begins with
{min(starts, key=lambda name: starts[name])}: Kneser-Ney gives lines of validation books that end with a full stop
{after}, in nats a token. The end of a sentence is not scored. "Network": no n-grams, no cache. GPT-2: 3 layers of width
128, {STEPS} steps of {SHAPE["windows"] * SHAPE["context"]:,} tokens, one seed, recipes and rates from the section on
transformers.

{render.rows_table(columns, rows)}"""
    return conclusion, body
