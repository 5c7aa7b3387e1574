"""Fine-tuning: batches, losses of segments, phases, runs that resume to the same bits, logs."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Batches, Clock, Log, Phase, Run, Schedule, Settings, apply, named_schedule
from warmstart.finetune import batches as batches_module
from warmstart.finetune.log import KEYS, read
from warmstart.layers import NearShallowLM, SoftmaxLayer, comparisons
from warmstart.layers.near_shallow import IGNORED
from warmstart.near_shallow import Config

LETTERS = "abcdefghijklmnop"
CONTEXTS = ("radial", "attended", "block", "document")


def texts(n, seed=0):
    """Return documents of 1 to 60 words, drawn from a chain."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(n):
        words = [int(rng.integers(16))]
        while rng.random() < 0.95 and len(words) < 60:
            words.append((words[-1] * 5 + int(rng.integers(3))) % 16)
        documents.append(" ".join(LETTERS[word] for word in words))
    return documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(300), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def valid(corpus, tmp_path_factory):
    return Corpus.encode(texts(30, seed=1), corpus.tokenizer, cache_dir=tmp_path_factory.mktemp("valid"))


def config(corpus, contexts=CONTEXTS, block_size=4, radius=3):
    return Config(corpus.vocab_size, corpus.separator, 8, 6, radius, block_size, contexts)


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 9)  # 8 for blocks of 4


def losses_by_position(module, corpus, batches):
    """Return the loss of every target by its position in the corpus."""
    losses = np.full(corpus.n_tokens + 1, np.nan)
    for batch in batches.order(0):
        segments = batches.segments(batch)
        of_batch = module.token_losses(segments).detach().numpy()
        first = 0
        for row, number in enumerate(batch):
            _, start, length = batches.table[:, number]
            assert int((segments.targets[row] != IGNORED).sum()) == length
            losses[start + 1 : start + 1 + length] = of_batch[first : first + length]
            first += length
    return losses


# Batches


@pytest.mark.usefixtures("short_segments")
def test_an_epoch_holds_every_target_once_and_little_padding(corpus):
    batches = Batches(corpus, config(corpus), batch_tokens=64)
    assert batches.length == 8
    order = batches.order(3)
    assert sorted(np.concatenate(order).tolist()) == list(range(batches.table.shape[1]))
    assert batches.table[2].sum() == corpus.n_tokens
    assert all(batches.table[2][b].max() * b.size <= 64 for b in order)
    shuffled = np.random.default_rng(0).permutation(batches.table.shape[1])
    without = batches.padded_share(np.array_split(shuffled, len(order)))
    assert batches.padded_share(order) < 0.05 < 0.1 < without
    assert [b.tolist() for b in batches.order(3)] == [b.tolist() for b in order]
    assert [b.tolist() for b in batches.order(4)] != [b.tolist() for b in order]


def test_segments_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 2)
    corpus = Corpus.build(["a b a b a", "b"], tokenizer="words", cache_dir=tmp_path)
    a, b, end = (corpus.tokenizer.token_to_id(token) for token in ("a", "b", "<|endoftext|>"))
    batches = Batches(corpus, Config(corpus.vocab_size, end, 4, 3, radius=3, block_size=2), batch_tokens=2)
    assert batches.table.tolist() == [[0, 0, 0, 6], [0, 2, 4, 6], [2, 2, 2, 2]]
    third = batches.segments(np.array([2]))
    assert third.ids.tolist() == [[a, b][::-1] if corpus.tokens[4] == b else [a, b]]
    assert third.targets.tolist() == [[a, end]]
    assert third.history.tolist() == [[b, a]]
    assert third.position.tolist() == [4]
    assert third.counts[0].nonzero().flatten().tolist() == sorted([a, b, end])


# Losses of segments are those of whole documents


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("contexts", [CONTEXTS, ("radial",), ("attended",), ("block",), ("document",)], ids="-".join)
@pytest.mark.parametrize("frozen", [False, True])
def test_segments_score_as_whole_documents_do(corpus, contexts, frozen):
    module = NearShallowLM(config(corpus, contexts))
    torch.manual_seed(0)
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    module.embedding.weight.requires_grad_(not frozen)
    found = losses_by_position(module, corpus, Batches(corpus, module.config, batch_tokens=64))
    assert (module.comparisons is None) == (not frozen or not {"attended", "block"} & set(contexts))
    ids = torch.from_numpy(np.asarray(corpus.tokens, dtype=np.int64))
    with torch.no_grad():
        logits = module(ids[None, :-1])[0].double()
    expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["table", "popcount", "bounded"])
