"""A document read token by token: rows equal those of a twin and the scores of the whole text; what explains them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixtures import EXPERTS, NETWORK, corpora, mixture
from strategies import texts
from test_ngrams import joined

from warmstart.errors import InputError
from warmstart.mixture import CACHES
from warmstart.sampling import check_sampling, draw
from warmstart.stream import Stream

SUBSETS = [subset for n in range(1, 5) for subset in itertools.combinations(EXPERTS, n)]
COUNTS = ("ngrams", "classes", "cache")
STORY = (6, 0, [[1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2], [1, 2, 3, 4, 4], [5, 1, 2, 3]])


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    for name, shape in {"cache": (4, 7), "cache 1024": (3, 5), "cache 128": (3, 2)}.items():
        monkeypatch.setitem(CACHES, name, shape)


def check_rows(found, documents, separator):
    """Read documents, and compare every row with the scores of the whole text."""
    scores = found.score(*joined(documents, separator))
    stream, i = Stream(found), 0
    close = 1e-5 if found.experts.network is not None else 1e-9
    for document in documents:
        for token in [*document, separator]:
            rows, row = stream.rows(), stream.row()
            np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-9)
            assert row.sum() == pytest.approx(1, abs=1e-9)
            assert (row >= 0.01 * found.experts.prior * (1 - 1e-9)).all()
            assert row[token] == pytest.approx(np.exp(scores.log_probs[i]), rel=close)
            stream.advance([token])
            i += 1


@given(corpora(most=14), st.sampled_from(SUBSETS), st.integers(1, 5), st.integers(0, 99))
def test_rows_equal_the_scores_of_the_text(corpus, experts, order, seed):
    vocab_size, separator, documents = corpus
    found, _ = mixture(corpus, experts=experts, order=order, seed=seed)
    unseen = [
        [token for token in np.random.default_rng(seed).integers(0, vocab_size, 12).tolist() if token != separator]
    ]
    check_rows(found, [*unseen, *documents], separator)


@pytest.mark.parametrize("contexts", [(name,) for name in NETWORK] + [NETWORK])
def test_rows_of_every_context_of_the_network(contexts):
    found, _ = mixture(STORY, contexts=contexts)
    check_rows(found, STORY[2], 0)


@given(texts(most=14), st.integers(1, 4), st.integers(0, 99))
def test_rows_of_a_pruned_mixture_with_separators_in_its_documents(corpus, order, seed):
    found, _ = mixture(corpus, experts=COUNTS, order=order, prune=(0, 1)[:order], seed=seed)
    check_rows(found, corpus[2], corpus[1])


@given(corpora(most=12), st.sampled_from(SUBSETS), st.integers(1, 4), st.integers(0, 99))
def test_rows_and_weights_equal_the_twin(corpus, experts, order, seed):
    found, twin = mixture(corpus, experts=experts, order=order, seed=seed)
    stream = Stream(found)
    document = corpus[2][0]
    for i in range(len(document) + 1):
        past = document[:i]
        assert stream.history == [corpus[1], *past]
        np.testing.assert_allclose(stream.rows(), twin.rows(past), rtol=1e-5 if "network" in experts else 1e-9)
        np.testing.assert_allclose(stream.weights() @ twin.rows(past), twin.row(past), rtol=1e-9)
        stream.advance(document[i : i + 1])


def test_a_separator_begins_a_new_document():
    found, _ = mixture(STORY)
    fresh, used = Stream(found), Stream(found)
    used.advance([1, 2, 3, 0, 1, 2])
    fresh.advance(np.array([1, 2], np.uint16))
    assert used.history == fresh.history == [0, 1, 2]
    np.testing.assert_array_equal(used.rows(), fresh.rows())
    np.testing.assert_array_equal(used.rows(), fresh.rows())  # looking changes nothing


@pytest.mark.parametrize("experts", [("ngrams",), ("classes", "cache"), EXPERTS])
@pytest.mark.parametrize("tokens", [[1, 6], [1, -1]])
def test_tokens_outside_the_vocabulary_are_refused(experts, tokens):
    stream = Stream(mixture(STORY, experts=experts)[0])
    before = stream.rows()
    with pytest.raises(InputError, match=f"token ids from 0 to 5, got .*{tokens[1]}"):
        stream.advance(tokens)
    assert stream.history == [0]
    np.testing.assert_array_equal(stream.rows(), before)


# Text


def test_generation():
    found, _ = mixture(STORY, experts=COUNTS, order=4)
    stream = Stream(found)
    stream.advance([1])
    greedy = []
    while len(greedy) < 20 and (token := int(stream.row().argmax())):
        greedy.append(token)
        stream.advance([token])

    def written(**options):
        fresh = Stream(found)
        fresh.advance([1])
        out = fresh.generate(**{"max_new_tokens": 20, **options})
        assert fresh.history == [0, 1, *out]
        return out

    assert written(temperature=0) == greedy
    assert written(top_p=1e-9) == greedy
    assert written(temperature=1e-9) == greedy
    assert written(seed=3) == written(seed=3)
    assert len({tuple(written(seed=seed)) for seed in range(5)}) > 1
    assert all(0 not in written(seed=seed) for seed in range(20))
    assert written(max_new_tokens=0) == []
    assert max(len(written(seed=seed, max_new_tokens=2)) for seed in range(20)) == 2


def test_draws_follow_the_distribution():
    probs, rng = np.array([0.1, 0.4, 0.2, 0.3]), np.random.default_rng(0)
    drawn = [Counter(draw(probs, t, top_p, rng) for _ in range(20_000)) for t, top_p in ((1, 1), (0.5, 1), (1, 0.7))]
    for counts, expected in zip(
        drawn, ([0.1, 0.4, 0.2, 0.3], np.array([1, 16, 4, 9]) / 30, [0, 4 / 7, 0, 3 / 7]), strict=True
    ):
        np.testing.assert_allclose([counts[token] / 20_000 for token in range(4)], expected, atol=0.015)
    assert draw(np.array([0.5, 0.0, 0.5]), 0, 1, rng) == 0
    assert {draw(np.array([1.0, 0.0]), 9.0, 1.0, rng) for _ in range(99)} == {0}


@pytest.mark.parametrize(
    ("numbers", "name"),
    [((-1, 1, 1, 0), "max_new_tokens"), ((1.5, 1, 1, 0), "max_new_tokens"), ((1, -0.1, 1, 0), "temperature"),
     ((1, float("nan"), 1, 0), "temperature"), ((1, float("inf"), 1, 0), "temperature"), ((1, 1, 0, 0), "top_p"),
     ((1, 1, 1.1, 0), "top_p"), ((1, 1, float("nan"), 0), "top_p"), ((1, 1, 1, -1), "seed"),
     ((1, 1, 1, 2**63), "seed"), ((1, 1, 1, 0.5), "seed"), ((1, 1, 1, None), "seed"),
     ((1, "hot", 1, 0), "temperature"), ((1, 1, None, 0), "top_p")],
)  # fmt: skip
def test_numbers_out_of_range(numbers, name):
    with pytest.raises(InputError, match=f"{name}: expected"):
        check_sampling(*numbers)
    with pytest.raises(InputError, match=f"{name}: expected"):
        Stream(mixture(STORY, experts=("ngrams",))[0]).generate(*numbers)


# Explanation


@given(corpora(most=12), st.integers(1, 5), st.sampled_from([(), (0, 1)]), st.sampled_from(SUBSETS), st.integers(0, 99))
def test_explanation(corpus, order, prune, experts, seed):
    found, twin = mixture(corpus, experts=experts, order=order, prune=prune[:order], seed=seed)
    separator, document = corpus[1], corpus[2][0]
    stream = Stream(found)
    stream.advance(document)
    history = [separator, *document]
    explanation = stream.explain(top=3)
    row, rows = stream.row(), dict(zip(found.experts.names, stream.rows(), strict=True))
    assert explanation.weights == dict(zip(found.experts.names, stream.weights().tolist(), strict=True))
    assert [reason.token for reason in explanation.reasons] == np.argsort(-row, kind="stable")[:3].tolist()
    for reason in explanation.reasons:
        y, shares = reason.token, reason.shares
        assert reason.probability == pytest.approx(row[y], rel=1e-12)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
        for name, share in shares.items():
            assert share == pytest.approx(explanation.weights[name] * rows[name][y] / row[y], rel=1e-9)
        check_ngrams(reason, twin, history)
        check_places(reason, history, "cache" in experts)


def check_ngrams(reason, twin, history):
    if twin.ngrams is None:
        assert reason.ngrams == []
        return
    h = twin.ngrams.history(history)
    expected = twin.ngrams.parts(reason.token, h)
    assert sum(share for _, share in reason.ngrams) == pytest.approx(reason.shares["ngrams"], rel=1e-9)
    assert [share for _, share in reason.ngrams] == sorted((share for _, share in reason.ngrams), reverse=True)
    whole = twin.ngrams.probability(reason.token, h)
    got = dict(reason.ngrams)
    for gram in expected.keys() | got.keys():
        share = reason.shares["ngrams"] * expected.get(gram, 0.0) / whole
        assert got.get(gram, 0.0) == pytest.approx(share, rel=1e-9, abs=1e-12)


def check_places(reason, history, cached):
    """All places in the cache where the token followed the longest context that is here too."""
    order, size = CACHES["cache"]
    places = range(max(1, len(history) - size), len(history)) if cached else []
    places = [i for i in places if history[i] == reason.token]

    def shared(i):
        length = 0
        while length < min(order - 1, i) and history[i - 1 - length] == history[-1 - length]:
            length += 1
        return length

    longest = max(map(shared, places), default=0)
    expected = [i for i in reversed(places) if shared(i) == longest]
    assert [place for place, _ in reason.places] == expected
    if expected:
        assert [share for _, share in reason.places] == pytest.approx(
            [reason.shares["cache"] / len(expected)] * len(expected)
        )


def test_explanation_by_hand(monkeypatch):
    """1 2 was followed by 3, 4, 3 in the document, and 3 came last after it at place 9."""
    found, _ = mixture((6, 0, [[1, 2, 3, 5], [4, 4]]), experts=("ngrams", "cache"))
    monkeypatch.setitem(CACHES, "cache", (4, 100))
    stream = Stream(found)
    stream.advance([1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2])
    reasons = {reason.token: reason for reason in stream.explain(top=6).reasons}
    assert [place for place, _ in reasons[3].places] == [9, 3]  # after 1 2; after 5 1 2 nothing came yet
    assert [place for place, _ in reasons[4].places] == [6]
    assert [place for place, _ in reasons[5].places] == [10]
    assert [gram for gram, _ in reasons[3].ngrams] == [(1, 2, 3), (2, 3), (3,)]
    assert [gram for gram, _ in reasons[5].ngrams] == [(5,)]
