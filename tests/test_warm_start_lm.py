"""The language model as an estimator, on a made-up language whose perplexity is known."""

import copy
import inspect
import itertools
import json
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator,
    check_estimator_cloneable,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from bitcipher import CapacityError
from warmstart import Corpus, InputError, NearShallowLM, WarmStartLM
from warmstart.cli import app
from warmstart.contexts import CONTEXTS
from warmstart.explanation import described
from warmstart.files import CHECKSUMS, checksums, load_arrays, save_arrays
from warmstart.layers import MixtureLM

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
        np.testing.assert_allclose(p, 0.99 * q + 0.01 * model.mixture_.experts.prior, atol=3e-6)


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
    assert loaded.generate("sun", max_new_tokens=5, seed=1) == model.generate("sun", max_new_tokens=5, seed=1)


def test_generates_the_chain(model):
    words = ("sun " + model.generate("sun", max_new_tokens=30, temperature=0.5, seed=0)).split()
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


# Experts


COUNTS = ("ngrams", "classes", "cache")
ALL = (*COUNTS, "radial", "document")
SIZES = {"bits": 16, "radius": 1, "block_size": 2}


@pytest.fixture(scope="module")
def mixed(corpus):
    return WarmStartLM("potato", contexts=ALL, order=3, **SIZES).fit(corpus)


def sizes(contexts):
    """Sizes of a network, if there is one."""
    return SIZES if set(contexts) & set(CONTEXTS) else {}


def kinds(folder):
    """The files of a model without their endings and numbers."""
    return {path.name.split(".")[0].split("-")[0] for path in folder.iterdir()}


def files(model, folder):
    """The bytes of every file of a saved model."""
    model.save_pretrained(folder)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return content


def test_a_mixture_finds_the_chain(mixed):
    scores = mixed.evaluate(TEST)
    assert scores["perplexity"] < 2.2
    assert list(scores["experts"]) == ["ngrams", "classes", "cache", "cache 1024", "cache 128", "network", "unigram"]
    assert scores["experts"]["unigram"] == pytest.approx(scores["unigram_perplexity"], rel=1e-9)
    assert min(scores["experts"].values()) < 1.05 * scores["perplexity"]
    assert sum(scores["shares"].values()) == pytest.approx(1)
    assert set(scores["contexts"]) == {"radial", "document"}
    assert mixed.report_["documents"] == 60
    assert mixed.report_["left_out_perplexity"]["mixture"] < 2.2
    two_threads = copy.copy(mixed).set_params(n_jobs=2)
    assert scores == {**two_threads.evaluate(TEST), "seconds": scores["seconds"]}


@pytest.mark.parametrize("contexts", [("cache",), COUNTS, ALL])
def test_a_mixture_is_scored_as_it_predicts(corpus, contexts):
    model = WarmStartLM("potato", contexts=contexts, **sizes(contexts)).fit(corpus)
    ids = [*model.tokenizer_.encode(TEST[0], add_special_tokens=False).ids, corpus.separator]
    rows = [model.predict_proba(ids[:i]) for i in range(len(ids))]
    assert max(abs(row.sum() - 1) for row in rows) < 1e-9
    nats = [-np.log(row[token]) for row, token in zip(rows, ids, strict=True)]
    close = 1e-6 if "radial" in contexts else 1e-9
    assert np.log(model.perplexity([TEST[0]])) == pytest.approx(np.mean(nats), rel=close)


@pytest.mark.parametrize(
    "contexts", [("ngrams",), ("cache",), COUNTS, (*COUNTS, "radial", "attended"), ("radial", "memory")]
)
def test_documents_in_any_order_and_any_shards_give_the_same_bytes(corpus, tmp_path, contexts):
    texts, options = TRAIN[:24], {"contexts": contexts, "order": 4, **sizes(contexts)}

    def encoded(*texts):
        return Corpus.encode(texts, corpus.tokenizer)

    def fitted(first, *more, workers=1):
        model = WarmStartLM("micro", **options, n_jobs=workers).fit(encoded(*first))
        for shard in more:
            model.partial_fit(encoded(*shard) if workers == 1 else list(shard))
        return files(model, tmp_path / "model")

    expected = fitted(texts)
    network = {"model.safetensors"} if set(contexts) & set(CONTEXTS) else set()
    assert expected.keys() == {"config.json", "counts.safetensors", "mixture.safetensors", "tokenizer.json"} | network
    for shards in ([texts[::-1]], [texts[15:], texts[:3], texts[3:15]]):
        for workers in (1, 2):
            found = fitted(*shards, workers=workers)
            assert {name for name in expected if found[name] != expected[name]} == set()


