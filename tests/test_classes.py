"""Classes of tokens: complete and reproducible, and probabilities within a class from the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixtures import corpora, labels_of
from test_ngrams import joined

from warmstart.classes import ADDED, ClassModel, token_classes
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams


def counted(documents, vocab_size, separator=0, order=3, workers=1):
    return count_ngrams(*joined(documents, separator), vocab_size, order, workers=workers)


def chain(vocab_size, separator, seed=0, length=3000):
    """Tokens in kinds by their remainder; each kind is followed by the next kind."""
    rng = np.random.default_rng(seed)
    tokens = (rng.integers(0, vocab_size // 4, length) * 4 + np.arange(length) % 4).tolist()
    return [[token for token in tokens[i : i + 300] if token != separator] for i in range(0, length, 300)]


def test_kinds_of_tokens_are_found():
    (labels,) = token_classes(counted(chain(160, 5), 160, 5))
    assert np.flatnonzero(labels == 0).tolist() == [5]
    assert labels.max() + 1 == 160 // 8
    table = np.zeros((20, 4), int)
    tokens = np.delete(np.arange(160), 5)
    np.add.at(table, (labels[tokens], tokens % 4), 1)
    assert table.max(axis=1).sum() >= 0.95 * 159  # nearly every class is of one kind


@pytest.mark.parametrize("vocab_size", [2, 3, 16, 31])
def test_in_a_small_vocabulary_each_token_is_a_class(vocab_size):
    (labels,) = token_classes(counted([[0, 1]], vocab_size, separator=1))
    others = [token for token in range(vocab_size) if token != 1]
    assert labels[1] == 0
    assert labels[others].tolist() == list(range(1, vocab_size))


@pytest.mark.parametrize("vocab_size", [64, 65, 300])
@pytest.mark.parametrize(
    "documents", [[[1]], [[1] * 50], [[1, 2] * 50], [[3, 1, 2]] * 5, [list(range(1, 32))], [[], [2]]]
)
def test_texts_of_few_tokens_leave_no_class_empty(vocab_size, documents):
    counts = counted(documents, vocab_size)
    (labels,) = token_classes(counts)
    assert labels.dtype == np.int64
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))
    assert np.flatnonzero(labels == 0).tolist() == [0]
    model = ClassModel.of(labels, counts.levels[0].counts, counts)
    for context in ([0], [0, 1], [0, 1, 2]):
        row = model.model.row(labels[context])[labels] * model.shares
        assert row.sum() == pytest.approx(1, abs=1e-9)


def test_classes_depend_on_the_text_alone():
    documents = chain(130, 0)
    whole = counted(documents, 130)
    (labels,) = token_classes(whole)
    shards = counted(documents[7:], 130) + counted(documents[2:7][::-1], 130, workers=2) + counted(documents[:2], 130)
    np.testing.assert_array_equal(token_classes(shards)[0], labels)
    np.testing.assert_array_equal(token_classes(counted(documents, 130, order=2))[0], labels)


def test_pairs_are_needed():
    with pytest.raises(InputError, match="order 2 or more"):
        token_classes(counted([[1, 2]], 100, order=1))


@given(corpora(), st.integers(2, 5), st.integers(0, 9), st.data())
def test_probabilities_within_a_class(corpus, order, seed, data):
    vocab_size, separator, documents = corpus
    counts = counted(documents, vocab_size, separator, order)
    labels = labels_of(vocab_size, separator, np.random.default_rng(seed))
    model = ClassModel.of(labels, counts.levels[0].counts, counts, workers=data.draw(st.sampled_from([1, 2])))
    assert model.model.order == min(order, 3)
    assert model.n_classes == labels.max() + 1
    times = counts.levels[0].counts
    seen = np.array(data.draw(st.lists(st.integers(0, 5), min_size=vocab_size, max_size=vocab_size)))
    for label in range(model.n_classes):
        members = np.flatnonzero(labels == label)
        used = int(seen[members].sum())
        found = model.within(members, seen[members], np.full(members.size, used))
        expected = [
            (seen[y] + ADDED * (times[y] + 0.5) / sum(times[z] + 0.5 for z in members)) / (used + ADDED)
            for y in members
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert found.sum() == pytest.approx(1, abs=1e-12)


@given(corpora(), st.integers(1, 4), st.integers(0, 9))
def test_the_model_counts_the_classes_of_the_documents(corpus, order, seed):
    vocab_size, separator, documents = corpus
    counts = counted(documents, vocab_size, separator, order)
    labels = labels_of(vocab_size, separator, np.random.default_rng(seed))
    model = ClassModel.of(labels, counts.levels[0].counts, counts)
    classes = counted([labels[document].tolist() for document in documents], model.n_classes, 0, min(order, 3))
    tokens, borders = joined(documents, separator)
    expected = KneserNey(classes).score(labels[tokens], borders)
    for got, same in zip(model.score(tokens, 1), expected, strict=True):
        np.testing.assert_array_equal(got, same)
    again = ClassModel.of(labels, counts.levels[0].counts, None, model.model)
    np.testing.assert_array_equal(again.score(tokens, 2)[0], expected[0][1:])


def test_tables_or_counts_are_needed():
    with pytest.raises(InputError, match="counts or tables of classes"):
        ClassModel.of(np.array([0, 1]), np.array([1, 1]), None)


def test_several_numbers_of_classes():
    counts = counted(chain(320, 0), 320)
    assert [labels.max() + 1 for labels in token_classes(counts, (5, 20, 9, 99))] == [5, 20, 9, 40]
    few = token_classes(counted([[1, 2] * 50], 320), (20, 19, 18, 4))
    numbers = [labels.max() + 1 for labels in few]
    assert len(set(numbers)) == len(numbers)
    for labels in few:
        assert np.unique(labels).tolist() == list(range(labels.max() + 1))
    assert len(token_classes(counted([[1]], 31), (2, 3))) == 1
