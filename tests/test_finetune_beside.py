"""A network that trains beside counts: what the experts say, the loss, runs that resume, the refitted gate."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_finetune import config, texts

from warmstart import WarmStartLM, ngrams
from warmstart.backoff import BackoffModel
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Batches, Log, Phase, Run, Schedule, Settings, evidence, named_schedule, targets
from warmstart.finetune import batches as batches_module
from warmstart.finetune.beside import Beside, nats, refit, without_network
from warmstart.finetune.compare import compare
from warmstart.finetune.evidence import expert_table
from warmstart.finetune.job import Job, Plan
from warmstart.finetune.log import KEYS, read
from warmstart.finetune.phases import BESIDE_GROUPS
from warmstart.gate import FLOOR, Gate
from warmstart.kneser_ney import KneserNey
from warmstart.layers import NearShallowLM
from warmstart.mixture import Experts, Mixture
from warmstart.near_shallow import Config
from warmstart.ngrams import count_ngrams
from warmstart.sample import fit_mixture
from warmstart.solution import class_prior

PHASES = [
    Phase("warm"),
    Phase("frozen", {"middle": 0.02, "output": 0.02}, tokens=700, decay="constant"),
    Phase("thaw", {"embedding": 0.01, "middle": 0.02, "output": 0.02, "gate": 0.05}, patience=3),
]
SETTINGS = Settings(max_tokens=6000, validate_every=500)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(300), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def valid(corpus, tmp_path_factory):
    return Corpus.encode(texts(30, seed=1), corpus.tokenizer, cache_dir=tmp_path_factory.mktemp("valid"))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 32)


def count(corpus):
    return count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, 3)


@pytest.fixture(scope="module")
def counts(corpus):
    return count(corpus)


@pytest.fixture(scope="module")
def mixture(corpus, counts):
    """Return n-grams, caches, a random network with a fifth of the weight, and the unigram model."""
    experts = Experts(corpus.separator, class_prior(np.asarray(corpus.counts)), KneserNey(counts), cache=True)
    gate = fit_mixture(experts, counts)[0].gate
    weights = np.insert(0.8 * gate.weights, -1, 0.2, axis=1)
    weights[:, -1] = FLOOR
    weights[:, :-1] *= (1 - FLOOR) / weights[:, :-1].sum(axis=1, keepdims=True)
    torch.manual_seed(0)
    network = NearShallowLM(config(corpus)).to_model()
    return Mixture(replace(experts, network=network), Gate(gate.sizes, weights))


# What the experts say


def test_counted_documents_are_left_out_and_others_are_new_text(corpus, counts, mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "TARGETS", 100)  # many chunks of a few documents
    old = [
        corpus.tokenizer.decode(corpus.tokens[a + 1 : b])
        for a, b in zip(corpus.documents[:40], corpus.documents[1:41], strict=True)
    ]
    new = texts(40, seed=7)
    mixed = Corpus.encode(
        [text for pair in zip(old, new, strict=True) for text in pair], corpus.tokenizer, cache_dir=tmp_path
    )
    counted = counts.documents.known(mixed.tokens, mixed.documents)
    assert counted[::2].all()
    assert counted.sum() < 60  # some of the new ones are short and were counted too
    table = expert_table(mixture.experts, mixed, counts)
    assert (table.left_out, table.new) == (counted.sum(), 80 - counted.sum())
    model = mixture.experts.ngrams
    for i in range(80):
        start, stop = mixed.documents[i : i + 2]
        text, borders = mixed.tokens[start : stop + 1], np.array([0, stop - start])
        expected = (model.left_out if counted[i] else model.score)(text, borders).probs
        np.testing.assert_allclose(table.probs[start:stop, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(table.probs[:, -1], mixture.experts.prior[mixed.tokens[1:]], rtol=1e-6)


def test_new_text_is_scored_as_the_mixture_does(valid, mixture):
    table = expert_table(mixture.experts, valid)
    assert table.left_out == 0
    ((_, said),) = mixture.experts.scan(valid.tokens)
    np.testing.assert_array_equal(table.probs, said.probs.astype(np.float32))
    np.testing.assert_array_equal(table.buckets, mixture.gate.index(said.features))


def test_a_table_is_computed_once_for_its_corpus_and_statistic(corpus, counts, mixture, tmp_path, monkeypatch):
    keys = {expert_table(mixture.experts, corpus, counts, folder=tmp_path).key}
    keys.add(expert_table(mixture.experts, corpus, folder=tmp_path).key)
    fewer = counts - count(Corpus.encode(texts(300)[:1], corpus.tokenizer, cache_dir=tmp_path / "cache"))
    keys.add(expert_table(replace(mixture.experts, ngrams=KneserNey(fewer)), corpus, fewer, folder=tmp_path).key)
    keys.add(expert_table(replace(mixture.experts, cache=False), corpus, counts, folder=tmp_path).key)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted(
        f"experts-{k}.safetensors" for k in keys
    )
    assert len(keys) == 4

    def computed(*arguments):
        raise AssertionError

    monkeypatch.setattr(evidence, "_scan", computed)
    again = expert_table(mixture.experts, corpus, counts, folder=tmp_path)
    path = tmp_path / f"experts-{again.key}.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected the content that was written, got other bytes"):
        expert_table(mixture.experts, corpus, counts, folder=tmp_path)
    path.write_bytes(content[:-5])
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        expert_table(mixture.experts, corpus, counts, folder=tmp_path)


def test_counted_text_that_is_cut_otherwise_is_refused(corpus, counts, mixture, tmp_path, monkeypatch):
    """It would be scored by counts that include it."""
    monkeypatch.setattr(ngrams, "CHUNK", 100)  # many chunks
    monkeypatch.setattr(ngrams, "QUOTED", 12)
    whole = [corpus.tokenizer.decode(corpus.tokens[a + 1 : b]) for a, b in pairwise(corpus.documents.tolist())]
    joined = [" ".join(whole[i : i + 3]) for i in range(0, len(whole), 3)]
    other = Corpus.encode(joined, corpus.tokenizer, cache_dir=tmp_path)
    here = counts.documents.quoted(other.tokens, other.documents)
    text = " ".join(map(str, counts.documents.tokens.tolist()))  # neighbours here are not neighbours there
    middles = [(a + 1 + (b - a - 1 - ngrams.QUOTED) // 2, b - a - 1) for a, b in pairwise(other.documents.tolist())]
    for i, (first, length) in enumerate(middles):
        run = " ".join(map(str, other.tokens[first : first + ngrams.QUOTED].tolist()))
        assert here[i] == (length >= ngrams.QUOTED and f" {run} " in f" {text} ")
    halves = [half for words in map(str.split, whole) for half in (words[: len(words) // 2], words[len(words) // 2 :])]
    other = Corpus.encode([" ".join(half) for half in halves if half], corpus.tokenizer, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"got \d+ that are counted text with other borders.*--split-documents"):
        expert_table(mixture.experts, other, counts, folder=tmp_path)
    assert not list(tmp_path.glob("experts-*"))


def test_an_interrupted_table_leaves_nothing(corpus, counts, mixture, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expert_table(mixture.experts, corpus, counts, folder=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())


def test_tables_without_counts_are_refused(corpus, counts, mixture, tmp_path):
    mixture.experts.ngrams.save(tmp_path / "tables")
    loaded = replace(mixture.experts, ngrams=BackoffModel.load(tmp_path / "tables"))
    with pytest.raises(InputError, match="expected experts that were solved from counts, got tables alone"):
        expert_table(loaded, corpus, counts, folder=tmp_path)
    assert expert_table(loaded, corpus, folder=tmp_path).new == corpus.n_documents  # as new text they can be scored


# The loss


def test_the_mixture_of_the_module_is_that_of_the_gate():
    rng = np.random.default_rng(0)
    weights = 0.95 * rng.dirichlet(np.ones(4), 6) + [0.0, 0.0, 0.02, 0.03]
    weights[0] = [0.5, 0.0, 0.5 - FLOOR, FLOOR]
    module = Beside(NearShallowLM(Config(20, 0, bits=8)), Gate((2, 3), weights))
    np.testing.assert_allclose(module.gate.to_model().weights, weights, atol=1e-6)
    probs, buckets = rng.random((50, 4)), rng.integers(0, 6, 50)
    losses = module.mixed(
        *(torch.from_numpy(x) for x in (-np.log(probs[:, -2]), np.delete(probs, -2, axis=1), buckets))
    )
    np.testing.assert_allclose(losses.detach().numpy(), -np.log((weights[buckets] * probs).sum(axis=1)), atol=1e-6)
    unused = Beside(module.network, Gate((1,), np.array([[0.9, 0.0, 0.1]]))).gate.to_model().weights
    np.testing.assert_allclose(unused, [[0.9, 0.001, 0.1]], atol=2e-3)
    assert unused[0, 1] == pytest.approx(0.001, rel=0.02)
    with torch.no_grad():
        module.gate.logits[:, -1] = -1e9
    assert module.gate.to_model().weights[:, -1].min() == pytest.approx(FLOOR)


def test_the_gate_without_the_network_has_the_others_in_proportion():
    gate = without_network(Gate((1,), np.array([[0.5, 0.2, 0.3]])))
    np.testing.assert_allclose(gate.weights, [[0.625, 0.375]])


# Runs


def run_of(folder, corpus, valid, counts, mixture, *, resume=False, schedule=None, settings=SETTINGS):
    folder.mkdir(exist_ok=True)
    module = Beside(NearShallowLM.from_model(mixture.experts.network), mixture.gate)
    batches = Batches(corpus, module.config, 128, experts=expert_table(mixture.experts, corpus, counts))
    schedule = schedule or Schedule(PHASES, BESIDE_GROUPS)
    return Run(module, batches, valid, schedule, settings, folder, resume, expert_table(mixture.experts, valid))


def finish(folder, *arguments, **options):
    run = run_of(folder, *arguments, **options)
    record = run.run(Log(folder / "log.jsonl", run.step if run.resumed else -1))
    return {n: w.detach().numpy().tobytes() for n, w in run.module.named_parameters()}, record, run


@pytest.mark.usefixtures("short")
def test_it_starts_as_the_mixture_and_both_parts_learn(corpus, valid, counts, mixture, tmp_path):
    _, record, run = finish(tmp_path, corpus, valid, counts, mixture)
    log = read(tmp_path / "log.jsonl")
    assert tuple(log[0]) == (*KEYS, "network_nats", "counts_nats")
    scores = mixture.score(valid.tokens, valid.documents)
    assert log[0]["nats"] == pytest.approx(-scores.log_probs.mean(), abs=1e-5)
    assert log[0]["network_nats"] == pytest.approx(scores.experts["network"], abs=1e-4)
    alone = Mixture(replace(mixture.experts, network=None), without_network(mixture.gate))
    expected = -alone.score(valid.tokens, valid.documents).log_probs.mean()
    assert {r["counts_nats"] for r in log} == {log[0]["counts_nats"]}
    assert log[0]["counts_nats"] == pytest.approx(expected, abs=1e-6)
    assert record["nats"] < log[0]["nats"] - 0.05
    assert record["network_nats"] < log[0]["network_nats"] - 0.5
    assert compare([tmp_path])[0]["end"] == log[-1]["nats"]
    trained = Mixture(replace(mixture.experts, network=run.network.to_model()), run.module.gate.to_model())
    expected = -trained.score(valid.tokens, valid.documents).log_probs.mean()
    assert record["nats"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("short")
def test_interrupted_at_random_steps_it_ends_in_the_same_bits(corpus, valid, counts, mixture, tmp_path):
    arguments = corpus, valid, counts, mixture
    expected, record, _ = finish(tmp_path / "whole", *arguments)
    for stop in np.random.default_rng(5).choice(np.arange(1, record["step"]), 3, replace=False):
        folder = tmp_path / f"at{stop}"
        run = run_of(folder, *arguments)
        train = run._train

        def interrupted(phase, run=run, train=train, stop=stop):
            train(phase)
            run.stopped = run.step == stop

        run._train = interrupted
        with pytest.raises(KeyboardInterrupt):
            run.run(Log(folder / "log.jsonl"))
        found, again, _ = finish(folder, *arguments, resume=True)
        assert found == expected
        assert {**again, "seconds": 0} == {**record, "seconds": 0}
        whole, resumed = (read(tmp_path / name / "log.jsonl") for name in ("whole", folder.name))
        assert [{**r, "seconds": 0} for r in whole] == [{**r, "seconds": 0} for r in resumed]


@pytest.mark.usefixtures("short")
def test_a_checkpoint_of_other_counts_is_refused(corpus, valid, counts, mixture, tmp_path):
    settings = Settings(500, 500)
    finish(tmp_path, corpus, valid, counts, mixture, settings=settings)
    other = replace(mixture, experts=replace(mixture.experts, prior=np.full(corpus.vocab_size, 1 / corpus.vocab_size)))
    with pytest.raises(InputError, match="another experts: "):
        run_of(tmp_path, corpus, valid, counts, other, settings=settings, resume=True)


@pytest.mark.usefixtures("short")
def test_after_patience_the_scores_are_those_of_the_best_weights(corpus, valid, counts, mixture, tmp_path):
    wild = Phase("wild", {"output": 1.0, "gate": 1.0}, patience=2, decay="constant", warmup=0)
    _, record, _ = finish(tmp_path, corpus, valid, counts, mixture, schedule=Schedule([wild], BESIDE_GROUPS))
    log = read(tmp_path / "log.jsonl")
    best = min(log[:-2], key=lambda r: r["nats"])
    assert {name: record[name] for name in ("nats", "network_nats")} == {n: best[n] for n in ("nats", "network_nats")}
    assert log[-1]["tokens"] < 6000


def test_the_gate_trains_in_the_named_phases(corpus, mixture):
    module = Beside(NearShallowLM(config(corpus)), mixture.gate)
    schedule = named_schedule(["frozen", "thaw", "all"], 1000, groups=BESIDE_GROUPS)
    assert all("gate" in phase.rates for phase in schedule.phases)
    parameters = schedule.parameters(module)
    assert {group: len(members) for group, members in parameters.items()} == {
        "embedding": 1, "middle": 5, "output": 1, "gate": 1,
    }  # fmt: skip
    assert Schedule.from_json([{"name": "x", "rates": {"gate": 1}}], BESIDE_GROUPS).groups == BESIDE_GROUPS


# The gate at the end


def sample(rng, n, right):
    """Return probabilities by two experts and a weak unigram model; the first is right in a share of the targets."""
    first = rng.random(n) < right
    return np.where(first[:, None], [0.8, 0.05, 0.01], [0.05, 0.8, 0.01])


def test_a_gate_that_leans_too_far_is_refitted():
    rng = np.random.default_rng(0)
    buckets = rng.integers(0, 6, 4000)
    probs = np.where((buckets % 3 == 0)[:, None], sample(rng, 4000, 0.9), sample(rng, 4000, 0.6))
    leaning = Gate((2, 3), np.tile([0.1, 0.89, 0.01], (6, 1)))
    result = refit(leaning, probs[:2000], buckets[:2000])
    assert not result.kept
    assert result.before == pytest.approx(nats(leaning, probs[:2000], buckets[:2000]))
    assert result.after < result.before - 0.1
    assert result.after == pytest.approx(nats(result.gate, probs[2000:], buckets[2000:]), abs=0.05)
    assert result.report()["weights"] == "refitted on the validation text"


def test_a_good_gate_is_kept_where_there_is_little_text():
    rng = np.random.default_rng(1)
    good = Gate((50,), np.tile([0.7, 0.29, 0.01], (50, 1)))
    result = refit(good, sample(rng, 8, 0.7), rng.integers(0, 50, 8))
    assert result.kept
    assert result.gate is good
    assert result.after >= result.before


# The job


def fitted(corpus, contexts, **options):
    return WarmStartLM("potato", contexts=contexts, order=3, prune=(0,), **options).fit(corpus)


@pytest.mark.usefixtures("short")
def test_the_job_returns_the_trained_network_in_the_mixture(corpus, valid, tmp_path):
    model = fitted(corpus, ("ngrams", "classes", "cache", "radial", "document"))
    job = Job(model, tmp_path / "run", Plan(max_tokens=9000, batch_tokens=128, rate=0.3))
    result = job.run(corpus, valid)
    assert result["documents"] == {"left_out": corpus.n_documents, "new": 0}
    assert result["gate"]["nats_before"] == pytest.approx(result["nats"], abs=1e-5)
    log = read(tmp_path / "run" / "log.jsonl")
    scores = model.mixture_.score(valid.tokens, valid.documents)
    assert log[0]["nats"] == pytest.approx(-scores.log_probs.mean(), abs=1.1e-3)
    trained = WarmStartLM.from_pretrained(tmp_path / "run")
    assert not np.array_equal(trained.model_.arrays["output.weight"], model.model_.arrays["output.weight"])
    found = -trained.mixture_.score(valid.tokens, valid.documents).log_probs.mean()
    assert found <= result["gate"]["nats_before"] + 1e-5
    assert found == pytest.approx(result["gate"]["nats_before"], abs=0.05)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("contexts", "order"), [(("ngrams", "radial"), 3), (("cache", "radial"), 5), (("radial", "document"), 5)], ids=str
)
def test_counted_targets_know_what_the_model_knows_and_new_text(corpus, tmp_path, contexts, order, monkeypatch):
    model = fitted(corpus, contexts)
    text = Corpus.encode([*texts(40), *texts(40, seed=2)], corpus.tokenizer, cache_dir=tmp_path)
    seen, left_out = [], targets.left_out
    monkeypatch.setattr(
        targets, "left_out", lambda *given, **more: (seen.append(given[0]), left_out(*given, **more))[1]
    )
    phase = {"name": "soft", "rates": {"output": 0.02}, "counted": 0.7}
    plan = Plan(json.dumps([phase]), max_tokens=400, batch_tokens=128)
    Job(model, tmp_path / "run", plan).run(text, corpus)
    (statistic,) = seen
    assert statistic.order == order
    if "ngrams" in contexts:
        assert statistic.n_tokens > corpus.n_tokens
        assert (statistic - model.counts_).n_tokens < text.n_tokens  # without the documents that were known
    else:
        assert statistic.n_tokens == text.n_tokens  # a network alone knows pairs


def test_models_that_cannot_train_beside_counts_are_refused(corpus, valid, tmp_path):
    plan = Plan(max_tokens=500, batch_tokens=512)
    with pytest.raises(InputError, match="a network, got ngrams, unigram, of which nothing trains"):
        Job(fitted(corpus, ("ngrams",)), tmp_path / "run", plan).run(corpus, valid)
    model = fitted(corpus, ("ngrams", "radial"))
    model.counts_ = None
    with pytest.raises(InputError, match="expected a model with its counts"):
        Job(model, tmp_path / "run", plan).run(corpus, valid)
    assert not (tmp_path / "run").exists()
