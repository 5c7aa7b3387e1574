"""Mixtures and their twins, shared by the tests: every expert by itself, with weights drawn at random."""

import numpy as np
import reference
from hypothesis import strategies as st
from test_ngrams import joined

from warmstart.classes import ORDER, ClassModel
from warmstart.gate import FLOOR, Gate
from warmstart.kneser_ney import KneserNey
from warmstart.mixture import CACHES, Experts, Mixture
from warmstart.near_shallow import Config, NearShallowModel
from warmstart.ngrams import count_ngrams
from warmstart.solution import class_prior

EXPERTS = ("ngrams", "classes", "cache", "network")
NETWORK = ("radial", "attended", "block", "document", "memory")


@st.composite
def corpora(draw, most=8, vocab=6):
    """Draw (vocab_size, separator, documents), no separator inside a document."""
    vocab_size = draw(st.integers(2, vocab))
    separator = draw(st.integers(0, vocab_size - 1))
    token = st.sampled_from([token for token in range(vocab_size) if token != separator])
    return vocab_size, separator, draw(st.lists(st.lists(token, max_size=most), min_size=1, max_size=6))


def labels_of(vocab_size, separator, rng):
    """Classes of tokens; that of the separator is its own, and none is empty."""
    drawn = rng.integers(1, 4, vocab_size)
    drawn[separator] = 0
    return np.unique(drawn, return_inverse=True)[1].reshape(-1)


def network_of(vocab_size, separator, contexts, rng):
    config = Config(vocab_size, separator, bits=4, hidden_bits=3, radius=2, block_size=3, contexts=contexts)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.shapes.items()}
    embedding = rng.random(config.shapes["embedding.weight"]).astype(np.float32)
    arrays["embedding.weight"] = embedding / embedding.sum(axis=1, keepdims=True)
    return NearShallowModel(config, arrays)


def mixture(corpus, experts=EXPERTS, order=3, prune=(), contexts=("radial", "document", "memory"), seed=0):
    """A mixture of some experts of a corpus, and its twin."""
    vocab_size, separator, documents = corpus
    rng = np.random.default_rng(seed)
    counts = count_ngrams(*joined(documents, separator), vocab_size, order)
    prior = class_prior(counts.levels[0].counts)
    found, twin = Experts(separator, prior), {}
    text = joined(documents, separator)[0].tolist()
    if "ngrams" in experts:
        found.ngrams = KneserNey(counts, prune)
        raw = reference.ngram_counts(text, separator, order)
        twin["ngrams"] = reference.KneserNey(raw, vocab_size, separator, order, found.ngrams.thresholds)
    if "classes" in experts:
        labels = labels_of(vocab_size, separator, rng)
        two = (np.arange(vocab_size) != separator).astype(np.int64)
        for own in [labels, two][: 1 + (labels.max() > 1)]:  # models of equally many classes have one name
            found.classes += (ClassModel.of(own, counts.levels[0].counts, counts),)
            raw = reference.ngram_counts([own[token] for token in text], 0, min(order, ORDER))
            model = reference.KneserNey(raw, max(own) + 1, 0, min(order, ORDER))
            times = [text[1:].count(token) + 0.5 for token in range(vocab_size)]
            of_class = [sum(t for t, other in zip(times, own, strict=True) if other == label) for label in own]
            shares = [a / b for a, b in zip(times, of_class, strict=True)]
            twin["classes"] = [*twin.get("classes", []), (model, own.tolist(), shares)]
    if "cache" in experts:
        found.cache = True
        twin["caches"] = dict(CACHES)
    if "network" in experts:
        found.network = network_of(vocab_size, separator, contexts, rng)
        twin["network"] = found.network.config, found.network.arrays
    sizes = found.feature_sizes
    weights = rng.dirichlet(np.ones(len(found.names)), int(np.prod(sizes)))
    weights = (1 - FLOOR) * weights
    weights[:, -1] += FLOOR
    twin |= {"weights": weights, "sizes": sizes}
    return Mixture(found, Gate(sizes, weights)), reference.Mixture(separator, prior, **twin)
