"""The n-gram tables in PyTorch against those of numpy: targets, rows, states, devices, compiled graphs."""

import functools
import itertools

import numpy as np
import pytest
import torch

from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.layers.ngrams import NGramTables
from warmstart.ngrams import count_ngrams

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS")),
]


def text(n, V, separator, seed=0):
    """Return about n tokens of a Markov chain of few successors, in documents of 0 to 30 tokens."""
    rng = np.random.default_rng(seed)
    after = np.random.default_rng(7).integers(0, V, (V, 3))
    tokens = [separator]
    while len(tokens) < n:
        token = int(rng.integers(V))
        for _ in range(int(rng.integers(0, 31))):
            token = int(after[token, rng.integers(3)]) if rng.random() < 0.9 else int(rng.integers(V))
            tokens.append((token + 1) % V if token == separator else token)
        tokens.append(separator)
    return np.array(tokens)


def solved(tokens, V, order, prune=()):
    return KneserNey(count_ngrams(tokens, np.flatnonzero(tokens == tokens[0]), V, order), prune)


def imported():
    """Return tables as another program could write them: uncounted contexts, weights above 1, a gap among the lengths.

    The 2-gram (1 2) has no extension; the context (2) was not counted but weighs 0.5; (0 1) was counted, (1) was not.
    """
    last = np.array([0, 1, 2, 1, 2, 2, 0, 0, 2], np.uint16)  # 0, 1, 2 | 0 1, 0 2, 1 2, 2 0 | 0 1 0, 0 1 2
    offsets = np.array([3, 5, 6, 7, 9, 9, 9, 9])
    probs = np.array([0.2, 0.3, 0.5, 0.6, 0.1, 0.4, 0.7, 0.25, 0.5])
    gammas = np.array([1.5, 0.25, 0.5, 0.125, 2.0, 0.75, 1.0])
    sizes = np.array([3, 0, 0, 2, 0, 1, 0], np.uint8)
    return BackoffModel(3, 0, 3, np.array([0, 3, 7, 9]), last, offsets, probs, gammas, sizes)


RECIPES = {
    "imported": imported,
    "pruned": lambda: solved(text(3000, 25, 3), 25, 4, (0, 1, 2)),
    "all-pruned": lambda: solved(text(300, 25, 3), 25, 3, (0, 10**6)),
    "one-token": lambda: solved(np.zeros(9, np.int64), 1, 3),
    "order-above-documents": lambda: solved(np.array([1, 0, 0, 1, 1, 2, 1]), 3, 9),
    "wide-ids": lambda: solved(text(500, 70_000, 69_999), 70_000, 3),
} | {
    f"V{V}-N{order}": functools.partial(lambda V, order: solved(text(3000, V, V - 1), V, order), V, order)
    for V, order in itertools.product((2, 25), (1, 2, 3, 5))
}


@functools.cache
def built(name):
    return RECIPES[name]()


@pytest.fixture(params=RECIPES)
def model(request):
    return built(request.param)


def batch(model, length, seed=1):
    """Return ids (4, length): from a document start, from inside one, separators only, and any tokens."""
    V, separator = model.vocab_size, model.separator
    stream = text(2 * length + 40, V, separator, seed) if V > 1 else np.zeros(length + 3, np.int64)
    free = np.random.default_rng(seed).integers(0, V, length)
    return np.stack([stream[:length], stream[3 : 3 + length], np.full(length, separator), free])


def scores(model, ids, targets):
    """Return what numpy says of each target: probs, known and size, each (batch, length)."""
    out = np.zeros((3, *ids.shape))
    if model.order == 1:  # nothing is known, and every target has its own probability
        out[0] = model.probs[targets]
        return out
    for i, t in np.ndindex(ids.shape):
        stream = np.append(ids[i, : t + 1], targets[i, t])
        out[:, i, t] = [array[0] for array in model.score_stream(stream, t + 1)]
    return out


def assert_equal_scores(model, module, ids, targets, tolerance):
    expected = scores(model, ids, targets)
    found = module.scores(module.contexts(torch.from_numpy(ids)), torch.from_numpy(targets))
    np.testing.assert_allclose(found.probs.cpu().log(), np.log(expected[0]), rtol=0, atol=tolerance)
    assert [found.known.tolist(), found.size.tolist()] == expected[1:].tolist()
    again = module.target_log_probs(torch.from_numpy(ids), torch.from_numpy(targets))
    assert torch.equal(again, found.probs.log())


