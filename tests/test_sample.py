"""The sample: what counts say of a part as if it had not been counted, what is held out, and tiny texts."""

import itertools

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from mixtures import corpora, mixture
from test_ngrams import joined

from warmstart import sample
from warmstart.errors import InputError
from warmstart.gate import FLOOR, with_expert
from warmstart.kneser_ney import KneserNey, parts
from warmstart.mixture import CACHES, Experts
from warmstart.ngrams import count_ngrams
from warmstart.sample import first_documents, fit_mixture, left_out_evidence, split, stretches
from warmstart.solution import class_prior
from warmstart.solving import Recipe, solve

NETWORK = {"bits": 16, "hidden_bits": 8, "radius": 1, "block_size": 2}


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    for name, shape in {"cache": (4, 7), "cache 1024": (3, 5), "cache 128": (3, 2)}.items():
        monkeypatch.setitem(CACHES, name, shape)


def counted(documents, vocab_size, separator=0, order=3):
    return count_ngrams(*joined(documents, separator), vocab_size, order)


@given(corpora(), st.integers(2, 4), st.sampled_from([(), (0, 1)]), st.integers(0, 9), st.sampled_from([1, 3, 1000]))
def test_evidence_equals_counting_again_without_the_part(corpus, order, prune, seed, chunk):
    """The discounts are those of the whole; for the classes, their shares in tokens stay those of the whole too."""
    _, separator, documents = corpus
    found, twin = mixture(corpus, ("ngrams", "classes", "cache"), order, prune, seed=seed)
    tokens, borders = joined(documents, separator)
    scored = np.random.default_rng(seed).random(tokens.size - 1) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "TARGETS_PER_CHUNK", chunk)
        evidence = left_out_evidence(found.experts, tokens, borders, scored)
    rows, features, text = [], [], tokens.tolist()
    for part in parts(borders, tokens.size - 1):
        targets = range(part.start, part.stop)
        rest = reference.Mixture(
            separator,
            twin.prior,
            ngrams=twin.ngrams.without(text, targets),
            classes=[
                (model.without([labels[t] for t in text], targets), labels, s) for model, labels, s in twin.classes
            ],
            caches=twin.caches,
        )
        for i in targets:
            start = int(borders[np.searchsorted(borders, i) - 1]) + 1
            rows.append(rest.rows(text[start:i])[:, text[i]])
            features.append(rest.features(text[start:i]))
    np.testing.assert_allclose(evidence.probs, np.array(rows)[scored], rtol=1e-9)
    assert evidence.features.tolist() == np.array(features)[scored].tolist()


@given(corpora(most=40), st.data())
def test_an_eighth_is_held_out(corpus, data):
    vocab_size, separator, documents = corpus
    copies = data.draw(st.integers(1, 12))
    counts = counted(documents * copies, vocab_size, separator)
    found = split(counts)
    text = joined([text.tolist() for text in found.texts], separator)[0].tolist()
    borders = np.cumsum([0, *(len(text) + 1 for text in found.texts)])
    # every target is in the rest or held out, but for the ends of documents that were cut
    rest = [text.tolist() for text in found.rest]
    kept = list(itertools.chain.from_iterable(rest))
    held = [text[1:][i] for span in found.held_out for i in range(span.start, span.stop)]
    whole = [token for text in counts.documents.all() for token in text.tolist()]
    assert sorted(kept + [token for token in held if token != separator]) == sorted(whole)
    size = sum(span.stop - span.start for span in found.held_out)
    pieces = [(part.start - 1, part.stop - 1) for part in parts(borders, counts.n_tokens)]
    assert {(span.start, span.stop) for span in found.held_out} <= set(pieces)
    assert size <= counts.n_tokens / 8 + max(1, counts.n_tokens / 8)
    if len(whole) > 1:
        assert kept
    assert [span.start for span in found.held_out] == sorted({span.start for span in found.held_out})
    every = all(borders[k] <= span.start and span.stop <= borders[k + 1] for k, span in enumerate(found.held_out))
    assert every  # one part of each text


