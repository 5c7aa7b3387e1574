"""The bench of counting speed: its texts, its sums by scipy, its section."""

import itertools
from collections import Counter

import numpy as np
import pytest

from benchmarks import bounds, contextual, scaling, throughput_section
from warmstart.ngrams import count_ngrams

BOOKS = np.array([0, 1, 2, 3, 0, 2, 2, 0, 3, 1, 2, 0]), np.array([0, 4, 7, 11]), 4


def test_updates_and_copies():
    table, target = np.zeros(4, np.int64), np.zeros(3, np.uint64)
    bounds.update(np.array([1, 3, 1], np.uint64), table)
    bounds.copy(np.array([5, 6, 7], np.uint64), target)
    assert (table.tolist(), target.tolist()) == ([0, 2, 0, 1], [5, 6, 7])


def test_shuffled_books_are_whole_until_the_cut():
    tokens, documents, _ = scaling.shuffled(BOOKS, 22)
    books = [tuple(tokens[a + 1 : b].tolist()) for a, b in itertools.pairwise(documents)]
    assert Counter(books) == {(1, 2, 3): 2, (2, 2): 2, (3, 1, 2): 2}


@pytest.mark.parametrize("n", [1, 2, 65, 20_000])
def test_fresh_text_is_a_text(n):
    tokens, documents, vocab_size = scaling.fresh(BOOKS, n)
    again = scaling.fresh(BOOKS, n)[0]
    assert tokens.size == n + 1
    assert np.array_equal(tokens, again)
    assert count_ngrams(tokens, documents, vocab_size, 2).n_tokens == n


def test_fresh_text_follows_discounted_trigrams():
    """After 1 2: once 3, once the end. Each keeps 1/4 of its count of 2; 3/4 go to what follows 2 alone."""
    tokens = scaling.fresh(BOOKS, 200_000)[0]
    after = tokens[2:][(tokens[:-2] == 1) & (tokens[1:-1] == 2)]
    counts = np.bincount(after, minlength=4) / after.size
    # after 2: 3 once, 2 once, the end twice, less 3/4 each of 4; the rest, 9/16, by 11 tokens: 0 3, 1 2, 2 4, 3 2
    alone = np.array([1.25, 0, 0.25, 0.25]) / 4 + 9 / 16 * np.array([3, 2, 4, 2]) / 11
    np.testing.assert_allclose(counts, np.array([0.25, 0, 0, 0.25]) / 2 + 0.75 * alone, atol=0.01)


def test_sums_by_scipy_are_ours(monkeypatch):
    monkeypatch.setattr(contextual, "POSITIONS", 37)
    rng = np.random.default_rng(0)
    sentences = [[f"w{i}" for i in rng.integers(0, 130, size)] for size in rng.integers(0, 60, 60)]
    sums, vectors = contextual.ours(sentences)
    assert np.array_equal(contextual.by_scipy(sentences), sums)
    assert vectors.shape == sums.shape


def test_the_section():
    row = {"cpu_seconds": 2.0, "ngrams": 7, "peak_bytes": 2**30, "estimate_bytes": 2**31, "limit_bytes": 6 << 30}
    rows = [{"kind": kind, "n": n, **row} for kind in scaling.KINDS for n in (1_000_000, 1_250_000)]
    rows[-1]["cpu_seconds"] = 3.0
    output = {
        "counting": {"pairs": 16, "ratio": 6.0, "million_pairs_per_second": {"warmstart": [9.0], "scipy": [1.5]}},
        "cipher": {"vocabulary": 9, "bits": 3, "seconds": 0.5, "mib": 1.0},
        "bounds": {
            "rates": {"copied": [1e10], "random": [2e8], "radial": [1.5e8], "pairs": [1e7], "ngrams": [4e6]},
            "updates_a_pair": 1.5,
        },
        "contextual": {"tokens": 1000, "cpu_seconds": {"bitcipher": [1.0], "gensim CBOW": [6.0], "scipy": [4.0]}},
        "growing": rows,
        "processes": {
            "tokens": 10, "wall_seconds": {"1": 3.0, "2": 2.0}, "cpu_seconds": {"1": 3.0, "2": 3.5},
            "load": 4.0, "cores": 2,
        },
    }  # fmt: skip
    marks = dict.fromkeys(output, "")
    settings = {"tokens": 4, "repetitions": 1, "bits": 256, "lags": 4, "vocabulary": 8192}
    conclusion, body = throughput_section.section(output, settings, marks)
    assert "reaches 75% of the machine's rate of random updates" in conclusion
    assert "6.0 times as fast as by gensim's CBOW and 4.0 times as fast as by scipy" in conclusion
    assert "from 1,000,000 to 1,250,000 tokens the time a token grows 1.20 times" in conclusion
    assert "| radial coded counting | 150 million updates/s | 40.0 | 75% of random updates |" in body
    assert "| n-grams of order 5 | 0.7 GB/s | 250 | 7% of copy |" in body
    assert "in one process, 2.0 s in two at\nthe same time, 1.50 times as fast" in body
