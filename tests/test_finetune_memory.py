"""Training with the memory context: documents in order, memories from batch to batch, runs that resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import LETTERS, config, finish, read, run_of, texts

from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Batches, Log, Phase, Schedule, Settings, carried
from warmstart.finetune import batches as batches_module
from warmstart.finetune.carried import Carried, score
from warmstart.finetune.job import Job, Plan
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import IGNORED

ALL = ("radial", "attended", "block", "document", "memory")
NAMES = [(ALL, 3), (("radial", "memory"), 2), (("radial", "document", "memory"), 1), (("memory",), 1)]


def words(n, seed):
    return " ".join(LETTERS[i] for i in np.random.default_rng(seed).integers(0, 16, n))


def sized(*sizes):
    """Return documents of so many words; each has one token more, its separator."""
    return [words(n, seed) for seed, n in enumerate(sizes)]


TEXTS = {
    "one document": sized(333),
    "two long ones": sized(150, 161),
    "awkward sizes": sized(7, 8, 1, 6, 15, 16, 17, 0, 40, 3, 0, 100, 23, 24, 1, 7),
    "one segment each": sized(*range(8)),
    "single tokens": sized(0, 0, 1, 0),
    "chains": texts(60),
}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 9)  # 8 for blocks of 4
    monkeypatch.setattr(carried, "PIECE", 20)


@pytest.fixture(scope="module", params=TEXTS)
def corpus(request, tmp_path_factory):
    return Corpus.build(TEXTS[request.param], tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


def module_of(corpus, contexts=ALL, radius=3):
    torch.manual_seed(0)
    module = NearShallowLM(config(corpus, contexts, radius=radius))
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return module


def whole(module, corpus):
    """Return the loss of every target, from whole documents."""
    ids, out = torch.from_numpy(np.asarray(corpus.tokens, dtype=np.int64)), []
    for start, stop in zip(corpus.documents[:-1].tolist(), corpus.documents[1:].tolist(), strict=True):
        out.append(-module.target_log_probs(ids[None, start:stop], ids[None, start + 1 : stop + 1])[0])
    return torch.cat(out)


# Order


def test_an_epoch_holds_every_segment_once_and_documents_in_order(corpus):
    batches = Batches(corpus, config(corpus, ALL), batch_tokens=40, seed=1)
    document, start, length = batches.table
    for order in (batches.order(0), batches.order(1), batches.in_order()):
        assert sorted(np.concatenate(order).tolist()) == list(range(document.size))
        before, entered = set(), 0
        for batch in order:
            assert batch.size * length[batch].max() <= 40
            if all(np.sum(document == document[number]) == 1 for number in batch):
                continue  # nothing goes on from here
            entered += sum(start[n] > document[n] and n - 1 not in before for n in batch)
            before = set(batch.tolist())
        assert entered < 40 // 8  # only where a run begins
    again = Batches(corpus, config(corpus, ALL), batch_tokens=40, seed=1)
    assert [b.tolist() for b in again.order(1)] == [b.tolist() for b in batches.order(1)]


def test_documents_and_batches_are_shuffled(tmp_path):
    corpus = Corpus.build(TEXTS["chains"], tokenizer="words", cache_dir=tmp_path)
    batches = Batches(corpus, config(corpus, ALL), batch_tokens=40)
    first, second, scored = ([b.tolist() for b in o] for o in (batches.order(0), batches.order(1), batches.in_order()))
    assert first != second
    assert first != scored
    assert batches.padded_share(batches.order(0)) < 0.2


# Losses


@pytest.mark.parametrize(("contexts", "radius"), NAMES)
@pytest.mark.parametrize("frozen", [False, True])
def test_batches_in_order_score_as_whole_documents_do(corpus, contexts, radius, frozen):
    module = module_of(corpus, contexts, radius)
    module.embedding.weight.requires_grad_(not frozen)
    expected = whole(module, corpus).detach()
    for batch_tokens in (8, 40, 4000):
        batches = Batches(corpus, module.config, batch_tokens)
        for order in (batches.order(0), batches.in_order(), batches.in_order()[::3]):
            places = []
            for batch, segments, losses in score(module, batches, order):
                places.append(batches.targets(batch))
                assert (segments.targets != IGNORED).sum() == len(losses)
                torch.testing.assert_close(losses, expected[places[-1]], rtol=0, atol=1e-4)
            if len(order) == len(batches.in_order()):
                assert sorted(np.concatenate(places).tolist()) == list(range(corpus.n_tokens))


def test_the_text_before_a_run_is_read_once(tmp_path, monkeypatch):
    corpus = Corpus.build(TEXTS["one document"], tokenizer="words", cache_dir=tmp_path)
    module = module_of(corpus, ("memory",), 1)
    batches, read_tokens, remember = Batches(corpus, module.config, 40), [], module.remember
    monkeypatch.setattr(module, "remember", lambda ids, *more: read_tokens.append(ids.numel()) or remember(ids, *more))
    memories = Carried(module, batches).before(batches.in_order()[0])
    assert sum(read_tokens) == batches.table[1, batches.in_order()[0][-1]]
    assert memories.shape == (5, 6, 8)
    assert not memories[0].any()


def test_gradients_are_those_of_the_whole_document(tmp_path):
    corpus = Corpus.build(sized(7), tokenizer="words", cache_dir=tmp_path)
    module = module_of(corpus, ("radial", "memory"), 2)
    batches = Batches(corpus, module.config, 8)
    found, expected = (
        torch.autograd.grad(losses.sum(), list(module.parameters()))
        for losses in (module.token_losses(batches.segments(np.array([0]))), whole(module, corpus))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_segment_without_its_memory_is_refused(tmp_path):
    corpus = Corpus.build(TEXTS["one document"], tokenizer="words", cache_dir=tmp_path)
    module = module_of(corpus)
    segments = Batches(corpus, module.config, 40).segments(np.array([0, 1]))
    with pytest.raises(InputError, match="expected the memory of documents that began earlier, got none"):
        module.token_losses(segments)


# Runs


PHASES = [
    Phase("warm"),
    Phase("frozen", {"middle": 0.02, "output": 0.02}, tokens=300, decay="constant"),
    Phase("thaw", {"embedding": 0.01, "middle": 0.02, "output": 0.02}, patience=3),
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    documents = [" ".join(texts(20, seed)) for seed in range(4)] + texts(20, seed=9)
    return Corpus.build(documents, tokenizer="words", cache_dir=tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def valid(train, tmp_path_factory):
    documents = [" ".join(texts(20, seed=5)), *texts(5, seed=6)]
    return Corpus.encode(documents, train.tokenizer, cache_dir=tmp_path_factory.mktemp("valid"))


def options(train, max_tokens=None, every=130):
    module = NearShallowLM(config(train, ("radial", "document", "memory"), radius=2))
    settings = Settings(max_tokens or int(1.5 * train.n_tokens), every)
    return {"module": module, "schedule": Schedule(PHASES), "settings": settings, "batch_tokens": 48}


def test_it_learns_and_the_labels_stay(train, valid, tmp_path):
    torch.manual_seed(0)
    made = options(train, 3 * train.n_tokens, 1000)
    labels = made["module"].contexts["memory"].labels.weight.clone()
    before = whole(made["module"], valid).mean().item()
    _, record = finish(tmp_path, train, valid, **made)
    log = read(tmp_path / "log.jsonl")
    assert log[0]["nats"] == pytest.approx(before, abs=1e-5)
    assert record["nats"] < before - 0.5
    assert record["nats"] == pytest.approx(whole(made["module"], valid).mean().item(), abs=1e-5)
    assert torch.equal(made["module"].contexts["memory"].labels.weight, labels)
    assert list(made["module"].state_dict()) == list(made["module"].to_model().config.shapes)


def test_stopped_at_any_step_it_ends_in_the_same_bits(train, valid, tmp_path):
    def made():
        torch.manual_seed(0)
        return options(train)

    borders, seen = [], []
    run = run_of(tmp_path / "watched", train, valid, **made())
    step = run._train

    def watched(phase):
        seen.append((run.epoch, run.batch, run.offset))
        step(phase)
        if run.offset or run.batch == len(run.order):
            borders.append(run.step)

    run._train = watched
    run.run(Log(tmp_path / "watched" / "log.jsonl"))
    ends = [i for i, place in enumerate(seen) if i and place[0] != seen[i - 1][0]]
    assert len(ends) == 1
    middle = [s for s in borders if s not in ends]
    assert len(middle) > 5
    expected, record = finish(tmp_path / "whole", train, valid, **made())
    for stop in {*ends, ends[0] + 1, 1, *np.random.default_rng(3).choice(middle, 3, replace=False).tolist(), 9, 30}:
        folder = tmp_path / f"at{stop}"
        run = run_of(folder, train, valid, **made())
        step = run._train

        def interrupted(phase, run=run, step=step, stop=stop):
            step(phase)
            run.stopped = run.step == stop

        run._train = interrupted
        with pytest.raises(KeyboardInterrupt):
            run.run(Log(folder / "log.jsonl"))
        found, again = finish(folder, train, valid, resume=True, **made())
        assert found == expected
        assert {**again, "seconds": 0} == {**record, "seconds": 0}


def test_every_step_of_a_batch_begins_with_the_same_memory(train, valid, tmp_path):
    run = run_of(tmp_path, train, valid, **options(train, 1000, 17))
    losses, places = run.network.token_losses, {}

    def watched(segments):
        if segments.memory is not None:
            places.setdefault((run.epoch, run.batch), []).append(segments.memory)
        return losses(segments)

    run.network.token_losses = watched
    run.scored = run.scored[:0]
    run._validate = lambda log: None
    run.run(Log(tmp_path / "log.jsonl"))
    assert max(map(len, places.values())) > 2
    assert all(torch.equal(memory, of_batch[0]) for of_batch in places.values() for memory in of_batch)


def test_a_part_of_the_validation_text_has_the_losses_of_the_whole(train, valid, tmp_path):
    made = options(train)
    run = run_of(tmp_path, train, valid, **{**made, "settings": replace(made["settings"], valid_tokens=200)})
    expected, n = whole(run.network, valid).detach(), 0
    assert 1 < len(run.scored) < len(run.valid.in_order()) / 2
    for batch, _, losses in score(run.network, run.valid, run.scored):
        torch.testing.assert_close(losses, expected[run.valid.targets(batch)], rtol=0, atol=1e-5)
        n += len(losses)
    run._validate(Log(tmp_path / "log.jsonl"))
    places = np.concatenate([run.valid.targets(batch) for batch in run.scored])
    assert len(places) == n
    assert run.record["nats"] == pytest.approx(expected[places].mean().item(), abs=1e-5)


@pytest.mark.parametrize("contexts", [("radial", "memory"), ("ngrams", "cache", "radial", "document", "memory")])
def test_the_job_trains_it_alone_and_in_a_mixture(train, valid, tmp_path, contexts):
    model = WarmStartLM("potato", contexts=contexts, order=3, prune=(0,)).fit(train)
    result = Job(model, tmp_path / "run", Plan(max_tokens=9000, batch_tokens=128, rate=0.3)).run(train, valid)
    log = read(tmp_path / "run" / "log.jsonl")
    assert result["nats"] < log[0]["nats"]
    trained = WarmStartLM.from_pretrained(tmp_path / "run")
    old, new = (m.model_.arrays for m in (model, trained))
    assert np.array_equal(old["contexts.memory.labels.weight"], new["contexts.memory.labels.weight"])
    assert not np.array_equal(old["embedding.weight"], new["embedding.weight"])
    assert log[-1]["network_nats"] < log[0]["network_nats"]
    scores = trained.mixture_.score(valid.tokens, valid.documents)
    assert scores.experts["network"] == pytest.approx(log[-1]["network_nats"], abs=1e-4)
    if "ngrams" in contexts:
        assert -scores.log_probs.mean() <= result["gate"]["nats_before"] + 1e-5
        assert result["gate"]["nats_before"] == pytest.approx(result["nats"], abs=1e-5)
    else:
        assert log[-1]["network_nats"] == pytest.approx(whole(trained.to_torch(), valid).mean().item(), abs=1e-4)
        assert result["nats"] == pytest.approx(-scores.log_probs.mean(), abs=1e-4)


def test_vectors_that_diverge_stop_the_run(train, valid, tmp_path):
    schedule = Schedule([Phase("fine", {"output": 0.01}, tokens=1000), Phase("mad", {"embedding": 1e38}, warmup=0)])
    with pytest.raises(InputError, match=r"step \d+: expected a finite .*mad.*step \d+ is kept in"):
        finish(tmp_path, train, valid, **{**options(train, 3000, 500), "schedule": schedule})
