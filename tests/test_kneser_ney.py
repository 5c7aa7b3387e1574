"""Kneser-Ney: equal to its definition for every target and row, and counted text with its part left out."""

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts
from test_ngrams import joined

from warmstart import backoff, kneser_ney
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey, parts
from warmstart.ngrams import count_ngrams

PRUNE = [(), (0, 1), (0, 0, 1), (0, 0, 1, 2), (0, 3)]


def random_text(seed, documents=12, length=60, vocab_size=12):
    """A text with enough n-grams for discounts of their own, and copies of a document."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 2 * length, documents)
    drawn = [(rng.zipf(1.4, size) % vocab_size).tolist() for size in lengths]
    return vocab_size, int(rng.integers(vocab_size)), [*drawn, drawn[0], [], drawn[1], drawn[0]]


AWKWARD = {
    "one token": (2, 0, [[1]]),
    "one empty document": (2, 1, [[]]),
    "only empty documents": (3, 2, [[], [], []]),
    "all tokens equal": (2, 0, [[1] * 40]),
    "all tokens are separators": (2, 0, [[0] * 9]),
    "two tokens": (2, 0, [[1, 1, 0, 1], [1], []]),
    "every n-gram once": (30, 0, [list(range(1, 30))]),
    "one document": (4, 0, [[1, 2, 3, 1, 2, 1, 1, 3, 2, 1] * 3]),
    # Leaves the piece 1 2 3 1 2 out: nothing is left of the context 1 2 but what the next piece says of it.
    "a piece that ends with its own context": (10, 0, [[1, 2, 3, 1, 2, 4, *[5, 6, 7, 8, 9] * 6, 5, 7, 6, 8]]),
    # The same, and a third 1 2 4 later: with n-grams pruned that occur once, 1 2 is pruned and 1 2 4 is not.
    "a context that is rarer than its extension": (10, 0, [[1, 2, 3, 1, 2, 4, *[5, 6, 7, 8, 9] * 6, 1, 2, 4, 8]]),
    "a token never seen": (5, 0, [[1, 2, 1, 2, 4], [2, 1]]),
}
RANDOM = {f"random {seed}": random_text(seed) for seed in range(4)}
ALL = AWKWARD | RANDOM


def solved(text, order, prune=(), **options):
    """The model, its twin, and the text as an array and borders."""
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    counts = reference.ngram_counts(tokens.tolist(), separator, order)
    twin = reference.KneserNey(counts, vocab_size, separator, order, thresholds)
    return KneserNey(count_ngrams(tokens, borders, vocab_size, order), prune[:order], **options), twin, tokens, borders


def assert_scores_are(scores, expected):
    probs, known, size = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(scores.probs, probs, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scores.known, known)
    np.testing.assert_array_equal(scores.size, size)


def assert_equal_twin(text, order, prune, contexts):
    model, twin, tokens, borders = solved(text, order, prune)
    np.testing.assert_allclose(model.discounts[:, 1:], [twin.discounts[n] for n in range(1, order + 1)], atol=1e-12)
    assert_scores_are(model.score(tokens, borders), twin.score(tokens.tolist(), range(1, tokens.size)))
    for context in contexts:
        row = model.row(context)
        expected = [twin.probability(y, twin.history(context)) for y in range(model.vocab_size)]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)
        assert row.sum() == pytest.approx(1, abs=1e-9)
        assert (row > 0).all()


@given(texts(), st.integers(1, 6), st.sampled_from(PRUNE), st.data())
def test_small_texts_equal_the_twin(text, order, prune, data):
    contexts = data.draw(st.lists(st.lists(st.integers(0, text[0] - 1), max_size=8), max_size=5))
    assert_equal_twin(text, order, prune, contexts)


@pytest.mark.parametrize("prune", PRUNE, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ALL)
def test_texts_equal_the_twin(name, order, prune):
    text = ALL[name]
    rng = np.random.default_rng(order)
    unseen = [rng.integers(0, text[0], length).tolist() for length in range(8)]
    seen = [document[: place + 1] for document in text[2][:2] for place in range(0, len(document), 7)]
    assert_equal_twin(text, order, prune, [*unseen, *seen])


def test_random_texts_have_discounts_of_their_own():
    fallbacks = {name: solved(text, 4)[0].fallbacks for name, text in RANDOM.items()}
    assert [] in [[n for n in levels if n > 1] for levels in fallbacks.values()]


def test_rows_sum_to_one_in_a_larger_text():
    rng = np.random.default_rng(0)
    vocab_size, separator, documents = random_text(7, documents=30, length=300, vocab_size=200)
    for prune in ((), (0, 0, 1)):
        model, _, tokens, _ = solved((vocab_size, separator, documents), 5, prune)
        for place in rng.integers(1, tokens.size, 50):
            for context in (tokens[:place], rng.integers(0, vocab_size, 4)):
                assert abs(model.row(context).sum() - 1) < 1e-9


@given(texts(), st.integers(1, 5), st.sampled_from(PRUNE))
def test_log_probs_are_rows_at_the_target(text, order, prune):
    model, _, tokens, borders = solved(text, order, prune)
    rows = [model.row(tokens[:i])[tokens[i]] for i in range(1, tokens.size)]
    np.testing.assert_allclose(np.exp(model.log_probs(tokens, borders)), rows, rtol=1e-12)


def test_by_hand():
    # Text: 0 1 2 1 2 0. Bigrams 01, 12 (twice), 21, 20. All discounts are the fallback 0.5, 1, 1.5.
    # Tokens follow 1, 2 and 1 different tokens: 0 after 2; 1 after 0 and 2; 2 after 1.
    model, *_ = solved((3, 0, [[1, 2, 1, 2]]), 2)
    unigrams = np.array([1 - 0.5, 2 - 1, 1 - 0.5]) / 4 + (0.5 + 1 + 0.5) / 4 / 3
    np.testing.assert_allclose(model.row([]), unigrams, rtol=1e-14)
    np.testing.assert_allclose(model.row([1]), np.array([0, 0, (2 - 1) / 2]) + 1 / 2 * unigrams, rtol=1e-14)
    np.testing.assert_allclose(model.row([2]), np.array([0.25, 0.25, 0]) + 2 * 0.5 / 2 * unigrams, rtol=1e-14)
    assert model.fallbacks == [1, 2]


def test_discounts_by_hand():
    # One level of counts: 4 ones, 2 twos, 2 threes, 1 four: Y = 4 / 8.
    values, fallback = kneser_ney.level_discounts(np.array([1, 1, 1, 1, 2, 2, 3, 3, 4, 9, 0]))
    np.testing.assert_allclose(values, [0, 1 - 2 * 0.5 * 2 / 4, 2 - 3 * 0.5 * 2 / 2, 3 - 4 * 0.5 * 1 / 2])
    assert not fallback


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([], id="no counts"),
        pytest.param([2, 2, 3], id="no ones: undefined"),
        pytest.param([1, 1, 3], id="no twos: undefined"),
        pytest.param([1, 2, 2], id="no threes"),
        pytest.param([1, 2, 3, 3, 3, 3, 3], id="D2 negative"),
        pytest.param([1, 1, 2, 3, 4, 4, 4, 4], id="D3 negative"),
        pytest.param([1, 2, 3, 3], id="D2 is 0"),
    ],
)
def test_discounts_that_the_counts_do_not_allow(counts):
    values, fallback = kneser_ney.level_discounts(np.array(counts, np.int32))
    assert fallback
    assert values.tolist() == [0, 0.5, 1, 1.5]


def test_levels_without_discounts_of_their_own_are_listed():
    model, *_ = solved(random_text(0, documents=40, vocab_size=2000), 3)
    assert model.fallbacks == []
    model, *_ = solved(AWKWARD["every n-gram once"], 3)
    assert model.fallbacks == [1, 2, 3]


def test_an_empty_statistic_is_uniform():
    tokens, borders = joined([[1, 2], [1]], 0)
    for order in (1, 2, 4):
        some = count_ngrams(tokens, borders, 3, order)
        np.empty(1 << 16).fill(7.0)  # memory that is used again is not 0
        model = KneserNey(some - some)
        np.testing.assert_allclose(model.log_probs(tokens, borders), np.log(1 / 3), rtol=1e-15)
        np.testing.assert_allclose(model.row([0, 1]), 1 / 3, rtol=1e-15)
        assert model.fallbacks == list(range(1, order + 1))


@pytest.mark.parametrize("prune", [(1,), (0, 2, 1), (0, -1), (0, 0, 0, 0), (0, 0.5), (0, "1")], ids=str)
def test_other_thresholds_are_refused(prune):
    tokens, borders = joined([[1, 2]], 0)
    with pytest.raises(InputError, match="prune: expected at most 3 whole numbers"):
        KneserNey(count_ngrams(tokens, borders, 3, 3), prune)


def test_pruning_makes_tables_smaller_and_nothing_else():
    whole, *_ = solved(RANDOM["random 1"], 4)
    pruned, twin, *_ = solved(RANDOM["random 1"], 4, (0, 1, 2))
    kept = [sum(len(g) == n and (n == 1 or c > (0, 1, 2, 2)[n - 1]) for g, c in twin.raw.items()) for n in (2, 3, 4)]
    assert pruned.n_ngrams == [whole.vocab_size, *kept]
    assert pruned.n_ngrams < whole.n_ngrams
    assert pruned.counts.digest == whole.counts.digest
    np.testing.assert_array_equal(pruned.discounts, whole.discounts)


@pytest.mark.parametrize("name", RANDOM)
def test_blocks_and_workers_do_not_show(name, monkeypatch):
    for prune in ((), (0, 1)):
        model, _, tokens, borders = solved(RANDOM[name], 4, prune)
        whole, left = model.score(tokens, borders), model.left_out(tokens, borders)
        for block, workers in itertools.product((1, 7), (1, 2)):
            with monkeypatch.context() as patch:
                patch.setattr(backoff, "TARGETS_PER_BLOCK", block)
                patch.setattr(kneser_ney, "TARGETS_PER_BATCH", block)
                for a, b in zip(whole, model.score(tokens, borders, workers), strict=True):
                    np.testing.assert_array_equal(a, b)
                for a, b in zip(left, model.left_out(tokens, borders, workers), strict=True):
                    np.testing.assert_array_equal(a, b)


# Left out


def assert_left_out_is_counted_again(text, order, prune):
    model, twin, tokens, borders = solved(text, order, prune)
    expected = []
    for span in parts(borders, tokens.size - 1):
        targets = range(span.start, span.stop)
        expected += twin.without(tokens.tolist(), targets).score(tokens.tolist(), targets)
    assert_scores_are(model.left_out(tokens, borders), expected)


@given(texts(), st.integers(1, 6), st.sampled_from(PRUNE))
def test_left_out_small_texts_are_counted_again(text, order, prune):
    assert_left_out_is_counted_again(text, order, prune)


@pytest.mark.parametrize("prune", PRUNE, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_left_out_texts_are_counted_again(name, prune):
    for order in (1, 2, 4):
        assert_left_out_is_counted_again(ALL[name], order, prune)


def test_a_document_of_a_third_is_left_out_piece_by_piece():
    vocab_size, separator, documents = random_text(5, documents=16, length=20)
    rng = np.random.default_rng(5)
    documents.insert(3, (rng.zipf(1.4, sum(map(len, documents)) // 2) % vocab_size).tolist())
    tokens, borders = joined(documents, separator)
    assert len(parts(borders, tokens.size - 1)) == len(documents) + 7
    for prune in ((), (0, 1)):
        assert_left_out_is_counted_again((vocab_size, separator, documents), 4, prune)


def test_a_document_that_is_left_out_is_as_if_it_was_never_counted(monkeypatch):
    """The same with the package's own ``-``, with the same discounts on both sides."""
    text = (3, 0, [[1, 2, 1], [2], [1, 2], [2, 2], [1], [1, 2, 2], [2, 1], [1, 1, 2], [2], [1, 2, 1], [2, 1, 2]])
    monkeypatch.setattr(kneser_ney, "level_discounts", lambda counts: (np.array([0, 0.6, 1.2, 1.4]), False))
    model, _, tokens, borders = solved(text, 3)
    assert len(parts(borders, tokens.size - 1)) == len(text[2])
    left = model.left_out(tokens, borders)
    for start, stop in itertools.pairwise(borders.tolist()):
        own, ends = tokens[start : stop + 1], np.array([0, stop - start])
        rest = KneserNey(model.counts - count_ngrams(own, ends, 3, 3))
        np.testing.assert_allclose(left.probs[start:stop], rest.score(own, ends).probs, rtol=0, atol=1e-12)