def test_cached_comparisons_change_nothing(corpus, monkeypatch, kind):
    monkeypatch.setattr(comparisons, "TABLE_TOKENS", {"table": 4096, "popcount": 0, "bounded": 5}[kind])
    model = WarmStartLM(bits=8, block_size=4, radius=3, contexts=CONTEXTS, temperature=1, smoothing=1.0).fit(corpus)
    module = model.to_torch()
    if kind == "bounded":
        with torch.no_grad():
            module.embedding.weight.add_(0.01)
    batches = Batches(corpus, module.config, batch_tokens=512)
    batch = batches.segments(batches.order(0)[0])
    uncached = module.token_losses(batch)
    gradients = torch.autograd.grad(
        uncached.sum(), [p for n, p in module.named_parameters() if n != "embedding.weight"]
    )
    assert module.comparisons is None
    module.embedding.weight.requires_grad_(False)
    cached = module.token_losses(batch)
    assert module.comparisons.kind == kind
    torch.testing.assert_close(cached, uncached, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(cached.sum(), [p for p in module.parameters() if p.requires_grad])
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    module.embedding.weight.requires_grad_(True)
    module.token_losses(batch)
    assert module.comparisons is None


def test_the_fused_cross_entropy_is_that_of_torch():
    layer = SoftmaxLayer.from_weights(np.random.default_rng(0).normal(size=(5, 7)))
    layer.double()
    x = torch.randn(150, 5, dtype=torch.float64, requires_grad=True)
    y = torch.arange(150) % 7
    scale = torch.rand(150, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(layer(x), y, reduction="none")
    torch.testing.assert_close(layer.cross_entropy(x, y), expected)
    a = torch.autograd.grad((expected * scale).sum(), [x, layer.weight])
    b = torch.autograd.grad((layer.cross_entropy(x, y) * scale).sum(), [x, layer.weight])
    torch.testing.assert_close(a, b)
    (partly,) = torch.autograd.grad((layer.cross_entropy(x, y, fixed=2) * scale).sum(), [x])
    torch.testing.assert_close(partly[:, 2:], a[0][:, 2:])
    assert not partly[:, :2].any()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer.float().cross_entropy(x.float(), y)
    torch.testing.assert_close(rounded.double(), expected, rtol=0.05, atol=0.05)


# Phases


def module_of(corpus):
    torch.manual_seed(0)
    return NearShallowLM(config(corpus))


def test_a_phase_decides_what_trains_and_how_fast(corpus):
    module = module_of(corpus)
    schedule = Schedule(
        [Phase("a", {"output": 0.5}, tokens=10, decay="constant", warmup=0), Phase("b", {"embedding": 0.1})]
    )
    optimizer = schedule.optimizer(module)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters()))
    apply(schedule.phases[0], optimizer, 0.5)
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["output.weight"]
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "embedding": 0,
        "middle": 0,
        "output": 0.5,
    }
    apply(schedule.phases[1], optimizer, 1.0)
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["embedding.weight"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": {"output": -1}}, "positive learning rates"),
        ({"rates": {"output": math.nan}}, "positive learning rates"),
        ({"rates": {"output": 1}, "decay": "steps"}, "decay: expected one of"),
        ({"rates": {"output": 1}, "tokens": 5, "epochs": 1}, "tokens or epochs, got both"),
        ({"rates": {"output": 1}, "warmup": 2}, "warmup: expected a share"),
        ({"rates": {"output": 1}, "patience": 0}, "patience: expected a positive number"),
        ({"tokens": 5}, "no length and no counted targets where nothing trains"),
        ({"rates": {"head": 1}}, "expected rates for the groups"),
        ({"speed": 3}, "fields of Phase"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Schedule.from_json([{"name": "x", **fields}])


def test_parameters_without_a_group_are_named(corpus):
    with pytest.raises(InputError, match=r"matches the parameter contexts\.attended"):
        Schedule([Phase("x", {"embedding": 1.0})], groups={"embedding": ["embedding.*"]}).parameters(module_of(corpus))
    with pytest.raises(InputError, match="expected parameters in head"):
        Schedule([Phase("x", {"head": 1.0})], groups={"head": ["lm_head.*"], "rest": ["*"]}).parameters(
            module_of(corpus)
        )


# Runs


PHASES = [
    Phase("warm"),
    Phase("frozen", {"middle": 0.02, "output": 0.02}, tokens=700, decay="constant"),
    Phase("thaw", {"embedding": 0.01, "middle": 0.02, "output": 0.02}, patience=3),
]
SETTINGS = Settings(max_tokens=6000, validate_every=500)


def run_of(
    folder, corpus, valid, *, resume=False, schedule=None, settings=SETTINGS, seed=0, module=None, batch_tokens=128
):
    folder.mkdir(exist_ok=True)
    module = module or module_of(corpus)
    batches = Batches(corpus, module.config, batch_tokens, seed)
    return Run(module, batches, valid, schedule or Schedule(PHASES), settings, folder, resume)


def finish(folder, corpus, valid, **options):
    run = run_of(folder, corpus, valid, **options)
    record = run.run(Log(folder / "log.jsonl", run.step if run.resumed else -1))
    return {n: w.detach().numpy().tobytes() for n, w in run.module.named_parameters()}, record


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(batches_module, "SEGMENT", 32)


@pytest.mark.usefixtures("short")
def test_the_log_has_the_same_token_counts_in_any_order(corpus, valid, tmp_path):
    logs = []
    for seed in (0, 1):
        finish(tmp_path / str(seed), corpus, valid, seed=seed)
        logs.append(read(tmp_path / str(seed) / "log.jsonl"))
    assert [r["tokens"] for r in logs[0]] == [r["tokens"] for r in logs[1]] == list(range(0, 6001, 500))
    assert logs[0][0]["nats"] == logs[1][0]["nats"]
    assert logs[0][-1]["nats"] != logs[1][-1]["nats"]
    assert all(tuple(record) == KEYS for record in logs[0])
    assert [r["phase"] for r in logs[0]] == ["warm", "frozen", *["thaw"] * 11]
    assert logs[0][-1]["nats"] < logs[0][0]["nats"] - 0.5
    bits = logs[0][-1]["nats"] / math.log(2) * valid.n_tokens / valid.n_bytes
    assert logs[0][-1]["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.usefixtures("short")
def test_batches_that_are_cut_train_every_target_once(corpus, valid, tmp_path):
    run = run_of(tmp_path, corpus, valid, settings=Settings(3 * corpus.n_tokens // 2, 100), batch_tokens=256)
    run.run(Log(tmp_path / "log.jsonl"))
    done = sum(int(run.batches.table[2][batch].sum()) for batch in run.batches.order(1)[: run.batch])
    assert (run.epoch, done + run.offset) == (1, run.tokens - corpus.n_tokens)
    assert 0 <= run.offset < 256


@pytest.mark.usefixtures("short")
def test_interrupted_at_random_steps_it_ends_in_the_same_bits(corpus, valid, tmp_path):
    expected, record = finish(tmp_path / "whole", corpus, valid)
    steps = record["step"]
    for stop in np.random.default_rng(5).choice(np.arange(1, steps), 5, replace=False):
        folder = tmp_path / f"at{stop}"
        run = run_of(folder, corpus, valid)
        train = run._train

        def interrupted(phase, run=run, train=train, stop=stop):
            train(phase)
            run.stopped = run.step == stop

        run._train = interrupted
        with pytest.raises(KeyboardInterrupt):
            run.run(Log(folder / "log.jsonl"))
        found, again = finish(folder, corpus, valid, resume=True)
        assert found == expected
        assert {**again, "seconds": 0} == {**record, "seconds": 0}
        whole, resumed = (read(tmp_path / name / "log.jsonl") for name in ("whole", folder.name))
        assert [{**r, "seconds": 0} for r in whole] == [{**r, "seconds": 0} for r in resumed]


@pytest.mark.usefixtures("short")
def test_a_killed_run_goes_on_from_its_last_checkpoint(corpus, valid, tmp_path):
    expected, _ = finish(tmp_path / "whole", corpus, valid)
    run = run_of(tmp_path / "killed", corpus, valid)
    train = run._train

    def killed(phase):
        train(phase)
        if run.step == 33:
            raise MemoryError  # there is no handler, so nothing is saved, as after kill -9

    run._train = killed
    with pytest.raises(MemoryError):
        run.run(Log(tmp_path / "killed" / "log.jsonl"))
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "tok')  # cut off in the middle of a line
    found, _ = finish(tmp_path / "killed", corpus, valid, resume=True)
    assert found == expected


@pytest.mark.usefixtures("short")
def test_patience_ends_a_phase_and_goes_back_to_its_best_weights(corpus, valid, tmp_path):
    wild = Phase("wild", {"output": 3.0}, patience=1, decay="constant", warmup=0)
    calm = Phase("calm", {"output": 1e-9})
    run = run_of(tmp_path, corpus, valid, schedule=Schedule([wild, calm]))
    start = {n: w.clone() for n, w in run.module.state_dict().items()}
    run.run(Log(tmp_path / "log.jsonl"))
    records = read(tmp_path / "log.jsonl")
    assert [r["phase"] for r in records[:2]] == ["wild", "wild"]
    ended = next(i for i, r in enumerate(records) if r["phase"] == "calm")
    best = min(r["nats"] for r in records[:ended])
    assert records[ended]["nats"] == pytest.approx(best, abs=1e-3)
    if best == records[0]["nats"]:
        torch.testing.assert_close(run.module.output.weight, start["output.weight"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("short")
def test_a_rate_that_diverges_stops_and_keeps_the_checkpoint(corpus, valid, tmp_path):
    schedule = Schedule([Phase("fine", {"output": 0.01}, tokens=1000), Phase("mad", {"output": 1e38}, warmup=0)])
    with pytest.raises(InputError, match=r"step \d+: expected a finite .*mad.*step \d+ is kept in"):
        finish(tmp_path, corpus, valid, schedule=schedule)
    checkpoint = load_file(tmp_path / "checkpoint.safetensors")
    assert np.isfinite(checkpoint["weights/output.weight"]).all()
    assert read(tmp_path / "log.jsonl")[-1]["tokens"] == 1000


@pytest.mark.usefixtures("short")
def test_a_checkpoint_of_another_run_is_refused_with_every_difference(corpus, valid, tmp_path):
    finish(tmp_path, corpus, valid, settings=Settings(500, 500))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    other = NearShallowLM(config(corpus, ("radial", "block")))
    with pytest.raises(InputError, match=r"another config: .*radial.*; seed: 3 now, 0 in the file"):
        run_of(tmp_path, corpus, valid, settings=Settings(500, 500), module=other, seed=3, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    (tmp_path / "checkpoint.safetensors").write_bytes(before[:1000])
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        run_of(tmp_path, corpus, valid, settings=Settings(500, 500), resume=True)


@pytest.mark.usefixtures("short")
def test_texts_that_do_not_suit_are_refused(corpus, valid, tmp_path):
    tiny = Corpus.encode(["a"], corpus.tokenizer, cache_dir=tmp_path)
    with pytest.raises(InputError, match="at least one block of 4 tokens, got 2"):
        run_of(tmp_path, corpus, tiny)
    other = Corpus.build(["x y z"], tokenizer="words", cache_dir=tmp_path)
    with pytest.raises(InputError, match="expected text in the tokens of the model"):
        Batches(other, config(corpus))
    with pytest.raises(InputError, match="at least a segment of 32, got 31"):
        Batches(corpus, config(corpus), batch_tokens=31)


def test_named_phases():
    schedule = named_schedule(["frozen"], 1000)
    assert Clock(schedule, total=1000, epoch=1).end == 1000  # the last phase lasts to the end
    assert named_schedule(["all"], 1000, rate=2.0).phases[0].rates["embedding"] == pytest.approx(0.02)
    with pytest.raises(InputError, match="expected some of warm, frozen, thaw, all, got hot"):
        named_schedule(["hot"], 1000)
    with pytest.raises(InputError, match="a phase that trains something"):
        named_schedule(["warm"], 1000)


def test_a_log_of_something_else_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n")
    with pytest.raises(InputError, match="line 1: expected a record"):
        read(path)
    with pytest.raises(InputError, match="expected the log of a run"):
        read(tmp_path / "none.jsonl")


def test_a_model_without_hidden_contexts_trains_by_the_named_phases():
    module = NearShallowLM(Config(20, 0, bits=8, contexts=("radial",)))
    parameters = named_schedule(["frozen", "thaw"], 1000).parameters(module)
    assert [group for group, members in parameters.items() if members] == ["embedding", "output"]
    with pytest.raises(InputError, match="expected parameters in head"):
        Schedule([Phase("all", {"head": 0.1})], {"head": ["lm_head.*"], "rest": ["*"]}).parameters(module)
