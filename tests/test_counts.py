import itertools

import numpy as np
import pytest
from scipy import sparse

from warmstart import counts
from warmstart.counts import NGrams, bigram_counts


def ngrams(tokens, vocab_size):
    return NGrams(np.bincount(tokens[1:], minlength=vocab_size), bigram_counts(tokens, vocab_size))


def test_discounted_bigram_by_hand():
    # pairs 0>1 twice, 1>0 once, 1>1 once; n1 = 2, n2 = 1, so d = 2 / 4; the target 1 comes three times in four
    tokens = np.array([0, 1, 1, 0, 1])
    model = ngrams(tokens, 2)
    assert model.discount == 0.5
    after_0 = (2 - 0.5) / 2 + 0.5 * 1 / 2 * 3 / 4
    after_1 = {0: (1 - 0.5) / 2 + 0.5 * 2 / 2 * 1 / 4, 1: (1 - 0.5) / 2 + 0.5 * 2 / 2 * 3 / 4}
    expected = -np.log([after_0, after_1[1], after_1[0], after_0]).mean()
    unigram, bigram = model.nats(tokens)
    assert bigram == pytest.approx(expected, abs=1e-12)
    assert unigram == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4, abs=1e-12)


def test_every_row_sums_to_one():
    tokens = np.random.default_rng(0).zipf(1.5, 5000) % 40
    model = ngrams(tokens, 50)  # ids 40 to 49 never come
    for first in (0, 1, 39, 45):
        total = sum(np.exp(-model.nats(np.array([first, second]))[1]) for second in range(50))
        assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_chunks_do_not_matter(monkeypatch, chunk):
    tokens = np.random.default_rng(1).integers(0, 9, 300).astype(np.uint16)
    monkeypatch.setattr(counts, "CHUNK", chunk)
    dense = np.zeros((9, 9), np.int64)
    for pair in itertools.pairwise(tokens):
        dense[pair] += 1
    found = bigram_counts(tokens, 9)
    assert isinstance(found, sparse.csr_array)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found.toarray(), dense)


def test_no_pairs():
    assert bigram_counts(np.array([3]), 5).nnz == 0