@pytest.mark.parametrize("contexts", [("ngrams",), COUNTS, (*COUNTS, *CONTEXTS), ("radial", "document")])
def test_what_is_forgotten_leaves_no_trace(corpus, tmp_path, contexts):
    texts, options = TRAIN[:24], {"contexts": contexts, "order": 4, **sizes(contexts)}
    rest = WarmStartLM("micro", **options).fit(Corpus.encode(texts[4:], corpus.tokenizer))
    expected = files(rest, tmp_path / "rest")
    model = WarmStartLM("micro", **options).fit(Corpus.encode(texts, corpus.tokenizer))
    whole = files(model, tmp_path / "whole")
    assert whole["mixture.safetensors"] != expected["mixture.safetensors"]
    with pytest.raises(InputError, match="documents that were counted"):
        model.forget([texts[5], "sun sun sun"])
    assert files(model, tmp_path / "whole") == whole
    with pytest.raises(InputError, match="some text that stays"):
        model.forget(texts)
    assert files(model, tmp_path / "whole") == whole
    assert model.forget(texts[:4]) is model
    assert files(model, tmp_path / "model") == expected
    model.save_pretrained(tmp_path / "saved")
    loaded = WarmStartLM.from_pretrained(tmp_path / "saved").partial_fit(texts[:4]).forget(texts[4:][::-1])
    assert files(loaded, tmp_path / "model") == files(
        WarmStartLM("micro", **options).fit(Corpus.encode(texts[:4], corpus.tokenizer)), tmp_path / "model"
    )


def test_the_first_partial_fit_is_a_fit(tmp_path):
    first, same = (WarmStartLM("potato", vocab_size=300, contexts=("ngrams",)) for _ in range(2))
    first.partial_fit(TRAIN[:3])
    same.fit(TRAIN[:3])
    assert files(first, tmp_path / "model") == files(same, tmp_path / "model")
    with pytest.raises(NotFittedError):
        WarmStartLM().forget(TRAIN[:1])


def test_other_parameters_than_those_of_the_counts_are_refused(corpus):
    model = WarmStartLM("potato", contexts=("ngrams",), order=3).fit(corpus)
    with pytest.raises(InputError, match="order of the counts, 3, got parameters for 4"):
        model.set_params(order=4).partial_fit(TEST)
    before = model.set_params(order=3).perplexity(TEST)
    model.set_params(contexts=("ngrams", "cache")).partial_fit(TEST)
    assert model.perplexity(TEST) < before
    assert "cache" in model.evaluate(TEST)["experts"]


@pytest.mark.parametrize("method", ["fit", "partial_fit", "forget", "evaluate"])
def test_a_corpus_of_another_tokenizer_is_refused(corpus, method):
    """It has as many tokens, with other ids."""
    model = WarmStartLM("potato", contexts=("ngrams", "cache")).fit(corpus)
    other = Corpus.build([text.replace("sun", "sea") for text in TRAIN], tokenizer="words")
    assert other.vocab_size == corpus.vocab_size
    if method == "fit":
        assert model.fit(other).tokenizer_.token_to_id("sea") is not None
        model.fit(corpus)
        return
    with pytest.raises(InputError, match="in the tokens of the model, got another tokenizer"):
        getattr(model, method)(other)


# Tokens that the text of the fit does not have


