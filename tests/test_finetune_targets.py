"""Counted targets: rows and losses by places, runs that train on them, and the loss of a Trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import config, finish, run_of, texts
from torch.nn import functional

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Batches, Log, Phase, Schedule
from warmstart.finetune import batches as batches_module
from warmstart.finetune.log import read
from warmstart.finetune.targets import CountedLoss, CountedTargets, statistic_of
from warmstart.kneser_ney import KneserNey
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import IGNORED
from warmstart.ngrams import count_ngrams, joined


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(300), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def valid(corpus, tmp_path_factory):
    return Corpus.encode(texts(30, seed=1), corpus.tokenizer, cache_dir=tmp_path_factory.mktemp("valid"))


@pytest.fixture(scope="module")
def targets(corpus):
    return CountedTargets(statistic_of(corpus, None), corpus)


def test_rows_know_the_rest_of_the_text_only(corpus, targets):
    places = np.random.default_rng(0).permutation(corpus.n_tokens)[:300]
    dense = targets.rows(places).dense()
    said = KneserNey(statistic_of(corpus, None)).left_out(corpus.tokens, corpus.documents).probs[places]
    np.testing.assert_allclose(dense[np.arange(300), corpus.tokens[places + 1]], said, rtol=1e-6)


def test_settings_reach_the_rows(corpus):
    some = CountedTargets(statistic_of(corpus, None), corpus, order=2, top=2, temperature=1.5, workers=2)
    places = np.arange(50)
    found = some.rows(places)
    assert np.diff(found.offsets).max() == 2
    np.testing.assert_array_equal(found.dense(), some.table.rows(places, 2, 1.5).dense())
    assert len(some.table.discounts) == 2
    for options in ({"top": -1}, {"temperature": 0}):
        with pytest.raises(InputError, match="top, temperature: expected a whole number"):
            CountedTargets(statistic_of(corpus, None), corpus, **options)


def windows(n=4, length=9):
    """Places of windows that begin with the first separator, which is no target; two others do not count."""
    places = torch.arange(-1, n * length - 1).view(n, length)
    places[0, 0] = IGNORED
    places[2, 3:5] = IGNORED
    return places


def test_places_are_tokens(corpus, targets):
    places = windows()
    tokens, here = targets.tokens(places), places >= 0
    assert tokens[here].tolist() == corpus.tokens[places[here].numpy() + 1].tolist()
    assert (tokens[~here] == IGNORED).all()
    for wrong in (corpus.n_tokens, -1, -99):
        with pytest.raises(InputError, match="expected places"):
            targets.tokens(torch.tensor([0, wrong]))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_loss_of_windows_predicts_the_next_place(corpus, targets, weight):
    places = windows()
    logits = torch.randn(*places.shape, corpus.vocab_size, requires_grad=True)
    loss = targets.loss(logits, places, weight)
    losses = []
    for row, of_row in zip(logits, places.tolist(), strict=True):
        for log_q, place in zip(row.log_softmax(-1), of_row[1:], strict=False):
            if place != IGNORED:
                P = torch.from_numpy(targets.rows([place]).dense()[0])
                losses.append(-(1 - weight) * log_q[int(corpus.tokens[place + 1])] - weight * (P * log_q).sum())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(InputError, match="labels of the shape of the windows"):
        targets.loss(logits, places[:, 1:], weight)


def test_the_loss_of_a_trainer(corpus, targets):
    places = windows()
    logits = torch.randn(*places.shape, corpus.vocab_size, requires_grad=True)
    loss = CountedLoss(targets)
    assert loss.weight == 0.0
    loss.weight = 0.6
    mean, n = targets.loss(logits, places, 0.6), int((places[:, 1:] != IGNORED).sum())
    torch.testing.assert_close(loss({"logits": logits}, places), mean)
    torch.testing.assert_close(loss({"logits": logits}, places, 2 * n), mean / 2)
    torch.testing.assert_close(loss({"logits": logits}, places, torch.tensor(n)), mean)


def test_evaluation_is_the_plain_loss_of_tokens(corpus, targets):
    labels = torch.from_numpy(corpus.tokens[:36].astype(np.int64)).view(4, 9)
    labels[1, 2] = IGNORED
    logits = torch.randn(4, 9, corpus.vocab_size)
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = CountedLoss(targets, weight=0.6)
    with torch.no_grad():
        torch.testing.assert_close(loss({"logits": logits}, labels), expected)
        labels[1, 2] = corpus.vocab_size
        with pytest.raises(InputError, match=r"labels in evaluation, which are token ids, from 0 to"):
            loss({"logits": logits}, labels)


def test_a_statistic_that_knows_a_part_of_the_text_is_completed(corpus, valid):
    def counted(text, borders):
        return count_ngrams(text, borders, corpus.vocab_size, 3, vocabulary=corpus.tokenizer.get_vocab())

    counts = [counted(text.tokens, text.documents) for text in (corpus, valid)]
    assert statistic_of(corpus, counts[0]) is counts[0]
    known, held = ({tuple(text.tolist()) for text in each.documents.all()} for each in counts)
    new = joined(map(np.array, held - known), corpus.separator, corpus.vocab_size)
    assert 0 < len(held - known) < len(held)  # the text has some short documents twice
    found = statistic_of(valid, counts[0])
    assert found.documents.includes(counts[1].documents)
    assert found.digest == (counts[0] + counted(*new)).digest


@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_of_rows_is_that_of_torch(corpus, frozen):
    module = NearShallowLM(config(corpus)).double()
    module.embedding.weight.requires_grad_(not frozen)
    batches = Batches(corpus, module.config, batch_tokens=512)
    numbers = batches.order(0)[0]
    segments = batches.segments(numbers)
    segments = segments._replace(counts=segments.counts.double())
    rows = CountedTargets(statistic_of(corpus, None), corpus).rows(batches.targets(numbers))
    rows = torch.from_numpy(rows.dense()).double()
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
            network, of_rows = run.network.row_losses(segments, torch.from_numpy(rows.dense()))
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
