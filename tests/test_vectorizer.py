import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_no_attributes_set_in_init, check_parameters_default_constructible

from bitcipher import CooccurrenceEmbedding
from warmstart import BitCipherVectorizer, Corpus, InputError

DOCUMENTS = ["The lamp is on", "the lamp is off", "it is cold", "it is on"]


def vectorizer(**settings):
    return BitCipherVectorizer(CooccurrenceEmbedding(bits=3, components=4), **settings)


def test_scikit_learn_contract():
    for check in (check_no_attributes_set_in_init, check_parameters_default_constructible):  # the others want numbers
        check("BitCipherVectorizer", BitCipherVectorizer())


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


@pytest.mark.parametrize("documents", ["a text", 5, ["a", None], [b"a"]])
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


def test_the_embedding_reads_the_corpus_of_the_main_job(tmp_path):
    corpus = Corpus.build(["b a b", "b", "c a"], tokenizer="words", cache_dir=tmp_path)
    lists = [["b", "a", "b"], ["b"], ["c", "a"]]
    by_corpus, by_lists = (CooccurrenceEmbedding(bits=2).fit(x) for x in (corpus, lists))
    assert by_corpus.vocabulary_ == by_lists.vocabulary_ == {"b": 0, "a": 1, "c": 2}
    assert by_corpus.sums_.tobytes() == by_lists.sums_.tobytes()
