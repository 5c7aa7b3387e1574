"""Measurements of models of counts, each made in a process of its own, so that seconds and peak memory are its own."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import texts
from warmstart.corpus import Corpus
from warmstart.estimators.language_model import PRESETS
from warmstart.kneser_ney import KneserNey
from warmstart.near_shallow import PRESETS as NETWORKS
from warmstart.ngrams import Ids, count_ngrams
from warmstart.progress import peak_memory
from warmstart.solving import Recipe, solve

DEFAULT = "small"  # preset
CACHED, WHOLE = "and the cache", "and the network"
ADDED: dict[str, tuple[str, ...]] = {
    "n-grams": ("ngrams",),
    CACHED: ("ngrams", "cache"),
    "and classes": ("ngrams", "classes", "cache"),
    WHOLE: ("ngrams", "classes", "cache", "radial"),
    "all but the cache": ("ngrams", "classes", "radial"),
}
CORES = os.cpu_count() or 1
REPETITIONS = 5
ROWS = 400  # contexts, spread over a text


def corpus_seconds(data: Path, name: str, vocabulary: int) -> dict[str, float]:
    """Train a tokenizer on a text and encode it, without a cache."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-", ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {"vocab_size": vocabulary, "split_documents": texts.SPLITS[name]}
        Corpus.build(texts.source(data, name, "train"), cache_dir=folder, **options)
        return {"seconds": time.perf_counter() - began}


def kneser_ney(data: Path, name: str, vocabulary: int, order: int) -> dict[str, Any]:
    """Count and solve n-grams, and score validation and test text.

    Returns
    -------
    dict
        ``count`` and ``solve``: seconds with a thread for each core; ``peak_memory_bytes`` after both; ``bytes`` of the
        statistic on disk; ``targets``, ``ngrams``, ``fallbacks``; ``tokens_per_second``: scored by one core, median;
        ``valid`` and ``test``: perplexity.
    """
    text = texts.load(data, name, vocabulary)
    _compile(text.parts["test"], text.vocab_size, order)
    began = time.perf_counter()
    counts = count_ngrams(*text.parts["train"], text.vocab_size, order, workers=CORES)
    counted = time.perf_counter()
    model = KneserNey(counts)
    result: dict[str, Any] = {"count": counted - began, "solve": time.perf_counter() - counted}
    result |= {"peak_memory_bytes": peak_memory(), "targets": counts.n_tokens}
    result |= {"ngrams": model.n_ngrams, "fallbacks": model.fallbacks}
    seconds = []
    for part in ["valid"] + ["test"] * REPETITIONS:
        began = time.process_time()  # CPU time: other work on the machine does not count
        log_probs = model.log_probs(*text.parts[part])
        seconds.append(time.process_time() - began)
        result[part] = text.perplexity(log_probs)
    result["tokens_per_second"] = log_probs.size / median(seconds[1:])
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-", ignore_cleanup_errors=True) as folder:
        counts.save(Path(folder, "counts.safetensors"))
        result["bytes"] = Path(folder, "counts.safetensors").stat().st_size
    return result


def _compile(part: tuple[Ids, Ids], vocab_size: int, order: int) -> None:
    """Compile what `kneser_ney` times, by a run on a short text."""
    model = KneserNey(count_ngrams(*part, vocab_size, order, workers=CORES))
    model.log_probs(*part)


def rows(data: Path, vocabulary: int, order: int) -> dict[str, Any]:
    """Return milliseconds for the whole distribution of the next token: the classics as words, a large vocabulary."""
    options: dict[str, Any] = {"split_documents": texts.SPLITS["classics"]}
    train = texts.source(data, "classics", "train")
    corpus = Corpus.build(train, tokenizer="words", vocab_size=vocabulary, **options)
    test = Corpus.encode(texts.source(data, "classics", "test"), corpus.tokenizer, **options).tokens
    model = KneserNey(count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order, workers=CORES))
    milliseconds, off = [], []
    for end in np.linspace(order, test.size - 1, ROWS).astype(int).tolist():
        context = test[end - order : end]
        began = time.perf_counter()
        row = model.row(context)
        milliseconds.append(1000 * (time.perf_counter() - began))
        off.append(abs(float(row.sum()) - 1))
    low, middle, high = np.quantile(milliseconds, (0.05, 0.5, 0.95)).tolist()
    found = {"vocab_size": corpus.vocab_size, "tokens": corpus.n_tokens, "ngrams": model.n_ngrams}
    return {**found, "low": low, "median": middle, "high": high, "largest_error_of_a_sum": max(off)}


def mixture(data: Path, name: str, vocabulary: int, preset: str, contexts: tuple[str, ...]) -> dict[str, Any]:
    """Solve a mixture with the sizes of a preset, and score validation and test text.

    Returns
    -------
    dict
        ``seconds`` by stage; ``peak_memory_bytes``; ``left_out``: perplexity of counted text on which the gate was
        fitted, each document left out; for "valid" and "test" ``perplexity``, and ``experts`` alone and ``shares``.
    """
    text, sizes = texts.load(data, name, vocabulary), PRESETS[preset]
    recipe = Recipe(contexts, sizes["order"], network=NETWORKS[preset])
    began = time.perf_counter()
    counts = count_ngrams(*text.parts["train"], text.vocab_size, recipe.counted_order, workers=CORES)
    count = time.perf_counter() - began
    solved = solve(counts, recipe, CORES)
    result: dict[str, Any] = {"seconds": {"count": count, **solved.report["seconds"]}}
    result |= {"peak_memory_bytes": peak_memory(), "left_out": solved.report["left_out_perplexity"]}
    assert solved.mixture is not None  # noqa: S101 - there is an expert of counts
    for part in ("valid", "test"):
        scores = solved.mixture.score(*text.parts[part], CORES)
        experts = {expert: float(np.exp(loss)) for expert, loss in scores.experts.items()}
        result[part] = {"perplexity": text.perplexity(scores.log_probs), "experts": experts, "shares": scores.shares}
    return result