@pytest.mark.parametrize("contexts", [("ngrams",), ("cache",), ("radial", "block", "document"), ALL])
@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
def test_no_token_costs_far_more_than_the_unigram_model_asks(tmp_path, contexts, tokenizer):
    corpus = Corpus.build(TRAIN, tokenizer=tokenizer, vocab_size=300, cache_dir=tmp_path / "cache")
    model = WarmStartLM("potato", contexts=contexts, **sizes(contexts)).fit(corpus)
    texts = ["sun moon лес zzz sun 木 sky 木 木", "ÿ" * 20, *TEST]
    new = Corpus.encode(texts, corpus.tokenizer, cache_dir=tmp_path / "cache")
    targets, prior = new.tokens[1:].astype(np.int64), model.mixture_.experts.prior
    assert (corpus.counts[targets] == 0).any()
    paid = -model.mixture_.score(new.tokens, new.documents).log_probs + np.log(prior[targets])
    assert paid.max() <= -np.log(0.01) + 1e-9
    scores = model.evaluate(new)
    assert np.isfinite(scores["bigram_perplexity"])
    assert np.log(scores["perplexity"]) <= np.log(scores["experts"]["unigram"]) - np.log(0.01) + 1e-9
    ids = new.tokens[1:8].tolist()
    for length in range(8):
        assert (model.predict_proba(ids[:length]) >= 0.01 * prior * (1 - 1e-9)).all()
    twin = MixtureLM.from_model(model.mixture_)
    with torch.no_grad():
        ids_before = torch.tensor(np.append(corpus.separator, targets[:-1])[None])
        said = twin.target_log_probs(ids_before, torch.tensor(targets[None]))
        rows = twin(torch.tensor([[corpus.separator, *ids]]))[0].numpy()
    assert (np.log(prior[targets]) - said[0].numpy()).max() <= -np.log(0.01) + 1e-4
    np.testing.assert_allclose(np.exp(rows[-1]), model.predict_proba(ids), atol=1e-5)


def test_a_network_alone_has_one_share_of_the_unigram_model_everywhere(model, tmp_path):
    scores = model.evaluate(TEST)
    assert list(scores["experts"]) == ["network", "unigram"]
    assert model.explain([1, 2]).weights == {"network": 0.99, "unigram": 0.01}
    model.save_pretrained(tmp_path / "model")
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.mixture_.gate.weights, model.mixture_.gate.weights)
    arrays, facts = load_arrays(tmp_path / "model" / "mixture.safetensors")  # as an older version wrote it
    del arrays["gate"], facts["language_model"]["gate"]
    whole = {"language_model": facts["language_model"]}
    save_arrays(tmp_path / "model" / "mixture.safetensors", arrays, whole | {CHECKSUMS: checksums(arrays, whole)})
    assert WarmStartLM.from_pretrained(tmp_path / "model").perplexity(TEST) == scores["perplexity"]


@pytest.mark.parametrize("prompt", ["\ud800", "sun \udcff", b"sun", None, 3])
def test_a_prompt_that_is_no_text(model, prompt):
    with pytest.raises(InputError, match="prompt: expected"):
        model.generate(prompt)


