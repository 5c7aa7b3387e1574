"""The mixture: equal to a twin token by token, the same in any cut, and never far above the unigram price."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixtures import EXPERTS, NETWORK, corpora, mixture
from test_ngrams import joined

from warmstart import mixture as module
from warmstart.errors import InputError
from warmstart.gate import Gate
from warmstart.mixture import CACHES, Mixture

SUBSETS = [subset for n in range(1, 5) for subset in itertools.combinations(EXPERTS, n)]


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Texts are longer than the caches, and a cache costs no megabytes."""
    for name, shape in {"cache": (4, 7), "cache 1024": (3, 5), "cache 128": (3, 2)}.items():
        monkeypatch.setitem(CACHES, name, shape)


def pasts(documents, separator):
    """Every target with the document before it."""
    for document in documents:
        for i, token in enumerate([*document, separator]):
            yield document[:i], token


def check(corpus, text, **options):
    """Compare the scores of a text with the twin's; a network computes in float32."""
    _, separator, documents = text
    found, twin = mixture(corpus, **options)
    scores = found.score(*joined(documents, separator))
    weighed = [(twin.row(past), twin.rows(past), token) for past, token in pasts(documents, separator)]
    expected = np.array([row[token] for row, _, token in weighed])
    close = 1e-5 if found.experts.network is not None else 1e-9
    np.testing.assert_allclose(np.exp(scores.log_probs), expected, rtol=close)
    names = found.experts.names
    alone = np.array([rows[:, token] for _, rows, token in weighed])
    assert list(scores.experts) == list(scores.shares) == names
    np.testing.assert_allclose(list(scores.experts.values()), -np.log(alone).mean(axis=0), rtol=close)
    assert sum(scores.shares.values()) == pytest.approx(1, abs=1e-9)
    paid = -scores.log_probs + np.log(found.experts.prior[[token for _, _, token in weighed]])
    assert paid.max() <= 4.61
    return found, twin


@given(corpora(), corpora(most=12), st.sampled_from(SUBSETS), st.integers(1, 5), st.integers(0, 99))
def test_scores_equal_the_twin(corpus, other, experts, order, seed):
    vocab_size, separator, documents = corpus
    text = [[token % vocab_size for token in document] for document in other[2]]
    text = [[token for token in document if token != separator] for document in text]
    check(corpus, (vocab_size, separator, [*text, *documents]), experts=experts, order=order, seed=seed)


@given(corpora(), st.integers(1, 4), st.integers(0, 99))
def test_pruned_scores_equal_the_twin(corpus, order, seed):
    check(corpus, corpus, experts=("ngrams", "classes", "cache"), order=order, prune=(0, 1)[:order], seed=seed)


@pytest.mark.parametrize("contexts", [(name,) for name in NETWORK] + [NETWORK])
def test_every_context_of_the_network(contexts):
    corpus = (5, 2, [[1, 3, 4, 1, 3, 0, 1, 3, 4, 4], [], [3, 0], [1, 3, 4, 1, 1]])
    found, _ = check(corpus, corpus, contexts=contexts)
    scores = found.score(*joined(corpus[2], 2))
    assert list(scores.contexts) == [name for name in NETWORK if name in contexts]
    if len(contexts) == 1:
        assert scores.contexts[contexts[0]] == pytest.approx(scores.experts["network"], abs=1e-6)


@given(
    corpora(most=15), st.sampled_from(SUBSETS), st.integers(1, 5), st.integers(1, 9), st.integers(1, 5),
    st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_any_cut_and_any_number_of_workers_give_the_same_bits(corpus, experts, order, chunk, block, workers):
    _, separator, documents = corpus
    found, _ = mixture(corpus, experts=experts, order=order, contexts=NETWORK[::2])
    text = joined(documents, separator)
    whole = found.score(*text)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TARGETS_PER_CHUNK", chunk)
        cut = found.score(*text, workers, lambda *report: seen.append(report))
        if "network" not in experts:
            np.testing.assert_array_equal(cut.log_probs, whole.log_probs)
        patch.setattr(module, "NETWORK_TARGETS", block)
        cut = found.score(*text, workers)
    np.testing.assert_allclose(cut.log_probs, whole.log_probs, rtol=1e-5, atol=1e-6)  # products of other shapes
    np.testing.assert_array_equal(found.score(*text, workers).log_probs, whole.log_probs)
    n = text[0].size - 1
    assert seen == [("scoring", min(stop, n), n) for stop in range(chunk, n + chunk, chunk)]


def test_an_expert_of_each_kind_and_its_features():
    corpus = (4, 0, [[1, 2, 1, 2, 3]])
    found, _ = mixture(corpus, order=2)
    caches = ["cache", "cache 1024", "cache 128"]
    assert found.experts.names == ["ngrams", "classes 3", "classes 2", *caches, "network", "unigram"]
    assert found.experts.feature_sizes == (4, 8, 10, 3, 2, 2)
    assert mixture(corpus, experts=("network",))[0].experts.names == ["network", "unigram"]
    assert mixture(corpus, experts=("network",))[0].experts.feature_sizes == (2,)
    with_large_vocabulary = module.Experts(0, np.full(50_000, 2e-5))
    assert with_large_vocabulary.feature_sizes == (9,)
    assert module.rank_bits(np.array([0, 1, 2, 3, 4, 7, 8, 49_999])).tolist() == [0, 0, 1, 1, 1, 1, 2, 8]


def test_a_gate_of_other_experts_is_refused():
    corpus = (4, 0, [[1, 2, 1, 2, 3]])
    found, _ = mixture(corpus)
    fewer, _ = mixture(corpus, experts=("ngrams", "classes", "cache"))
    for gate in (fewer.gate, Gate((4, 2), np.full((8, 8), 1 / 8)), Gate(found.gate.sizes, found.gate.weights[:9])):
        with pytest.raises(InputError, match=r"expected weights \(5760, 8\) of ngrams, classes 3, .* got"):
            Mixture(found.experts, gate)
