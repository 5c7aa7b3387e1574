import itertools

import numpy as np
import pytest
from scipy import sparse

from warmstart import counts, files
from warmstart.counts import NGrams, PairStatistics, bigram_counts, count_pairs
from warmstart.errors import InputError


def ngrams(tokens, vocab_size):
    return NGrams(np.bincount(tokens[1:], minlength=vocab_size), bigram_counts(tokens, vocab_size))


def test_discounted_bigram_by_hand():
    # pairs 0>1 twice, 1>0 once, 1>1 once; n1 = 2, n2 = 1, so d = 2 / 4; the target is 1 three times in four
    tokens = np.array([0, 1, 1, 0, 1])
    model = ngrams(tokens, 2)
    assert model.discount == 0.5
    after_0 = (2 - 0.5) / 2 + 0.5 * 1 / 2 * 3 / 4
    after_1 = {0: (1 - 0.5) / 2 + 0.5 * 2 / 2 * 1 / 4, 1: (1 - 0.5) / 2 + 0.5 * 2 / 2 * 3 / 4}
    expected = -np.log([after_0, after_1[1], after_1[0], after_0]).mean()
    unigram, bigram = model.cross_entropies(tokens)
    assert bigram == pytest.approx(expected, abs=1e-12)
    assert unigram == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4, abs=1e-12)


def test_every_row_sums_to_one():
    tokens = np.random.default_rng(0).zipf(1.5, 5000) % 40
    model = ngrams(tokens, 50)  # ids 40 to 49 never occur
    for first in (0, 1, 39, 45):
        total = sum(np.exp(-model.cross_entropies(np.array([first, second]))[1]) for second in range(50))
        assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_chunks_do_not_matter(monkeypatch, chunk):
    tokens = np.random.default_rng(1).integers(0, 9, 300).astype(np.uint16)
    monkeypatch.setattr(counts, "PAIRS_PER_CHUNK", chunk)
    dense = np.zeros((9, 9), np.int64)
    for pair in itertools.pairwise(tokens):
        dense[pair] += 1
    counted = bigram_counts(tokens, 9)
    assert isinstance(counted, sparse.csr_array)
    assert counted.dtype == np.int64
    np.testing.assert_array_equal(counted.toarray(), dense)


def test_no_pairs():
    assert bigram_counts(np.array([3]), 5).nnz == 0


def test_pairs_of_shards_add_up_and_a_part_is_held_out():
    tokens = np.random.default_rng(0).zipf(1.3, 2 * counts.STRETCH * counts.HELD_OUT_EVERY + 1) % 50
    half = counts.STRETCH * counts.HELD_OUT_EVERY
    whole, first, second = (count_pairs(text, 50) for text in (tokens, tokens[: half + 1], tokens[half:]))
    assert whole.held_out.sum() * (counts.HELD_OUT_EVERY - 1) == whole.pairs.sum()
    for added in (first + second, second + first):
        assert (added.pairs != whole.pairs).nnz == (added.held_out != whole.held_out).nnz == 0
    assert ((whole.pairs + whole.held_out) != bigram_counts(tokens, 50)).nnz == 0


def test_chunks_do_not_show(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 9, 10_000)
    expected = count_pairs(tokens, 9)
    monkeypatch.setattr(counts, "PAIRS_PER_CHUNK", 777)
    assert (count_pairs(tokens, 9).pairs != expected.pairs).nnz == 0


def test_the_rarest_pairs_are_dropped_and_said():
    tokens = np.array([0, 1, 0, 1, 0, 1, 2, 3])  # 0>1 three times, 1>0 twice, two others once
    capped = count_pairs(tokens, 4, max_pairs=3)
    assert capped.pairs.toarray()[0, 1] == 3
    assert (capped.pairs.nnz, capped.dropped) == (2, 2)


def test_pair_statistics_are_read_as_they_were_written(tmp_path):
    written = count_pairs(np.array([0, 1, 0, 2]), 3, {"a": 0, "b": 1, "c": 2})
    written.save(tmp_path / "pairs.safetensors")
    read = PairStatistics.load(tmp_path / "pairs.safetensors")
    assert (read.pairs != written.pairs).nnz == 0
    assert (read.vocabulary, read.max_pairs, read.dropped) == (written.vocabulary, written.max_pairs, 0)
    files.save_arrays(tmp_path / "other.safetensors", {"x": np.arange(2)})
    with pytest.raises(InputError, match="expected pair statistics"):
        PairStatistics.load(tmp_path / "other.safetensors")


def test_other_vocabularies_and_tokens_are_refused():
    with pytest.raises(InputError, match="tokens from 0 to 2, got 0 to 3"):
        count_pairs(np.array([0, 3]), 3)
    with pytest.raises(InputError, match="at least two tokens"):
        count_pairs(np.array([0]), 3)
    with pytest.raises(InputError, match="one vocabulary"):
        count_pairs(np.array([0, 1]), 2, {"a": 0}) + count_pairs(np.array([0, 1]), 2, {"b": 0})
