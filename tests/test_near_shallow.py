import numpy as np
import pytest
from reference import language_model_parts
from scipy.special import log_softmax

from bitcipher import CapacityError
from warmstart import contexts
from warmstart.errors import InputError
from warmstart.near_shallow import PRESETS, Config, Fitter, Report, token_losses
from warmstart.solution import class_prior

V = 25  # 24 words and the separator, 24
SMALL = {"vocab_size": V, "separator": V - 1, "bits": 8, "hidden_bits": 6, "radius": 2, "block_size": 4}


class Corpus:
    """Documents of a Markov chain: what leads where is known, the separator included."""

    def __init__(self, n_tokens, mean_length=40, seed=0):
        words = np.random.default_rng(7).dirichlet(np.full(V - 1, 0.1), V) * (1 - 1 / mean_length)
        self.P = np.column_stack([words, np.full(V, 1 / mean_length)])  # (V, V)
        tokens, ladder = [V - 1], self.P.cumsum(axis=1)
        for u in np.random.default_rng(seed).random(n_tokens - 1):
            tokens.append(min(int(np.searchsorted(ladder[tokens[-1]], u)), V - 1))
        self.tokens = np.array([*tokens, V - 1], dtype=np.uint16)
        self.documents = np.flatnonzero(self.tokens == V - 1)
        self.counts = np.bincount(self.tokens[1:], minlength=V)

    def true_perplexity(self):
        return np.exp(-np.log(self.P[self.tokens[:-1], self.tokens[1:]]).mean())


@pytest.fixture(scope="module")
def train():
    return Corpus(20_000)


@pytest.fixture(scope="module")
def short():
    return Corpus(3_000)


@pytest.fixture(scope="module")
def test():
    return Corpus(6_000, seed=1)


def fitted(corpus, **options):
    shape = {name: options.pop(name) for name in list(options) if name in Config.__dataclass_fields__}
    config = Config(**SMALL | {"contexts": ("radial", "block", "document")} | shape)
    fitter = Fitter(corpus.tokens, corpus.documents, corpus.counts, config, **options)
    return fitter.fit(), fitter


def losses(model, corpus, prior, chunk_size=1000):
    """Return -log P (1 + contexts, n) of every target."""
    state, config = model.start(), model.config
    chunks = contexts.read_all(corpus.tokens, corpus.documents, config.window, chunk_size)
    return np.concatenate([token_losses(model, chunk, state, prior) for chunk in chunks], axis=1)


def perplexity(model, train, test):
    return np.exp(losses(model, test, class_prior(train.counts))[0].mean())


# Configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("bits", -1),
        ("bits", 8.0),
        ("hidden_bits", "8"),
        ("radius", 0),
        ("block_size", True),
        ("separator", V),
        ("separator", -1),
        ("contexts", ()),
        ("contexts", ("radial", "radial")),
        ("contexts", ("radial", "cache")),
    ],
)
def test_wrong_shapes_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"{field}: expected"):
        Config(**SMALL | {field: value})


