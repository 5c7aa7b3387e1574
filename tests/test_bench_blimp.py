import json

import numpy as np
import pytest

from benchmarks import blimp
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.counts import NGrams, bigram_counts
from warmstart.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = ["the dog barks and the dogs bark"] * 40 + ["a dog barks", "many dogs bark"] * 40
    return Corpus.build(texts, tokenizer="words", cache_dir=tmp_path_factory.mktemp("cache"))


def test_a_model_of_the_text_prefers_its_pairs_and_ties_count_half(corpus):
    model = WarmStartLM(bits=8, radius=1, contexts=("radial",)).fit(corpus)
    pairs = [("the dog barks", "the dog bark", "agreement"), ("many dogs bark", "many dogs barks", "agreement")]
    pairs += [("a dog", "a dog", "same")]
    found = blimp.by_field(blimp.near_shallow(model), corpus, pairs)
    assert found == {"all": pytest.approx(2.5 / 3), "agreement": 1.0, "same": 0.5}


def test_nats_are_those_of_the_model_whatever_the_batch(corpus, monkeypatch):
    model = WarmStartLM(bits=8, radius=2, contexts=("radial", "document")).fit(corpus)
    texts = [corpus.tokenizer.encode(text).ids for text in ("the dog barks", "dogs", "many dogs bark and")]
    one = blimp.near_shallow(model)(texts)
    monkeypatch.setattr(blimp, "BATCH", 1)
    np.testing.assert_allclose(blimp.near_shallow(model)(texts), one, atol=1e-5)
    first = -np.log(model.predict_proba([])[texts[1][0]])
    assert one[1] == pytest.approx(first, abs=1e-5)


def test_the_bigram_is_the_one_of_the_counts(corpus):
    ngrams = NGrams(np.asarray(corpus.counts), bigram_counts(corpus.tokens, corpus.vocab_size))
    ids = corpus.tokenizer.encode("the dog").ids
    alone = ngrams.cross_entropies(np.array([corpus.separator, ids[0]]))[1] + ngrams.cross_entropies(np.array(ids))[1]
    assert blimp._bigram(ngrams, corpus.separator, [ids])[0] == pytest.approx(alone)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"good": "a"}))
    with pytest.raises(InputError, match="expected BLiMP pairs"):
        blimp.read_pairs(path)