def test_a_prompt_that_the_tokenizer_cannot_read():
    tokenizer = Tokenizer(models.WordLevel({"sun": 0, "sea": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = WarmStartLM("potato", contexts=COUNTS).fit(Corpus.build(["sun sea sun"] * 9, tokenizer=tokenizer))
    assert model.generate("sun", max_new_tokens=3) is not None
    for call in (model.generate, lambda text: model.score([text]), lambda text: model.partial_fit([text])):
        with pytest.raises(InputError, match=r"expected .* tokenizer .* got: .*; "):
            call("sun moon")


@pytest.mark.parametrize("contexts", [("ngrams",), ("radial",)])
def test_whole_words_follow_a_prompt_after_a_space(corpus, contexts):
    model = WarmStartLM("potato", contexts=contexts).fit(corpus)
    for prompt in ("sun", "sun moon", "sea sun"):
        texts = [model.generate(prompt, max_new_tokens=4, seed=seed) for seed in range(5)]
        assert any(texts)
        assert all(text == "".join(f" {word}" for word in text.split()) for text in texts)
    assert model.generate("", max_new_tokens=3, seed=1)[0] != " "


# Parameters


@pytest.mark.parametrize(
    "parameters",
    [
        {"contexts": ("ngrams",), "smoothing": 3.0, "temperature": 0.5, "vocab_size": 300},
        {"contexts": ("cache", "radial"), "bits": 24, "radius": 2, "block_size": 3, "temperature": 1.5},
        {"contexts": ["ngrams", "document"], "order": 4, "prune": [0, 1]},
        {"prune": (), "order": 1},
        {"contexts": ("radial",), "smoothing": 7.0},
        {},
    ],
)
def test_what_is_loaded_has_its_parameters(corpus, tmp_path, parameters):
    model = WarmStartLM("potato", **parameters).fit(corpus)
    clone(model).fit(corpus)
    model.save_pretrained(tmp_path / "model")
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    assert loaded._recipe() == model._recipe()
    assert loaded.vocab_size == model.vocab_size
    assert clone(loaded).get_params() == loaded.get_params()
    assert files(loaded, tmp_path / "again") == files(model, tmp_path / "first")
    if "prune" not in parameters:
        for either in (loaded, model):
            either.partial_fit(TEST)
        assert files(loaded, tmp_path / "again") == files(model, tmp_path / "first")


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"order": 0}, "order: expected a whole number from 1 to 100, got 0"),
        ({"order": 101}, "got 101"),
        ({"order": True}, "got True"),
        ({"order": 2.0}, r"got 2\.0"),
        ({"order": "5"}, "got '5'"),
        ({"contexts": ("classes",), "order": 1}, "from 2 to 100, got 1"),
        ({"contexts": ()}, "contexts: expected some of ngrams, classes, cache, radial"),
        ({"contexts": "cache"}, "contexts: expected several values, such as a tuple, got 'cache'"),
        ({"contexts": 3}, "contexts: expected several values"),
        ({"prune": 1}, "prune: expected several values"),
        ({"n_jobs": 0}, "n_jobs: expected a whole number other than 0, or None, got 0"),
        ({"n_jobs": 1.5}, "n_jobs: .*got 1.5"),
        ({"n_jobs": "all"}, "n_jobs: .*got 'all'"),
        ({"preset": None}, "preset: expected one of potato, .*, got None"),
        ({"preset": ["large"]}, "preset: expected one of"),
        ({"contexts": ("ngrams", "ngrams")}, "once each"),
        ({"contexts": ("ngrams", "bigrams")}, "bigrams"),
        ({"prune": (0, 2, 1)}, "do not fall"),
        ({"prune": (1,)}, "begin with 0"),
        ({"prune": (0, 1.5)}, "whole numbers"),
        ({"prune": (0,) * 9}, "at most 3"),
        ({"bits": 0, "contexts": ("radial",)}, "bits"),
        ({"bits": 2.5, "contexts": ("radial",)}, "bits"),
        ({"block_size": -1, "contexts": ("radial",)}, "block_size"),
        ({"radius": 10**9, "contexts": ("radial",)}, "radius: expected a whole number from 1 to 65536, got 1000000000"),
    ],
)
def test_bad_parameters_are_refused_before_the_text_is_read(parameters, match):
    def unread():
        raise AssertionError("read")
        yield

    with pytest.raises(InputError, match=match):
        WarmStartLM(**{"preset": "potato", **parameters}).fit(unread())


@pytest.mark.parametrize("contexts", [("ngrams", "cache"), ("radial",)])
@pytest.mark.parametrize("ids", [[-1], [10_000], [0, 99_999], [1.0], [True], ["sun"]])
def test_ids_that_are_none(corpus, contexts, ids):
    model = WarmStartLM("potato", contexts=contexts).fit(corpus)
    with pytest.raises(InputError, match="expected token ids"):
        model.predict_proba(ids)
    with pytest.raises(InputError, match="expected token ids"):
        model.explain(ids)


# Text and explanations