def test_contexts_have_one_order():
    assert Config(**SMALL, contexts=("document", "radial")) == Config(**SMALL, contexts=("radial", "document"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("names", [("radial",), ("document",), contexts.CONTEXTS])
def test_shapes_add_up(preset, names):
    config = Config(vocab_size=9000, separator=0, contexts=names, **PRESETS[preset])
    assert config.shapes["output.weight"] == (sum(width for _, width in config.groups), 9000)
    assert config.window >= max(config.attention_size(name) for name in names)
    assert config.n_parameters == sum(a * b for a, b in config.shapes.values())


def test_arrays_have_the_shapes_of_the_configuration(short):
    model, _ = fitted(short, contexts=contexts.CONTEXTS)
    assert {name: array.shape for name, array in model.arrays.items()} == model.config.shapes
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in model.arrays.values())


# What it learns


def test_one_hot_bits_reach_the_true_perplexity(train, test):
    model, fitter = fitted(train, bits=V, radius=1, contexts=("radial",))
    fitted_perplexity, true = perplexity(model, train, test), test.true_perplexity()
    unigram = np.exp(-np.log(class_prior(train.counts))[test.tokens[1:]].mean())
    assert true < fitted_perplexity < 1.03 * true
    assert fitted_perplexity < 0.6 * unigram
    assert fitter.report.temperatures["output"] == pytest.approx([1.0], abs=0.1)


def test_more_contexts_and_longer_ones_do_not_hurt(train, test):
    plain, _ = fitted(train, radius=1, contexts=("radial",))
    mark = perplexity(plain, train, test)
    for options in (
        {"radius": 4, "contexts": ("radial",)},
        {"radius": 1, "contexts": ("radial", "document")},
        {"radius": 1, "contexts": ("radial", "block")},
        {"radius": 3, "contexts": contexts.CONTEXTS},
    ):
        assert perplexity(fitted(train, **options)[0], train, test) < 1.01 * mark, options


def test_attention_of_a_chain_looks_at_the_newest_token(train):
    model, fitter = fitted(train, contexts=("block",))
    (chunk,) = contexts.read_all(train.tokens, train.documents, 4)
    _, A = model.attended("block", chunk)
    assert (A.mean(axis=0).argmax(), A.shape[1]) == (0, 4)
    assert min(fitter.report.attention_losses["block"]) < fitter.report.attention_losses["block"][0]


def test_what_ends_at_a_bound_of_its_search_is_reported():
    """Tokens at random: there is nothing to learn from the tokens before."""
    tokens = np.random.default_rng(0).integers(1, 9, 3000)
    tokens[[0, -1]] = 0
    config = Config(9, 0, bits=9, hidden_bits=4, radius=1, block_size=3, contexts=("radial", "block"))
    fitter = Fitter(tokens, np.array([0, 2999]), np.bincount(tokens[1:], minlength=9), config)
    fitter.fit()
    report = fitter.report
    assert report.bounds.keys() <= {"block attention", *report.temperatures}
    assert "temperature 0 of group 1" in report.bounds["output"]
    for layer, taus in report.temperatures.items():
        expected = [f"smoothing {report.smoothing[layer]:g}"] if report.smoothing[layer] in (1.0, 10_000.0) else []
        expected += [f"temperature 0 of group {g}" for g, tau in enumerate(taus, 1) if tau == 0]
        assert report.bounds.get(layer, []) == expected
    fitter.smoothing, fitter.temperature, fitter.report = 3.0, 1.0, Report()
    fitter.fit()
    assert fitter.report.bounds.keys() <= {"block attention"}


def test_numbers_for_smoothing_and_temperature_are_kept(short):
    model, fitter = fitted(short, smoothing=3.0, temperature=1)
    assert set(fitter.report.smoothing.values()) == {3.0}
    assert fitter.report.temperatures == {"block values": [1], "document values": [1], "output": [1, 1, 1, 1]}
    assert all(np.isfinite(array).all() for array in model.arrays.values())


# The same numbers, another way


def test_losses_are_those_of_dense_logits():
    corpus = Corpus(600)
    model, _ = fitted(corpus, contexts=contexts.CONTEXTS)
    config, prior = model.config, class_prior(corpus.counts)
    parts = language_model_parts(config, model.arrays, corpus.tokens[:-1])
    logits = [sum(parts.values())]
    for name, z in parts.items():
        groups = [context for context, _ in config.groups].count(name)
        logits.append(z + (1 - groups / len(config.groups)) * np.log(prior))
    y = corpus.tokens[1:]
    expected = [-log_softmax(z, axis=1)[np.arange(y.size), y] for z in logits]
    np.testing.assert_allclose(losses(model, corpus, prior), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def reference(train):
    model, fitter = fitted(train)
    return model, fitter.report


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("chunk_size", [1000, 4097, 65_536])
def test_same_bytes_for_any_chunk_size_and_workers(train, reference, chunk_size, workers):
    model, fitter = fitted(train, chunk_size=chunk_size, workers=workers)
    expected, report = reference
    assert {name: array.tobytes() for name, array in model.arrays.items()} == {
        name: array.tobytes() for name, array in expected.arrays.items()
    }
    assert (fitter.report.smoothing, fitter.report.temperatures) == (report.smoothing, report.temperatures)


@pytest.mark.parametrize(("chunk_size", "workers"), [(1, 1), (1000, 2), (65_536, 1), (65_536, 3)])
def test_same_scores_for_any_chunk_size_and_workers(reference, chunk_size, workers):
    model, corpus = reference[0], Corpus(600, seed=2)
    prior, state = class_prior(corpus.counts), model.start()
    chunks = contexts.read_all(corpus.tokens, corpus.documents, model.config.window, chunk_size)
    scored = np.concatenate([token_losses(model, chunk, state, prior, workers) for chunk in chunks], axis=1)
    np.testing.assert_allclose(scored, losses(model, corpus, prior), rtol=1e-5)


def test_progress_covers_every_stage(short):
    reported = []
    fitted(short, progress=lambda *step: reported.append(step), chunk_size=5000)
    n = short.tokens.size - 1
    for stage in ("values", "output"):
        assert [step[1:] for step in reported if step[0] == stage][-1] == (n, n)
    assert {stage for stage, *_ in reported} == {
        "attention of block",
        "values",
        "solving block values",
        "solving document values",
        "output",
        "solving output",
    }


# What it refuses


@pytest.mark.parametrize("field", ["bits", "hidden_bits"])
def test_too_few_bits(short, field):
    with pytest.raises(CapacityError, match="bits >= 5, got bits=4"):
        fitted(short, **{field: 4})


def test_hidden_bits_do_not_matter_without_a_value_layer(short):
    assert fitted(short, hidden_bits=1, contexts=("radial",))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [(Corpus(4), "more tokens than the context of 4"), (Corpus(1000, mean_length=1.5), "256 full windows of 4 tokens")],
)
def test_too_short_a_corpus(corpus, message):
    with pytest.raises(InputError, match=message):
        fitted(corpus)