@pytest.mark.parametrize("length", [1, 2, 37])
def test_targets_and_features_are_those_of_numpy(model, length):
    ids = batch(model, length + 1)
    module = NGramTables.from_model(model)
    assert_equal_scores(model, module, ids[:, :-1], ids[:, 1:], 1e-5)
    other = np.random.default_rng(3).integers(0, model.vocab_size, (4, length))
    assert_equal_scores(model, module, ids[:, :-1], other, 1e-5)
    assert_equal_scores(model, NGramTables(model, torch.float64), ids[:, :-1], other, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_those_of_numpy(model, dtype):
    ids = batch(model, 9)
    rows = NGramTables(model, dtype)(torch.from_numpy(ids))
    assert rows.shape == (4, 9, model.vocab_size)
    assert rows.dtype == dtype
    expected = [[model.row(line[: t + 1]) for t in range(9)] for line in ids]
    np.testing.assert_allclose(rows, np.log(expected), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_tables_by_hand():
    module = NGramTables(imported())
    rows = module(torch.tensor([[0, 1, 2]])).exp()[0]
    after_0 = [1.5 * 0.2, 0.6, 0.1]
    after_01 = [0.25, 0.125 * 0.25 * 0.3, 0.5]  # all three lengths: 0 1 0, then 1 after nothing, then 0 1 2
    after_012 = [0.75 * 0.7, 0.75 * 0.5 * 0.3, 0.75 * 0.5 * 0.5]  # (0 1 2) is too long, (1 2) has no extensions
    torch.testing.assert_close(rows, torch.tensor([after_0, after_01, after_012]))
    known, size = module.features(module.contexts(torch.tensor([[0, 1, 2]])))
    assert (known.tolist(), size.tolist()) == ([[1, 2, 2]], [[3, 2, 1]])


def test_states_go_on_as_the_whole_text_does(model):
    ids = torch.from_numpy(batch(model, 30))
    module = NGramTables(model)
    whole = module.contexts(ids)
    for length in (1, 2, 11):
        state = module.start(ids[:, :length])
        for t in range(length, 30):
            assert torch.equal(state, whole[:, t - 1])
            state = module.advance(state, ids[:, t])
        assert torch.equal(module.rows(state), module.rows(whole)[:, -1])


def test_the_state_has_a_fixed_size_after_any_length():
    module = NGramTables(built("V25-N5"))
    ids = torch.from_numpy(batch(built("V25-N5"), 500))
    assert {module.start(ids[:, :length]).shape for length in (1, 3, 500)} == {(4, 4)}


def test_negative_targets_do_not_count():
    model = built("V25-N3")
    ids = torch.from_numpy(batch(model, 8))
    targets = ids.roll(-1, dims=1)
    some = targets.masked_fill(torch.arange(8) % 3 == 0, -100)
    module = NGramTables(model)
    found, whole = module.target_log_probs(ids, some), module.target_log_probs(ids, targets)
    assert torch.equal(found, whole.masked_fill(some < 0, 0.0))
    assert (whole < 0).all()


def test_narrow_integers_views_and_an_empty_batch_are_accepted():
    model = built("V25-N5")
    module, ids = NGramTables(model), torch.from_numpy(batch(model, 9))
    assert torch.equal(module(ids.to(torch.uint8)), module(ids))
    assert torch.equal(module(ids.T.contiguous().T), module(ids))
    assert torch.equal(module(ids.repeat(1, 2)[:, ::2]), module(ids.repeat(1, 2)[:, ::2].clone()))
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert module(empty).shape == (0, 3, 25)
    assert module.target_log_probs(empty, empty).shape == (0, 3)
    assert module.rows(module.start(empty)).shape == (0, 25)


def test_the_tables_are_no_part_of_the_state_dict_and_are_not_trained():
    module = NGramTables(built("V25-N5"))
    assert not module.state_dict()
    assert not list(module.parameters())
    assert {name for name, _ in module.named_buffers()} == {"keys", "probs", "gammas", "sizes"}
    assert "order=5" in repr(module)


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device):
    model = built("V25-N5")
    ids = torch.from_numpy(batch(model, 40))
    cpu, there = NGramTables(model), NGramTables(model).to(device)
    rows = there(ids.to(device))
    assert rows.device.type == device
    torch.testing.assert_close(rows.cpu(), cpu(ids), rtol=0, atol=1e-6)
    targets = ids.roll(1, dims=1)
    found, expected = there.target_log_probs(ids.to(device), targets.to(device)), cpu.target_log_probs(ids, targets)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)
    state = there.advance(there.start(ids.to(device)), ids[:, 5].to(device))
    assert torch.equal(state.cpu(), cpu.advance(cpu.start(ids), ids[:, 5]))


@pytest.mark.filterwarnings("default")  # those of the compiler about itself
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("V25-N1", "aot_eager"),
        ("V25-N5", "aot_eager"),
        pytest.param("V25-N5", "inductor", marks=pytest.mark.slow),  # it compiles C++
    ],
)
def test_targets_and_steps_compile_without_a_break(name, backend):
    model = built(name)
    module, ids = NGramTables(model), torch.from_numpy(batch(model, 21))
    targets = ids.roll(-1, dims=1)
    compiled = torch.compile(module.target_log_probs, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(ids, targets), module.target_log_probs(ids, targets), rtol=0, atol=1e-6)
    advance = torch.compile(module.advance, backend=backend, fullgraph=True)
    assert torch.equal(advance(module.start(ids), ids[:, 4]), module.advance(module.start(ids), ids[:, 4]))


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1, 2]),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.tensor([[1.0]]),
        torch.tensor([[True]]),
        torch.tensor([[25]]),
        torch.tensor([[-1]]),
    ],
    ids=str,
)
def test_wrong_ids_are_refused(ids):
    module = NGramTables(built("V25-N3"))
    for call in (module, module.start, module.contexts):
        with pytest.raises(InputError, match="expected token ids"):
            call(ids)


@pytest.mark.parametrize(
    "targets", [torch.tensor([[1]]), torch.tensor([1, 2]), torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 25]])], ids=str
)
def test_wrong_targets_are_refused(targets):
    with pytest.raises(InputError, match="expected"):
        NGramTables(built("V25-N3")).target_log_probs(torch.tensor([[1, 2]]), targets)
