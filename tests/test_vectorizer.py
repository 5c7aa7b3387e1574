import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_estimator,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)

from bitcipher import CooccurrenceEmbedding
from warmstart import BitCipherVectorizer, Corpus, InputError

DOCUMENTS = ["The lamp is on", "the lamp is off", "it is cold", "it is on"]


def vectorizer(**settings):
    return BitCipherVectorizer(CooccurrenceEmbedding(bits=3, components=4), **settings)


def test_scikit_learn_contract():
    for check in (check_no_attributes_set_in_init, check_parameters_default_constructible):  # the others want numbers
        check("BitCipherVectorizer", BitCipherVectorizer())
    with pytest.warns(SkipTestWarning, match="Can't test estimator BitCipherVectorizer which requires input"):
        check_estimator(BitCipherVectorizer())


def test_rows_are_scaled_means_of_vectors_by_hand():
    fitted = vectorizer().fit(DOCUMENTS)
    model = fitted.embedding_
    rows = [model.vocabulary_[token] for token in ("the", "lamp", "the")]
    mean = model.vectors_[rows].mean(axis=0)
    scaled = mean / np.sqrt((mean**2).mean())
    features = fitted.transform(["The lamp, THE unheard", "", "unheard"])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [scaled, 0 * mean, 0 * mean], rtol=1e-5)


def test_the_embedding_given_stays_unfitted():
    settings = vectorizer()
    settings.fit(DOCUMENTS)
    assert not hasattr(settings.embedding, "vocabulary_")
    assert clone(settings).embedding.bits == 3


def test_tokens_as_asked_for():
    cased = vectorizer(lowercase=False).fit(DOCUMENTS[:2])
    assert {"The", "the"} <= set(cased.embedding_.vocabulary_)
    split = vectorizer(tokenizer=str.split).fit(["a-b c d", "a-b"])
    assert set(split.embedding_.vocabulary_) == {"a-b", "c", "d"}


def test_in_a_pipeline_and_a_grid():
    pipeline = make_pipeline(vectorizer(), LogisticRegression(C=100))
    grid = GridSearchCV(pipeline, {"bitciphervectorizer__embedding__bits": [3, 4]}, cv=2)
    grid.fit(DOCUMENTS * 3, ["lamp", "lamp", "other", "other"] * 3)
    assert grid.predict(["the lamp"]).tolist() == ["lamp"]
    names = grid.best_estimator_[:-1].get_feature_names_out()
    assert len(names) == grid.best_estimator_[:-1].transform(["a"]).shape[1]


class Frame:
    """A table as of pandas or polars: iteration gives the names of its columns."""

    shape = (4, 2)

    def __iter__(self):
        return iter(["the lamp is on", "the lamp is off"])


@pytest.mark.parametrize(
    "documents",
    ["a text", 5, ["a", None], [b"a"], Frame(), np.array([DOCUMENTS]), np.array("text"), {"the lamp": 1}, {"on off"}],
)
def test_refuses_documents(documents):
    with pytest.raises(InputError, match="expected"):
        vectorizer().fit(documents)
    with pytest.raises(InputError, match="expected"):
        vectorizer().fit(DOCUMENTS).transform(documents)


def test_unfitted_and_too_little_text():
    with pytest.raises(NotFittedError):
        vectorizer().transform(DOCUMENTS)
    with pytest.raises(ValueError, match="expected bits <= 7, the number of tokens, got 100"):
        BitCipherVectorizer(CooccurrenceEmbedding(bits=100)).fit(DOCUMENTS)


def test_the_default_fits_a_handful_of_documents():
    assert BitCipherVectorizer().fit_transform(DOCUMENTS).shape == (4, 7)  # one dimension for each token


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (["an a_ a b"], ["a_", "an"]),
        (
            ["\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e"],
            ["\u0926\u0941\u0928\u093f\u092f\u093e", "\u0928\u092e\u0938\u094d\u0924\u0947"],
        ),
        (["\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e04\u0e23\u0e31\u0e1a, \u0e04\u0e23\u0e31\u0e1a"],
         ["\u0e04\u0e23\u0e31\u0e1a", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"]),
        (["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 (x_1)", "x_1"],
         ["x_1", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"]),
        (["\u6211 \u4f60 \u6211"], ["\u6211", "\u4f60"]),
        (["cafe\u0301 ol\u00e9"], ["cafe\u0301", "ol\u00e9"]),
    ],
    ids=["latin", "hindi", "thai", "persian", "chinese", "decomposed"],
)  # fmt: skip
def test_words_of_every_script_stay_whole(documents, words):
    model = BitCipherVectorizer().fit(documents)
    assert list(model.embedding_.vocabulary_) == words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_df": 2}, {"the", "lamp", "is", "on", "it"}),
        ({"min_df": 0.6}, {"is"}),
        ({"min_df": 1.0}, {"is"}),
        ({"max_features": 1}, {"is"}),
        ({"min_df": 2, "max_features": 5}, {"the", "lamp", "is", "on", "it"}),
    ],
)
def test_only_frequent_words_get_vectors(limits, words):
    model = BitCipherVectorizer(**limits).fit(iter(DOCUMENTS))
    assert set(model.embedding_.vocabulary_) == words
    assert set(model.embedding_.counts_.tolist()) <= {4, 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one word has no neighbour
        assert not model.transform(["off cold"]).any()


@pytest.mark.parametrize(
    "parameter",
    [{"min_df": 0}, {"min_df": 1.5}, {"max_features": 0}, {"tokenizer": "a"}, {"token_pattern": 1}, {"embedding": 300}],
)
def test_parameters_out_of_range_are_named(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        BitCipherVectorizer(**parameter).fit(DOCUMENTS)


def test_named_columns_of_a_table():
    pandas = pytest.importorskip("pandas")
    table = vectorizer().set_output(transform="pandas").fit_transform(pandas.Series(DOCUMENTS))
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == [f"bitciphervectorizer{i}" for i in range(4)]
    with pytest.raises(InputError, match="one column"):
        vectorizer().fit(pandas.DataFrame({"text": DOCUMENTS, "more": DOCUMENTS}))


def test_the_embedding_reads_the_corpus_of_the_main_job(tmp_path):
    corpus = Corpus.build(["b a b", "b", "c a"], tokenizer="words", cache_dir=tmp_path)
    lists = [["b", "a", "b"], ["b"], ["c", "a"]]
    by_corpus, by_lists = (CooccurrenceEmbedding(bits=2).fit(x) for x in (corpus, lists))
    assert by_corpus.vocabulary_ == by_lists.vocabulary_ == {"b": 0, "a": 1, "c": 2}
    assert by_corpus.sums_.tobytes() == by_lists.sums_.tobytes()