def test_a_mixture_writes_the_chain(mixed):
    words = ("sun " + mixed.generate("sun", max_new_tokens=30, temperature=0.5, seed=0)).split()
    assert len(words) > 5
    assert sum(b in NEXT[a] for a, b in itertools.pairwise(words)) > 0.9 * (len(words) - 1)
    assert mixed.generate("sun", seed=3) == mixed.generate("sun", seed=3)
    assert len({mixed.generate("sun", seed=seed) for seed in range(4)}) > 1
    assert mixed.generate("sun", temperature=0, seed=1) == mixed.generate("sun", temperature=0, seed=2)
    assert mixed.generate(max_new_tokens=0) == ""
    for bad in ({"max_new_tokens": -1}, {"temperature": -1.0}, {"top_p": 0.0}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            mixed.generate("sun", **bad)


def test_explanations(mixed):
    text = "sun moon sun moon sky sun"
    ids = mixed.tokenizer_.encode(text).ids
    explanation = mixed.explain(ids, top=4)
    row = mixed.predict_proba(ids)
    for reason in explanation.reasons:
        assert reason.probability == pytest.approx(row[reason.token], rel=1e-12)
        assert sum(reason.shares.values()) == pytest.approx(1)
        assert sum(share for _, share in reason.ngrams) == pytest.approx(reason.shares["ngrams"])
    assert sum(explanation.weights.values()) == pytest.approx(1)
    shown = described(explanation, ids, mixed.tokenizer_)
    moon = next(entry for entry in shown["tokens"] if entry["token"].startswith("moon"))
    assert moon["probability"] == pytest.approx(row[moon["id"]])
    assert [(place["position"], place["text"]) for place in moon["places"]] == [
        (3, "sun moon sun moon"),
        (1, "sun moon"),
    ]
    assert all(ids[place["position"]] == moon["id"] for place in moon["places"])
    assert moon["ngrams"][0]["text"].endswith("moon")


# Folders


@pytest.mark.parametrize("contexts", [("cache",), ("ngrams",), COUNTS, ALL, ("radial", "document")])
def test_a_folder_gives_the_same_model(corpus, tmp_path, contexts):
    model = WarmStartLM("potato", contexts=contexts, **sizes(contexts)).fit(corpus)
    model.save_pretrained(tmp_path / "model")
    loaded = WarmStartLM.from_pretrained(tmp_path / "model", n_jobs=2)
    one, other = ({**either.evaluate(TEST), "seconds": 0} for either in (model, loaded))
    assert one == other
    np.testing.assert_array_equal(loaded.predict_proba([1, 2, 1]), model.predict_proba([1, 2, 1]))
    assert loaded.generate("sun", seed=1) == model.generate("sun", seed=1)
    assert loaded.report_["tokens"] == model.report_["tokens"]
    assert loaded.explain([1, 2, 1]) == model.explain([1, 2, 1])


@pytest.mark.parametrize("prune", [(0, 0, 1), (0, 2), (0, 10**6)])
def test_a_pruned_model_has_tables_and_no_counts(corpus, tmp_path, prune):
    model = WarmStartLM("potato", contexts=ALL, prune=prune, **SIZES).fit(corpus)
    assert model.report_["prune"] == [*prune, *[prune[-1]] * (3 - len(prune))]
    model.save_pretrained(tmp_path / "model")
    assert kinds(tmp_path / "model") == {"config", "tokenizer", "mixture", "model", "ngrams", "classes"}
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    assert loaded.perplexity(TEST) == pytest.approx(model.perplexity(TEST), rel=1e-6)
    for change in (loaded.partial_fit, loaded.forget):
        with pytest.raises(InputError, match="expected a model with its counts, got a pruned one"):
            change(TEST)
    again = files(loaded, tmp_path / "again")
    assert again == files(WarmStartLM.from_pretrained(tmp_path / "model"), tmp_path / "again")
    loaded.save_pretrained(tmp_path / "again")
    one, other = (WarmStartLM.from_pretrained(tmp_path / name).evaluate(TEST) for name in ("model", "again"))
    assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-7)
    row = loaded.predict_proba([1, 2])
    assert row.sum() == pytest.approx(1, abs=1e-9)
    assert "bigram_perplexity" not in one


def test_the_most_ngrams_of_a_preset(corpus, tmp_path, monkeypatch):
    from warmstart.estimators import language_model

    monkeypatch.setitem(language_model.PRESETS["potato"], "max_ngrams", 60)
    model = WarmStartLM("potato", contexts=("ngrams",)).fit(corpus)
    assert sum(model.report_["ngrams"]) <= 60
    limit = model.report_["prune"][-1]
    one_less = WarmStartLM("potato", contexts=("ngrams",), prune=(0, limit - 1)).fit(corpus)
    assert sum(one_less.report_["ngrams"]) > 60
    model.save_pretrained(tmp_path / "model")
    assert WarmStartLM.from_pretrained(tmp_path / "model").get_params()["prune"] is None
    monkeypatch.setitem(language_model.PRESETS["potato"], "max_ngrams", 9)
    with pytest.raises(InputError, match="room for more than the 10 tokens among 9 n-grams"):
        WarmStartLM("potato", contexts=("ngrams",)).fit(corpus)


def test_a_replaced_model_leaves_no_file(corpus, tmp_path):
    folder = tmp_path / "model"
    for contexts, prune in ((ALL, None), (ALL, (0, 1)), (("cache",), None), (("radial",), None), (("ngrams",), (0, 1))):
        WarmStartLM("potato", contexts=contexts, prune=prune, **sizes(contexts)).fit(corpus).save_pretrained(folder)
        (folder / "notes.txt").write_text("mine")
        there = {"model": "radial" in contexts, "counts": prune is None,
                 "ngrams": prune and "ngrams" in contexts, "classes": prune and "classes" in contexts}  # fmt: skip
        assert kinds(folder) == {"config", "notes", "tokenizer", "mixture", *(name for name in there if there[name])}
        WarmStartLM.from_pretrained(folder)


