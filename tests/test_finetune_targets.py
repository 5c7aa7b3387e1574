"""Counted targets: rows from the other half of the text, their loss, and runs that train on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import config, finish, run_of, texts

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Batches, Log, Phase, Schedule
from warmstart.finetune import batches as batches_module
from warmstart.finetune.log import read
from warmstart.finetune.targets import CountedTargets, halves
from warmstart.kneser_ney import KneserNey, parts
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import IGNORED
from warmstart.ngrams import count_ngrams


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(300), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def valid(corpus, tmp_path_factory):
    return Corpus.encode(texts(30, seed=1), corpus.tokenizer, cache_dir=tmp_path_factory.mktemp("valid"))


def other_half(corpus, half, order):
    """Return the model of the targets that are not in a half, by way of text that is put together anew."""
    tokens, documents = [corpus.separator], [0]
    for part in parts(corpus.documents, corpus.n_tokens):
        if half[part.start - 1] == 0:
            continue
        tokens += corpus.tokens[part].tolist()
        tokens += [corpus.separator] * (tokens[-1] != corpus.separator)
        documents.append(len(tokens) - 1)
    return KneserNey(count_ngrams(np.array(tokens), np.array(documents), corpus.vocab_size, order))


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("documents", [300, 1], ids=["documents", "one document"])
def test_rows_come_from_the_half_without_the_target(tmp_path, order, documents):
    text = texts(300) if documents > 1 else [" ".join(texts(40))]
    corpus = Corpus.build(text, tokenizer="words", cache_dir=tmp_path)
    targets = CountedTargets(corpus, order)
    sizes = np.bincount(targets.half, minlength=2)
    assert abs(sizes[0] - sizes[1]) <= max(part.stop - part.start for part in parts(corpus.documents, corpus.n_tokens))
    places = np.random.default_rng(0).permutation(corpus.n_tokens)[:200]
    rows = targets.rows(places).numpy()
    models = [other_half(corpus, targets.half, order), other_half(corpus, 1 - targets.half, order)]
    for place, row in zip(places, rows, strict=True):
        history = corpus.tokens[: place + 1]
        np.testing.assert_allclose(row, models[targets.half[place]].row(history), rtol=2e-6)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=1e-5)


def test_a_part_is_in_one_half(corpus):
    targets = CountedTargets(corpus)
    for part in parts(corpus.documents, corpus.n_tokens):
        assert len(set(targets.half[part.start - 1 : part.stop - 1].tolist())) == 1


@pytest.mark.parametrize(("sizes", "expected"), [([5], [0]), ([1, 1, 1], [0, 1, 0]), ([1, 9, 1, 1], [0, 1, 0, 0])])
def test_halves_are_balanced(sizes, expected):
    assert halves(sizes).tolist() == expected


def test_the_smallest_text_has_two_halves(corpus, tmp_path):
    small = Corpus.encode(["a"], corpus.tokenizer, cache_dir=tmp_path)
    targets = CountedTargets(small)
    assert (small.n_tokens, targets.half.tolist()) == (2, [0, 1])
    torch.testing.assert_close(targets.rows(np.array([0, 1])).sum(1), torch.ones(2))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_of_rows_is_that_of_torch(corpus, frozen):
    module = NearShallowLM(config(corpus)).double()
    module.embedding.weight.requires_grad_(not frozen)
    batches = Batches(corpus, module.config, batch_tokens=512)
    numbers = batches.order(0)[0]
    segments = batches.segments(numbers)
    segments = segments._replace(counts=segments.counts.double())
    rows = CountedTargets(corpus).rows(batches.targets(numbers)).double()
    network, of_rows = module.row_losses(segments, rows.clone())
    mask = segments.targets != IGNORED
    log_q = module.output(module._segment_features(segments)[mask]).log_softmax(-1)
    torch.testing.assert_close(network, -log_q.gather(1, segments.targets[mask][:, None])[:, 0])
    torch.testing.assert_close(of_rows, -(rows * log_q).sum(1))
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(-(rows * log_q).sum(), trained, retain_graph=True)
    for a, b in zip(torch.autograd.grad(of_rows.sum(), trained), expected, strict=True):
        torch.testing.assert_close(a, b)


PHASES = [
    Phase("frozen", {"output": 0.02}, tokens=700, counted=0.8),
    Phase("thaw", {"embedding": 0.01, "output": 0.02}),
]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 32)


@pytest.mark.usefixtures("short")
def test_a_step_mixes_both_losses_and_the_weight_falls(corpus, valid, tmp_path, monkeypatch):
    run = run_of(tmp_path, corpus, valid, schedule=Schedule(PHASES))
    weights, losses = [], run._losses

    def watched(numbers, segments, counted):
        found = losses(numbers, segments, counted)
        with torch.no_grad():
            rows = run.counted.rows(run.batches.targets(numbers, (segments.targets != IGNORED).numpy()))
            network, of_rows = run.network.row_losses(segments, rows)
        torch.testing.assert_close(found.detach(), (1 - counted) * network + counted * of_rows)
        weights.append((run.tokens, counted))
        return found

    monkeypatch.setattr(run, "_losses", watched)
    run.run(Log(tmp_path / "log.jsonl"))
    for tokens, weight in weights:
        assert weight == pytest.approx(0.8 * (1 - tokens / 700) if tokens < 700 else 0.0)
    assert sum(weight > 0 for _, weight in weights) > 5


@pytest.mark.usefixtures("short")
def test_counted_targets_help_a_short_run_and_resume_to_the_bit(corpus, valid, tmp_path):
    phase = Phase("thaw", {"embedding": 0.01, "middle": 0.02, "output": 0.02}, counted=1.0)
    expected, _ = finish(tmp_path / "whole", corpus, valid, schedule=Schedule([phase]))
    finish(tmp_path / "plain", corpus, valid, schedule=Schedule([replace(phase, counted=0.0)]))
    counted, plain = (read(tmp_path / name / "log.jsonl")[1]["nats"] for name in ("whole", "plain"))
    assert counted < plain
    run = run_of(tmp_path / "cut", corpus, valid, schedule=Schedule([phase]))
    train = run._train

    def interrupted(phase):
        train(phase)
        run.stopped = run.step == 7

    run._train = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.run(Log(tmp_path / "cut" / "log.jsonl"))
    found, _ = finish(tmp_path / "cut", corpus, valid, schedule=Schedule([phase]), resume=True)
    assert found == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": {"output": 1}, "counted": 1.5}, "counted: expected a share"),
        ({"rates": {"output": 1}, "counted": True}, "counted: expected a share"),
        ({"counted": 0.5}, "no counted targets where nothing trains"),
    ],
)
def test_weights_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Schedule.from_json([{"name": "x", **fields}, {"name": "y", "rates": {"output": 1}}])
