"""The scores of the BLiMP bench: those of the models, and how pairs are decided."""

import numpy as np
import pytest

from benchmarks import blimp
from warmstart import WarmStartLM
from warmstart.corpus import Corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = ["the dog barks and the dogs bark"] * 40 + ["a dog barks", "many dogs bark"] * 40
    return Corpus.build(texts, tokenizer="words", cache_dir=tmp_path_factory.mktemp("cache"))


def test_a_model_of_the_text_prefers_its_pairs_and_ties_count_half(corpus):
    model = WarmStartLM(bits=8, radius=1, contexts=("radial",)).fit(corpus)
    pairs = [("the dog barks", "the dog bark", "agreement"), ("many dogs bark", "many dogs barks", "agreement")]
    pairs += [("a dog", "a dog", "same")]
    shares = blimp.by_field(blimp.near_shallow(model), corpus, pairs)
    assert shares == {"all": pytest.approx(2.5 / 3), "agreement": 1.0, "same": 0.5}


def test_nats_are_those_of_the_model(corpus):
    model = WarmStartLM(bits=8, radius=2, contexts=("radial", "document")).fit(corpus)
    ids = corpus.tokenizer.encode("the dogs bark").ids
    expected = -sum(np.log(model.predict_proba(ids[:i])[token]) for i, token in enumerate(ids))
    assert blimp.near_shallow(model)(ids) == pytest.approx(expected, abs=1e-3)


def test_n_grams_are_those_of_the_counts(corpus):
    ids = corpus.tokenizer.encode("the dog").ids
    counts = np.asarray(corpus.counts)
    unigram = -np.log((counts / counts.sum())[ids]).sum()
    assert blimp.score("unigram", corpus)(ids) == pytest.approx(unigram, rel=0.05)  # smoothed
    assert blimp.score("bigram", corpus)(ids) < unigram
