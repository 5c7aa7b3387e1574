"""Look-up in tables of probabilities and back-off weights: by hand, and equal to a walk over dictionaries."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts
from test_ngrams import joined

from warmstart import backoff
from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams

UNIGRAMS = [0.5, 0.3, 0.2]


def by_hand():
    """Tokens 0 (separator), 1, 2; bigrams 0 1, 1 0, 1 2; trigram 0 1 2. Token 2 and bigram 1 2 have no extension."""
    return BackoffModel(
        vocab_size=3,
        separator=0,
        order=3,
        bases=np.array([0, 3, 6, 7]),
        last=np.array([0, 1, 2, 1, 0, 2, 2], np.uint16),
        offsets=np.array([3, 4, 6, 6, 7, 7, 7]),
        probs=np.array([*UNIGRAMS, 0.6, 0.25, 0.25, 0.9]),
        gammas=np.array([0.57, 0.4, 1.0, 0.1, 1.0, 1.0]),
        sizes=np.array([3, 2, 0, 1, 0, 0], np.uint8),
    )


def test_scores_by_hand():
    tokens = np.array([0, 1, 2, 2, 1, 2, 0, 1, 1, 0])
    #          0 1 | 01 2 | 2 by itself, 12 is no context | 2 1 | 1 2 | 0 | 0 1 | 01 1: gammas | 1 0
    expected = [0.6, 0.9, 0.2, 0.3, 0.25, 0.5, 0.6, 0.1 * 0.4 * 0.3, 0.25]
    scores = by_hand().score(tokens, np.array([0, 6, 9]))
    np.testing.assert_allclose(scores.probs, expected, rtol=1e-15)
    assert scores.known.tolist() == [1, 2, 0, 0, 1, 0, 1, 2, 1]
    assert scores.size.tolist() == [3, 1, 0, 0, 2, 0, 3, 1, 2]
    assert (scores.probs.dtype, scores.known.dtype, scores.size.dtype) == (np.float64, np.int8, np.uint8)
    np.testing.assert_array_equal(by_hand().log_probs(tokens, np.array([0, 6, 9])), np.log(scores.probs))


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ([], UNIGRAMS),
        ([2], UNIGRAMS),
        ([1], [0.25, 0.4 * 0.3, 0.25]),
        ([0, 1], [0.1 * 0.25, 0.1 * 0.4 * 0.3, 0.9]),
        ([2, 0, 1], [0.1 * 0.25, 0.1 * 0.4 * 0.3, 0.9]),
        ([1, 0], [0.57 * 0.5, 0.6, 0.57 * 0.2]),  # the history begins at the separator
        ([2, 1], [0.25, 0.4 * 0.3, 0.25]),
    ],
)
def test_rows_by_hand(context, expected):
    for given_context in (context, np.array(context, np.uint16), tuple(context)):
        np.testing.assert_allclose(by_hand().row(given_context), expected, rtol=1e-15)


def test_rows_of_a_text_are_rows_of_its_histories():
    tokens = np.array([1, 0, 1, 2, 2, 1, 2, 0, 1, 1, 0])
    model = by_hand()
    places = np.array([10, 0, 3, 2, 9, 9, 1, 8])
    rows = model.rows(tokens, places)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [model.row(tokens[: place + 1]) for place in places], rtol=1e-6)
    many = np.tile(places, 40)
    np.testing.assert_array_equal(model.rows(tokens, many, workers=3), np.tile(rows, (40, 1)))
    assert model.rows(tokens, places[:0]).shape == (0, 3)


def test_numbers_of_ngrams():
    model = by_hand()
    assert model.n_ngrams == [3, 3, 1]
    assert [model.find(gram) for gram in ([1], [0, 1], [1, 0], [1, 2], [0, 1, 2])] == [1, 3, 4, 5, 6]
    assert [model.find(gram) for gram in ([0, 0], [2, 1], [1, 1], [0, 1, 0], [1, 2, 0], [0, 0, 1])] == [-1] * 6
    assert model.contexts([1, 0, 1]) == [1, 3]
    listed = [(length, grams.tolist(), part) for length in (1, 2, 3) for grams, part in model.ngrams(length)]
    assert listed == [
        (1, [[0], [1], [2]], slice(0, 3)),
        (2, [[0, 1], [1, 0], [1, 2]], slice(3, 6)),
        (3, [[0, 1, 2]], slice(6, 7)),
    ]


@given(texts(), st.integers(1, 5), st.sampled_from([(), (0, 1)]), st.sampled_from([1, 2, 1000]))
def test_ngrams_are_listed_and_found(text, order, prune, block):
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    model = KneserNey(count_ngrams(tokens, borders, vocab_size, order), prune[:order])
    twin = reference.ngram_counts(tokens.tolist(), separator, order)
    limits = [*prune, *[prune[-1] if prune else 0] * order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backoff, "TARGETS_PER_BLOCK", block)
        for length in range(1, order + 1):
            blocks = list(model.ngrams(length))
            rows = [tuple(row) for grams, _ in blocks for row in grams.tolist()]
            numbers = list(itertools.chain.from_iterable(range(part.start, part.stop) for _, part in blocks))
            found = {gram for gram, count in twin.items() if len(gram) == length and count > limits[length - 1]}
            assert rows == (sorted(found) if length > 1 else [(token,) for token in range(vocab_size)])
            assert [model.find(list(row)) for row in rows] == numbers


@given(texts(most=12), st.integers(1, 5), st.integers(1, 9), st.integers(0, 12))
def test_a_stream_is_scored_with_what_came_before(text, order, block, start):
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    model = KneserNey(count_ngrams(tokens, borders, vocab_size, order))
    whole = model.score(tokens, borders)
    start = min(start, tokens.size - 1) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backoff, "TARGETS_PER_BLOCK", block)
        for all_scores, scores in zip(whole, model.score_stream(tokens, start), strict=True):
            np.testing.assert_array_equal(scores, all_scores[start - 1 :])


def test_a_stream_without_history():
    scores = by_hand().score_stream(np.array([1, 2]), 0)
    np.testing.assert_allclose(scores.probs, [0.3, 0.25], rtol=1e-15)
    assert by_hand().score_stream(np.array([1, 2]), 2).probs.size == 0


@pytest.mark.parametrize("context", [[3], [-1], [0, 1, 3, 1, 2]])
def test_tokens_outside_the_vocabulary_are_refused(context):
    with pytest.raises(InputError, match="token ids from 0 to 2"):
        by_hand().row(context)


@pytest.mark.parametrize("context", [[1.5], [True], ["1"]])
def test_contexts_that_are_no_tokens_are_refused(context):
    with pytest.raises(InputError, match="expected token ids"):
        by_hand().row(context)


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="tokens from 0 to 2, got 0 to 3"):
        by_hand().score(np.array([0, 3, 0]), np.array([0, 2]))
    with pytest.raises(InputError, match="end with token 0, got 1"):
        by_hand().score(np.array([1, 2, 1]), np.array([0, 2]))
    with pytest.raises(InputError, match="ascending positions"):
        by_hand().score(np.array([0, 2, 0]), np.array([0, 1]))


# Files


@given(texts(most=12), st.integers(1, 5), st.sampled_from([(), (0, 1), (0, 0, 2), (0, 99)]))
def test_saved_tables_give_the_same_probabilities(text, order, prune):
    """Those of n-grams are kept as float32; look-ups, sizes and sums of rows are exact."""
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    model = KneserNey(count_ngrams(tokens, borders, vocab_size, order), prune[:order])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        model.save(path)
        loaded = BackoffModel.load(path)
        again = Path(folder, "again.safetensors")
        loaded.save(again)
        twice = BackoffModel.load(again)
    assert (loaded.vocab_size, loaded.separator, loaded.order) == (vocab_size, separator, order)
    assert loaded.n_ngrams == model.n_ngrams
    for name in ("last", "offsets", "sizes", "bases"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    np.testing.assert_allclose(loaded.probs, model.probs, rtol=1e-6)
    np.testing.assert_allclose(loaded.gammas, model.gammas, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(twice.probs, loaded.probs, rtol=1e-7)
    found, expected = loaded.score(tokens, borders), model.score(tokens, borders)
    np.testing.assert_array_equal(found.known, expected.known)
    np.testing.assert_array_equal(found.size, expected.size)
    for i in range(min(tokens.size, 12)):
        row = loaded.row(tokens[:i])
        assert row.sum() == pytest.approx(1, abs=1e-9)
        assert row.min() > 0


def test_rows_sum_to_1_where_float32_rounds_the_most():
    """A context seen often with many equally frequent tokens: their parts, rounded to float32, may pass 1."""
    documents = [[token for _ in range(40) for token in (1, 2 + i)] for i in range(30)]
    tokens, borders = joined(documents, 0)
    model = KneserNey(count_ngrams(tokens, borders, 32, 3))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "a.safetensors"))
        loaded = BackoffModel.load(Path(folder, "a.safetensors"))
    for context in ([], [1], [0, 1], [2, 1], [31, 1], [1, 2], [5]):
        assert loaded.row(context).sum() == pytest.approx(1, abs=1e-12)


def test_the_same_tables_give_the_same_bytes_and_damage_is_found(tmp_path):
    tokens, borders = joined([[1, 2, 1, 2, 2], [2, 1]], 0)
    model = KneserNey(count_ngrams(tokens, borders, 3, 3))
    for name in ("a", "b"):
        model.save(tmp_path / name)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    expected = model.row([1, 2])
    refused = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(data), 300).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "c").write_bytes(flipped)
        try:
            np.testing.assert_allclose(BackoffModel.load(tmp_path / "c").row([1, 2]), expected, rtol=1e-6)
        except InputError:
            refused += 1
    assert refused > 250
    for size in (0, 8, 100, len(data) - 1):
        (tmp_path / "c").write_bytes(data[:size])
        with pytest.raises(InputError, match="expected a whole safetensors file"):
            BackoffModel.load(tmp_path / "c")


def test_other_files_are_no_tables(tmp_path):
    count_ngrams(np.array([0, 1, 0]), np.array([0, 2]), 2).save(tmp_path / "counts")
    with pytest.raises(InputError, match="expected n-gram tables, got another file"):
        BackoffModel.load(tmp_path / "counts")


def test_a_model_that_does_not_interpolate_is_not_saved(tmp_path):
    """By hand: 0.25 after 1 is less than the 0.4 x 0.9 that the unigram would give."""
    model = by_hand()
    model.probs[:3] = [0.9, 0.05, 0.05]
    with pytest.raises(InputError, match="shorter contexts are more probable"):
        model.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