def test_a_network_can_be_replaced_beside_the_counts(mixed, corpus, tmp_path):
    mixed.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    network = NearShallowLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        network.output.weight.mul_(0.5)
    network.save_pretrained(tmp_path / "model")
    after = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
    assert before.keys() == after.keys()
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    one, other = loaded.evaluate(TEST), mixed.evaluate(TEST)
    assert {name for name in one["experts"] if one["experts"][name] != other["experts"][name]} == {"network"}

    alone = WarmStartLM("potato", contexts=COUNTS).fit(corpus)
    alone.save_pretrained(tmp_path / "counts")
    network.save_pretrained(tmp_path / "counts")
    with pytest.raises(InputError, match="fit the mixture again"):
        WarmStartLM.from_pretrained(tmp_path / "counts")


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """A whole model and a pruned one."""
    parent = tmp_path_factory.mktemp("folders")
    for name, prune in (("whole", None), ("pruned", (0, 1))):
        model = WarmStartLM("potato", contexts=(*COUNTS, "radial"), prune=prune, **SIZES)
        model.fit(Corpus.encode(TRAIN[:6], corpus.tokenizer)).save_pretrained(parent / name)
    return parent


NAMES = [
    ("whole", name) for name in ("config.json", "counts.safetensors", "mixture.safetensors", "model.safetensors",
                                 "tokenizer.json")
] + [("pruned", "ngrams.safetensors"), ("pruned", "classes")]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_damaged_files_are_refused(folders, tmp_path, kind, name):
    """A bit that is not noticed is one that changes nothing."""
    folder = shutil.copytree(folders / kind, tmp_path / "model")
    name = next(folder.glob(f"{name}*")).name
    data, expected = (folder / name).read_bytes(), WarmStartLM.from_pretrained(folder).evaluate(TEST[:1])
    for size in (0, 7, 8, len(data) // 2, len(data) - 2):
        (folder / name).write_bytes(data[:size])
        with pytest.raises(InputError, match=name):
            WarmStartLM.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        WarmStartLM.from_pretrained(folder)
    rng, refused = np.random.default_rng(0), 0
    for bit in rng.integers(0, 8 * len(data), 60).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        try:
            loaded = WarmStartLM.from_pretrained(folder)
        except InputError:
            refused += 1
        else:
            assert {**loaded.evaluate(TEST[:1]), "seconds": expected["seconds"]} == expected, bit
    assert refused > (5 if name == "config.json" else 40)


@pytest.mark.parametrize(("kind", "name"), [entry for entry in NAMES if entry[1] not in ("config.json",)])
def test_files_of_another_model_are_refused(folders, tmp_path, kind, name):
    """The other model has as many tokens, with other ids."""
    texts = [text.replace("sun", "sea").replace("fog", "mud") for text in TRAIN[:4]]
    corpus = Corpus.build([*texts, "mud mud"], tokenizer="words")
    prune = (0, 1) if kind == "pruned" else None
    other = WarmStartLM("potato", contexts=(*COUNTS, "document"), prune=prune, **SIZES).fit(corpus)
    other.save_pretrained(tmp_path / "other")
    folder = shutil.copytree(folders / kind, tmp_path / "model")
    name = next(folder.glob(f"{name}*")).name
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(InputError, match="|".join((name, "tokenizer.json", "counts.safetensors"))):
        WarmStartLM.from_pretrained(folder)


def test_folders_of_older_versions_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders / "whole", tmp_path / "model")
    arrays, facts = load_arrays(folder / "mixture.safetensors")
    facts["language_model"]["format"] = 0
    save_arrays(folder / "mixture.safetensors", arrays, facts | {CHECKSUMS: checksums(arrays, facts)})
    with pytest.raises(InputError, match="language model of format 1"):
        WarmStartLM.from_pretrained(folder)
    (folder / "mixture.safetensors").unlink()
    with pytest.raises(InputError, match=r"mixture.safetensors: expected the file, got none; .* older version"):
        WarmStartLM.from_pretrained(folder)
    config = (folder / "config.json").read_text().replace('"format_version": 1', '"format_version": 0')
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match="format_version 1, got 0"):
        WarmStartLM.from_pretrained(folder)


# Tiny texts


