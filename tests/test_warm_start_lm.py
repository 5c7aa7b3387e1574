"""The language model as an estimator, on a made-up language whose perplexity is known."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from bitcipher import CapacityError
from warmstart import Corpus, InputError, NearShallowLM, WarmStartLM

RNG = np.random.default_rng(0)
WORDS = ["sun", "moon", "star", "sky", "rain", "wind", "snow", "fog"]
NEXT = {word: [WORDS[(i * 3 + j) % 8] for j in (1, 2)] for i, word in enumerate(WORDS)}


def story(length):
    words = ["sun"]
    for _ in range(length):
        words.append(NEXT[words[-1]][RNG.integers(2)])
    return " ".join(words)


TRAIN, TEST = [story(80) for _ in range(60)], [story(80) for _ in range(6)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(TRAIN, tokenizer="words", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(corpus):
    return WarmStartLM(preset="potato", contexts=("radial", "block", "document")).fit(corpus)


def test_finds_the_chain(model):
    # every word has two successors of equal probability; document ends come once in 82 tokens
    scores = model.evaluate(TEST)
    assert 2.0 < scores["perplexity"] < 2.3
    assert scores["unigram_perplexity"] > 7
    assert scores["tokens"] == 6 * 82


def test_evaluate_is_the_mean_of_predict_proba(model):
    text = TEST[0]
    ids = [*model.tokenizer_.encode(text, add_special_tokens=False).ids, model.model_.config.separator]
    nats = [-np.log(model.predict_proba(ids[:i])[ids[i]]) for i in range(len(ids))]
    assert np.log(model.perplexity([text])) == pytest.approx(np.mean(nats), abs=1e-5)


def test_predict_proba_is_a_distribution_and_equals_the_module(model):
    network, separator = model.to_torch(), model.model_.config.separator
    for ids in ([], [3], [3, 1, 4, 1, 5, 2, 6, 5, 3]):
        p = model.predict_proba(ids)
        assert p.sum() == pytest.approx(1, abs=1e-5)
        with torch.no_grad():
            q = torch.softmax(network(torch.tensor([[separator, *ids]]))[0, -1], dim=0).numpy()
        np.testing.assert_allclose(p, q, atol=1e-6)


def test_parameters_after_scikit_learn():
    model = WarmStartLM("micro", bits=64, contexts=("radial",), smoothing=3.0)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(radius=5).radius == 5
    with pytest.raises(NotFittedError):
        model.perplexity(TEST)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    for key in ("perplexity", "unigram_perplexity", "bigram_perplexity", "contexts"):
        assert loaded.evaluate(TEST)[key] == model.evaluate(TEST)[key]
    network = NearShallowLM.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert loaded.generate("sun", max_tokens=5, seed=1) == model.generate("sun", max_tokens=5, seed=1)


def test_generates_the_chain(model):
    words = ("sun " + model.generate("sun", max_tokens=30, temperature=0.5, seed=0)).split()
    assert len(words) > 5
    assert sum(b in NEXT[a] for a, b in itertools.pairwise(words)) > 0.9 * (len(words) - 1)


def test_published_formula_and_fixed_smoothing(corpus):
    model = WarmStartLM("potato", contexts=("radial", "document"), temperature=1.0, smoothing=5.0).fit(corpus)
    assert set(model.report_["smoothing"].values()) == {5.0}
    assert {tau for taus in model.report_["temperatures"].values() for tau in taus} == {1.0}
    assert model.perplexity(TEST) < 8


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"preset": "huge"}, InputError, "huge"),
        ({"bits": 3}, CapacityError, "bits >= 4"),
        ({"radius": 0}, InputError, "radius"),
        ({"contexts": ("round",)}, InputError, "round"),
        ({"smoothing": -1.0}, InputError, "smoothing"),
        ({"smoothing": float("nan")}, InputError, "smoothing"),
        ({"temperature": "hot"}, InputError, "temperature"),
    ],
)
def test_bad_parameters(corpus, parameters, error, match):
    with pytest.raises(error, match=match):
        WarmStartLM(**{"preset": "potato", "contexts": ("radial",), **parameters}).fit(corpus)


@pytest.mark.parametrize("ids", [[-1], [10_000], [0, 99_999]])
def test_ids_out_of_range(model, ids):
    with pytest.raises(InputError, match="expected token ids"):
        model.predict_proba(ids)