def test_some_of_the_documents_can_be_given():
    model, _, tokens, borders = solved(RANDOM["random 2"], 3)
    whole = model.left_out(tokens, borders)
    start, stop = borders[2], borders[5]
    some = model.left_out(tokens[start : stop + 1], borders[2:6] - start)
    for a, b in zip(whole, some, strict=True):
        np.testing.assert_array_equal(a[start:stop], b)


@pytest.mark.parametrize("documents", [[[2, 1]], [[1, 2], [1]], [[]], [[1, 2, 1, 2]], [[1, 2, 0, 1, 2]]])
def test_text_that_was_not_counted_is_refused(documents):
    model, *_ = solved((3, 0, [[1, 2], [1, 2, 1], [2, 2, 1, 1]]), 2)
    with pytest.raises(InputError, match="expected documents that were counted"):
        model.left_out(*joined(documents, 0))


def test_nothing_was_counted():
    model, _, tokens, borders = solved((3, 0, [[1, 2]]), 2)
    with pytest.raises(InputError, match="expected documents that were counted"):
        KneserNey(model.counts - model.counts).left_out(tokens, borders)


def test_another_separator_is_refused():
    model, *_ = solved((3, 0, [[1, 2]]), 2)
    for method in (model.score, model.left_out, model.log_probs):
        with pytest.raises(InputError, match="end with token 0, got 1"):
            method(*joined([[2]], 1))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 200))
def test_parts_are_documents_or_eighths(lengths, others):
    borders = np.cumsum([0, *lengths])
    total = sum(lengths) + others
    found = parts(borders, total)
    assert [place for span in found for place in range(span.start, span.stop)] == list(range(1, borders[-1] + 1))
    for length, border in zip(lengths, borders[:-1].tolist(), strict=True):
        inside = [s.stop - s.start for s in found if border < s.start <= border + length]
        assert len(inside) == (min(8, length) if length > total / 8 else 1)
        assert max(inside) - min(inside) <= 1


def test_a_vocabulary_above_65_536():
    text = (70_000, 69_998, [[65_536, 65_535, 69_999, 0], [1, 65_536, 65_535], [0, 65_536, 65_535, 1]])
    model, twin, tokens, borders = solved(text, 3)
    assert_scores_are(model.score(tokens, borders), twin.score(tokens.tolist(), range(1, tokens.size)))
    assert_left_out_is_counted_again(text, 3, ())
    assert abs(model.row([65_536, 65_535]).sum() - 1) < 1e-9