@pytest.mark.parametrize(
    "texts",
    [
        ["once upon a time there was a text of one document"],
        ["a", "b", "a", "c"],
        ["a b c d e f g h i j"],
        ["a a a a a a a a a a a a a a a"],
        ["same same"] * 9,
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "words"])
@pytest.mark.parametrize("preset", ["small", "potato"])
def test_tiny_texts(tmp_path, texts, kind, preset):
    corpus = Corpus.build(texts, tokenizer=kind)
    model = WarmStartLM(preset, contexts=ALL, bits=32).fit(corpus)
    scores = model.evaluate(texts)
    assert np.isfinite([scores["perplexity"], *scores["experts"].values(), *scores["shares"].values()]).all()
    assert 1 <= scores["perplexity"] <= 100 * scores["unigram_perplexity"]
    for ids in ([], [0], [1] * 9):
        row = model.predict_proba(ids)
        assert row.min() > 0
        assert row.sum() == pytest.approx(1, abs=1e-9)
    model.save_pretrained(tmp_path / "model")
    assert WarmStartLM.from_pretrained(tmp_path / "model").perplexity(texts) == scores["perplexity"]


def test_a_text_of_one_token():
    with pytest.raises(InputError, match="give more text"):
        WarmStartLM(contexts=ALL, bits=32).fit(["a"])
    model = WarmStartLM(contexts=COUNTS).fit(["a"])
    assert np.isfinite(model.perplexity(["a", "b a"]))


# The contract of scikit-learn


def test_a_loaded_model_fits_again_to_the_same_shape(corpus, tmp_path):
    """Sizes that a preset leaves to another version of itself are those of the model."""
    own = {"bits": 24, "hidden_bits": 12, "radius": 2, "block_size": 3}
    model = WarmStartLM("potato", contexts=("radial", "block"), **own).fit(corpus)
    assert model.model_.config.hidden_bits == 12
    model.save_pretrained(tmp_path / "model")
    loaded = WarmStartLM.from_pretrained(tmp_path / "model", n_jobs=2)
    assert {name: loaded.get_params()[name] for name in own} == own
    assert (loaded.n_jobs, WarmStartLM.from_pretrained(tmp_path / "model").n_jobs) == (2, None)
    again = clone(loaded).fit(corpus)
    assert again.model_.config == model.model_.config
    assert all(np.array_equal(again.model_.arrays[name], array) for name, array in model.model_.arrays.items())


def test_a_grid_prefers_what_predicts_new_text(corpus):
    grid = GridSearchCV(WarmStartLM("potato", vocab_size=300), {"contexts": [("cache",), ("ngrams", "cache")]}, cv=2)
    grid.fit(TRAIN[:12])
    assert grid.best_params_["contexts"] == ("ngrams", "cache")
    assert grid.score(TEST) == -grid.best_estimator_.evaluate(TEST)["bits_per_byte"]
    scores = cross_val_score(WarmStartLM("potato", contexts=("ngrams",), vocab_size=300), np.array(TRAIN[:6]), cv=2)
    assert (scores < 0).all()


def test_a_pickle_is_the_model(mixed):
    same = pickle.loads(pickle.dumps(mixed))  # noqa: S301
    assert same.score(TEST) == mixed.score(TEST)
    assert same.generate("sun", seed=1) == mixed.generate("sun", seed=1)
    same.partial_fit(TEST)
    assert same.counts_.n_tokens > mixed.counts_.n_tokens


@pytest.mark.parametrize("kind", ["mixed", "model"])
def test_several_documents_give_several_rows(request, kind):
    model = request.getfixturevalue(kind)
    ragged = [[1, 2, 3], [4], []]
    rows = np.stack([model.predict_proba(ids) for ids in ragged])
    np.testing.assert_array_equal(model.predict_proba(ragged), rows)
    for same in (np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]), [np.array([1, 2]), torch.tensor([3, 4])]):
        np.testing.assert_array_equal(model.predict_proba(same), model.predict_proba([[1, 2], [3, 4]]))
    for same in ((1, 2), np.array([1, 2], np.uint16), torch.tensor([1, 2]), [np.int32(1), torch.tensor(2)]):
        np.testing.assert_array_equal(model.predict_proba(same), model.predict_proba([1, 2]))
    for bad in (5, np.array(5), [[1], 2], [[1.0]], "sun"):
        with pytest.raises(InputError, match="expected token ids"):
            model.predict_proba(bad)
    assert model.predict_proba(np.zeros((0, 3), int)).shape == (0, rows.shape[1])
    with pytest.raises(InputError, match=r"expected token ids \(n,\), got an array of shape \(1, 1\)"):
        model.predict_proba(np.ones((1, 1, 1), int))
    if kind == "mixed":
        with pytest.raises(InputError, match="expected token ids"):
            model.explain([[1, 2], [3, 4]])
        with pytest.raises(InputError, match="top: expected a whole number of at least 0, got -1"):
            model.explain([1, 2], top=-1)


