import hashlib
import itertools

import numpy as np
import pytest
from scipy import sparse

from warmstart import counts
from warmstart.counts import HELD_OUT_SHARE, STRETCH, NGrams, PairStatistics, bigram_counts, count_pairs
from warmstart.errors import InputError
from warmstart.ngrams import NGramCounts, count_ngrams

V = 50


def count(tokens, vocab_size=V, order=2):
    """The statistic of a text whose separators are all equal to its first token."""
    return count_ngrams(tokens, np.flatnonzero(tokens == tokens[0]), vocab_size, order=order)


def text_of(*lengths, seed=0):
    """Documents of these lengths between separators 0, of tokens 1 to V - 1."""
    rng = np.random.default_rng(seed)
    documents = ([0, *(rng.zipf(1.3, n) % (V - 1) + 1)] for n in lengths)
    return np.array([*itertools.chain(*documents), 0], np.uint16)


def dense(tokens, vocab_size=V):
    out = np.zeros((vocab_size, vocab_size), np.int64)
    for pair in itertools.pairwise(tokens.tolist()):
        out[pair] += 1
    return out


def held_out_twin(tokens):
    """Pairs of the stretches with the smallest digests, a copy at a time, until they are a 32nd of the targets."""
    left, out = (tokens.size - 1) // 32, np.zeros((V, V), np.int64)
    borders = np.flatnonzero(tokens == tokens[0])
    stretches = [
        tokens[i : min(i + 4096, end) + 1]
        for start, end in itertools.pairwise(borders.tolist())
        for i in range(start, end, 4096)
    ]
    for text in sorted(stretches, key=lambda text: hashlib.blake2b(text.tobytes(), digest_size=16).digest()):
        if left > 0:
            out += dense(text)
            left -= text.size - 1
    return out


def ngrams(tokens, vocab_size):
    tokens[-1] = tokens[0]
    return NGrams.of(count(tokens, vocab_size))


def test_pairs_never_seen_are_possible_where_none_was_seen_once():
    tokens = np.array([0, 1, 2, 0, 1, 2, 0])  # each pair twice
    model = NGrams.of(count_ngrams(tokens, np.array([0, 3, 6]), 4, order=2))
    assert model.discount == 0.5
    unigram, bigram = model.cross_entropies(np.array([0, 3, 0]))  # 3 was never seen: half an example of 6.5
    assert unigram == pytest.approx(-np.log(0.5 / 6.5 * 2 / 6.5) / 2)
    assert bigram == pytest.approx(-np.log(0.25 * 0.5 / 6.5 * 2 / 6.5) / 2)  # backoff of 0: 0.5 * 1 / 2


def test_discounted_bigram_by_hand():
    # pairs 0>1 twice, 1>0 once, 1>1 once; n1 = 2, n2 = 1, so d = 2 / 4; the target is 1 three times in four
    tokens = np.array([0, 1, 1, 0, 1])
    model = NGrams(np.array([1, 3]), sparse.csr_array(np.array([[0, 2], [1, 1]])))
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


@pytest.mark.parametrize("order", [2, 5])
@pytest.mark.parametrize("lengths", [(0,), (1, 0, 2), (300, 0, 7)])
def test_pairs_are_those_of_neighbours(lengths, order, tmp_path):
    tokens = text_of(*lengths)
    count(tokens, order=order).save(tmp_path / "counts")
    counted = bigram_counts(NGramCounts.load(tmp_path / "counts"))
    assert isinstance(counted, sparse.csr_array)
    assert counted.dtype == np.int64
    assert counted.has_canonical_format
    np.testing.assert_array_equal(counted.toarray(), dense(tokens))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_show(monkeypatch, chunk):
    tokens = text_of(100, 50)
    model = NGrams.of(count(tokens))
    expected = model.cross_entropies(tokens)
    monkeypatch.setattr(counts, "PAIRS_PER_CHUNK", chunk)
    assert model.cross_entropies(tokens) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "lengths",
    [(HELD_OUT_SHARE * STRETCH - 1,), (150_000, 9000, 4095, 4096, 4097, 0, 0), (70,) * 3000, (1,) * 70_000],
    ids=["one document", "long and short", "short", "many copies"],
)
def test_a_32nd_of_the_text_is_held_out(lengths):
    tokens = text_of(*lengths)
    statistics = PairStatistics.of(count(tokens))
    np.testing.assert_array_equal(statistics.held_out.toarray(), held_out_twin(tokens))
    np.testing.assert_array_equal((statistics.pairs + statistics.held_out).toarray(), dense(tokens))
    assert statistics.pairs.data.min() > 0
    share = (tokens.size - 1) // HELD_OUT_SHARE
    assert share <= statistics.held_out.sum() < share + STRETCH


def test_shards_in_any_order_hold_out_the_same():
    texts = [text_of(90_000, 50, seed=1), text_of(50, 60_000, seed=2), text_of(100_000, seed=3)]
    expected = PairStatistics.of(count(np.concatenate([texts[0], texts[1][1:]])))
    one, two, three = map(count, texts)
    for counted in (one + two, two + one, three + two + one - three):
        statistics = PairStatistics.of(counted)
        for name in ("pairs", "held_out"):
            assert (getattr(statistics, name) != getattr(expected, name)).nnz == 0


def test_a_short_text_has_nothing_to_spare():
    statistics = count_pairs(text_of(HELD_OUT_SHARE * STRETCH - 2), V)
    assert statistics.held_out.nnz == 0
    assert statistics.pairs.sum() == HELD_OUT_SHARE * STRETCH - 1


def test_a_text_without_separators_is_one_document():
    tokens = np.random.default_rng(0).zipf(1.3, HELD_OUT_SHARE * STRETCH) % 40 + 5
    tokens[-1] = tokens[0] + 1
    statistics = count_pairs(tokens, V, {"a": 0})
    closed = np.append(tokens, tokens[0])
    np.testing.assert_array_equal((statistics.pairs + statistics.held_out).toarray(), dense(closed))
    assert statistics.held_out.sum() == STRETCH
    counted = count_ngrams(closed, np.array([0, closed.size - 1]), V, order=2, vocabulary={"a": 0})
    expected = PairStatistics.of(counted)
    assert (statistics.held_out != expected.held_out).nnz == 0
    assert statistics.vocabulary == expected.vocabulary != ""


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="tokens from 0 to 2, got 0 to 3"):
        count_pairs(np.array([0, 3]), 3)
    for size in (0, 1):
        with pytest.raises(InputError, match=f"at least two tokens to count a pair, got {size}"):
            count_pairs(np.zeros(size, np.int64), 3)
    with pytest.raises(InputError, match="got order 1"):
        PairStatistics.of(count(np.array([0, 1, 0]), order=1))


def test_copies_of_one_document_are_shared_out():
    statistics = count_pairs(np.tile([0, 1, 2, 3], 2 * HELD_OUT_SHARE * STRETCH // 4 + 1)[:-3], V)
    cycle = [(0, 1), (1, 2), (2, 3), (3, 0)]
    for matrix, copies in ((statistics.held_out, 2 * STRETCH // 4), (statistics.pairs, 62 * STRETCH // 4)):
        assert [matrix[pair] for pair in cycle] == [copies] * 4
        assert matrix.sum() == 4 * copies


def test_a_bigram_without_pairs_that_occur_once_still_backs_off():
    model = NGrams.of(count(np.array([0, 1, 2, 1, 2, 0, 1, 2, 1, 2, 0]), vocab_size=4))
    assert model.discount == 0.5
    assert np.isfinite(model.cross_entropies(np.array([0, 3, 1, 1, 0]))).all()