def test_held_out_by_hand():
    counts = counted([[1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]], 6)
    rest, texts, held_out = split(counts)
    assert [text.tolist() for text in texts] == [[1, 2, 3, 4, 5] * 3]
    assert held_out == [slice(6, 8)]
    assert [text.tolist() for text in rest] == [[1, 2, 3, 4, 5, 1], [4, 5, 1, 2, 3, 4, 5]]


def test_whole_documents_are_held_out_in_the_order_of_their_digests():
    counts = counted([[i % 5 + 1] * (i % 3 + 1) + [i // 5 + 1] for i in range(25)], 6)
    rest, texts, held_out = split(counts)
    documents = [text.tolist() for text in counts.documents.all()]
    assert [text.tolist() for text in texts] + [text.tolist() for text in rest] == documents
    assert held_out[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(held_out))
    assert counts.n_tokens / 8 <= held_out[-1].stop < counts.n_tokens / 8 + 5


@given(corpora(), st.integers(1, 5), st.integers(1, 60))
def test_the_first_documents_have_enough_tokens(corpus, copies, limit):
    vocab_size, separator, documents = corpus
    counts = counted(documents * copies, vocab_size, separator)
    found = [text.tolist() for text in first_documents(counts, limit)]
    everything = [text.tolist() for text in counts.documents.all()]
    assert found == everything[: len(found)]
    sizes = [len(text) + 1 for text in found]
    assert sum(sizes) >= limit or len(found) == len(everything)
    assert sum(sizes[:-1]) < limit


def test_stretches(monkeypatch):
    monkeypatch.setattr(sample, "STRETCH", 2)
    assert stretches(9, 3).tolist() == [True, True, False, False, False, False, True, True, False]
    assert stretches(3, 9).all()
    assert stretches(1, 1).tolist() == [True]


@given(corpora(), st.integers(2, 4), st.integers(0, 9))
def test_a_fitted_gate_is_not_worse_than_an_expert(corpus, order, seed):
    vocab_size, separator, documents = corpus
    found, _ = mixture(corpus, ("ngrams", "classes", "cache"), order, seed=seed)
    fitted, losses = fit_mixture(found.experts, counted(documents, vocab_size, separator, order))
    assert list(losses) == ["mixture", *found.experts.names]
    assert losses["mixture"] <= min(losses.values()) - np.log(1 - FLOOR) + 2e-3
    tokens, borders = joined(first_documents(counted(documents, vocab_size, separator, order), 10**6), separator)
    evidence = left_out_evidence(found.experts, tokens, borders, np.ones(tokens.size - 1, np.bool_))
    nats = -np.log(fitted.gate.mix(evidence.probs, evidence.features).sum(axis=1)).mean()
    assert nats == pytest.approx(losses["mixture"], abs=1e-12)
    assert -np.log(evidence.probs[:, 0]).mean() == pytest.approx(losses["ngrams"], abs=1e-12)


@given(corpora(), st.integers(2, 3), st.integers(0, 9), st.sampled_from([1, 2, 5]), st.booleans())
def test_the_network_is_judged_on_what_it_was_solved_without(corpus, order, seed, stretch, remembers):
    """The network beside the counts: solved from the rest, scored with the whole document before each target."""
    vocab_size, separator, documents = corpus
    counts = counted(documents, vocab_size, separator, order)
    contexts = ("radial", "document", "memory") if remembers else ("radial",)
    found, _ = mixture(corpus, ("ngrams", "cache", "network"), order, contexts=contexts, seed=seed)
    network, given_texts, judged = found.experts.network, [], []
    held = split(counts)
    assume(held.rest)

    def solve_again(texts):
        given_texts.append([text.tolist() for text in texts])
        return network

    def add(gate, probs, added, features):
        judged.append((probs, added))
        return with_expert(gate, probs, added, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "STRETCH", stretch)
        patch.setattr(sample, "with_expert", add)
        fitted, _ = fit_mixture(found.experts, counts, solve_again)
    assert given_texts == [[text.tolist() for text in held.rest]]
    tokens, borders = joined([text.tolist() for text in held.texts], separator)
    expected = []
    for span in held.held_out:
        for i in range(span.start + 1, span.stop + 1):
            start = int(borders[np.searchsorted(borders, i) - 1])
            z = reference.language_model_logits(network.config, network.arrays, tokens[start:i])[-1]
            expected.append(np.exp(z[tokens[i]] - z.max()) / np.exp(z - z.max()).sum())
    ((probs, added),) = judged
    np.testing.assert_allclose(added, expected, rtol=1e-5)
    assert probs.shape == (len(expected), len(fitted.experts.names) - 1)


TINY = {
    "one token": [[1]],
    "one document": [[1, 2, 3, 1, 2, 3, 1, 2, 1, 2]],
    "documents of one token": [[1], [2], [1], [3]],
    "seen once": [[1, 2, 3, 4, 5, 6, 7, 8, 9]],
    "all equal": [[1] * 30],
    "all equal, twice": [[1] * 9] * 2,
    "empty documents": [[], [1, 2], []],
    "copies": [[1, 2, 3]] * 20,
}


@pytest.mark.parametrize("vocab_size", [0, 100])
@pytest.mark.parametrize("contexts", [("ngrams",), ("classes",), ("cache",), ("ngrams", "classes", "cache")])
@pytest.mark.parametrize("order", [2, 5, 12])
@pytest.mark.parametrize("name", TINY)
def test_tiny_texts(name, order, contexts, vocab_size):
    """Every row of what is solved sums to 1; vocab_size 0: as small as can be."""
    documents = TINY[name]
    vocab_size = vocab_size or max(map(max, filter(None, documents))) + 1
    counts = counted(documents, vocab_size, order=order)
    solved = solve(counts, Recipe(contexts, order))
    assert np.isfinite(solved.mixture.gate.weights).all()
    assert all(np.isfinite(loss) and loss >= 1 - 1e-9 for loss in solved.report["left_out_perplexity"].values())
    scores = solved.mixture.score(*joined(documents, 0))
    assert (scores.log_probs <= 0).all()
    price = np.log(class_prior(counts.levels[0].counts)[joined(documents, 0)[0][1:]])
    assert (scores.log_probs >= price - 4.61).all()


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("name", TINY)
def test_tiny_texts_with_a_network(name, order):
    documents = TINY[name]
    counts = counted(documents, max(map(max, filter(None, documents))) + 1, order=order)
    solved = solve(counts, Recipe(("ngrams", "cache", "radial", "document", "memory"), order, network=NETWORK))
    assert solved.mixture.experts.names[-2:] == ["network", "unigram"]
    assert np.isfinite(solved.mixture.score(*joined(documents, 0)).log_probs).all()


def test_too_little_text_for_a_network_is_refused():
    counts = counted([[1]], 2, order=2)
    with pytest.raises(InputError, match="context of 2 holds, got 2; give more text"):
        solve(counts, Recipe(("ngrams", "radial"), 2, network={**NETWORK, "radius": 2}))


@given(corpora(), st.sampled_from([1, 2, 3]))
def test_workers_change_nothing(corpus, workers):
    vocab_size, separator, documents = corpus
    counts = counted(documents, vocab_size, separator)
    one, more = (solve(counts, Recipe(("ngrams", "classes", "cache"), 3), w) for w in (1, workers))
    np.testing.assert_array_equal(one.mixture.gate.weights, more.mixture.gate.weights)
    assert one.report["left_out_perplexity"] == more.report["left_out_perplexity"]


def test_models_must_have_counted_the_sample():
    other = KneserNey(counted([[1, 1]], 5))
    with pytest.raises(InputError, match="documents that were counted"):
        fit_mixture(Experts(0, np.full(5, 0.2), other), counted([[1, 2, 3, 4, 1, 2]], 5))