def test_seeds_of_any_whole_type(mixed, corpus):
    network, ids = mixed.to_torch(), torch.tensor([[1, 2]])
    assert mixed.generate("sun", seed=np.int64(3)) == mixed.generate("sun", seed=3)
    assert torch.equal(network.generate(ids, 9, seed=np.int64(3)), network.generate(ids, 9, seed=3))
    starts = (partial(mixed.generate, "sun"), partial(network.generate, ids), partial(clone(mixed).initialise, corpus))
    for start, seed in itertools.product(starts, (-1, 2**63, 0.5, None, "a")):
        with pytest.raises(InputError, match="seed: expected a whole number from 0 to 9223372036854775807, got"):
            start(seed=seed)


def test_generate_has_one_signature():
    kinds = (WarmStartLM, NearShallowLM, MixtureLM)
    one, *others = ([*inspect.signature(kind.generate).parameters.values()][2:] for kind in kinds)
    for other in others:
        assert [(p.name, p.kind, p.default) for p in one] == [(p.name, p.kind, p.default) for p in other]


def test_checks_of_scikit_learn_that_need_no_numbers():
    for check in (check_no_attributes_set_in_init, check_parameters_default_constructible, check_estimator_cloneable,
                  check_do_not_raise_errors_in_init_or_set_params):  # fmt: skip
        check("WarmStartLM", WarmStartLM())
    with pytest.warns(SkipTestWarning, match="Can't test estimator WarmStartLM which requires input"):
        check_estimator(WarmStartLM())


# A network saved to a folder of its own


@pytest.mark.parametrize("start", ["folder", "estimator"])
def test_a_network_in_a_new_folder_is_a_model(mixed, corpus, tmp_path, start):
    mixed.save_pretrained(tmp_path / "model")
    network = mixed.to_torch() if start == "estimator" else NearShallowLM.from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with torch.no_grad():
        network.output.weight.mul_(0.5)
    copy.deepcopy(network).save_pretrained(tmp_path / "new")
    assert kinds(tmp_path / "new") == {"config", "model", "mixture", "tokenizer"}
    loaded = WarmStartLM.from_pretrained(tmp_path / "new")
    assert loaded.get_params()["contexts"] == ("radial", "document")
    ids = loaded.tokenizer_.encode("sun moon").ids
    with torch.no_grad():
        row = torch.softmax(network(torch.tensor([[corpus.separator, *ids]]))[0, -1], dim=0).numpy()
    np.testing.assert_allclose(loaded.predict_proba(ids), row, atol=0.011)  # the unigram model may have 1 %
    refitted = clone(loaded).fit(corpus)
    assert refitted.model_.config == network.config
    NearShallowLM.from_pretrained(tmp_path / "new").save_pretrained(tmp_path / "newer")
    (tmp_path / "text.txt").write_text(TEST[0])
    for command, words in (
        ("generate", []),
        ("explain", ["--prompt", "sun"]),
        ("eval", [tmp_path / "text.txt", "--json"]),
    ):
        result = CliRunner().invoke(app, [command, str(tmp_path / "newer"), *map(str, words)])
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["perplexity"] == pytest.approx(loaded.evaluate([TEST[0]])["perplexity"])


def test_a_network_beside_what_is_no_model_is_refused(mixed, tmp_path):
    mixed.save_pretrained(tmp_path / "model")
    tokenizer, mixture = (tmp_path / "model" / name for name in ("tokenizer.json", "mixture.safetensors"))
    content = tokenizer.read_bytes()
    tokenizer.write_bytes(content + b" ")
    with pytest.raises(InputError, match=r"tokenizer.json: expected the tokenizer of the model, got another one"):
        NearShallowLM.from_pretrained(tmp_path / "model")
    tokenizer.unlink()
    tokenizer.mkdir()
    with pytest.raises(InputError, match=r"tokenizer.json: expected the tokenizer of the model, got: "):
        NearShallowLM.from_pretrained(tmp_path / "model")
    tokenizer.rmdir()
    tokenizer.write_bytes(content)
    mixture.write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"mixture.safetensors: expected a language model of format 1"):
        NearShallowLM.from_pretrained(tmp_path / "model")
