"""The cache in PyTorch against the definition, token by token, and against numpy: counts, rows, states, devices."""

import numpy as np
import pytest
import torch

from warmstart.cache import DocumentCache
from warmstart.errors import InputError
from warmstart.layers.cache import DocumentCacheLayer

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS")),
]
SEPARATOR = 0


def batch(length, V, seed=0):
    """Return ids (5, length): one document, no separator at all, many documents, separators only, two tokens."""
    rng = np.random.default_rng(seed)
    skewed = np.minimum(rng.geometric(0.4, (5, length)), V - 1)
    skewed[0, 0] = SEPARATOR
    skewed[2, rng.random(length) < 0.1] = SEPARATOR
    skewed[3] = SEPARATOR
    skewed[4] = rng.integers(0, 2, length)
    return skewed


def document(ids):
    """Return the tokens since the last separator, which is the first of them, or since the start."""
    begins = [i for i, token in enumerate(ids) if token == SEPARATOR]
    return list(ids[begins[-1] if begins else 0 :])


def followers(tokens, k, size):
    """Return what followed the last k tokens of a document among its last ``size`` targets."""
    context = tokens[len(tokens) - k :]
    targets = range(max(1, len(tokens) - size), len(tokens))
    return [tokens[i] for i in targets if i >= k and tokens[i - k : i] == context] if k <= len(tokens) else []


def row(tokens, V, order, size, discount):
    P = [1 / V] * V
    for k in range(order):
        seen = followers(tokens, k, size)
        if seen:
            spread = discount * len(set(seen)) / len(seen)
            P = [max(seen.count(y) - discount, 0) / len(seen) + spread * P[y] for y in range(V)]
    return P


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("length", "V"), [(1, 2), (2, 2), (60, 2), (60, 9)])
def test_counts_are_those_of_the_definition(order, size, length, V):
    ids = batch(length, V)
    targets = np.random.default_rng(1).integers(0, V, ids.shape)
    targets[:, :-1] = np.where(targets[:, :-1] % 2, targets[:, :-1], ids[:, 1:])  # those of the text, and others
    layer = DocumentCacheLayer(V, SEPARATOR, order, size)
    counts = layer.counts(torch.from_numpy(ids), torch.from_numpy(targets))
    expected = np.zeros((*ids.shape, order, 3))
    for i, t in np.ndindex(ids.shape):
        for k in range(order):
            seen = followers(document(ids[i, : t + 1].tolist()), k, size)
            expected[i, t, k] = seen.count(targets[i, t]), len(seen), len(set(seen))
    assert counts.tolist() == expected.tolist()
    scores = layer.scores(torch.from_numpy(ids), torch.from_numpy(targets))
    assert scores.known.tolist() == (expected[:, :, 1:, 1] > 0).sum(-1).tolist()
    assert scores.position.tolist() == [[len(document(line[: t + 1])) - 1 for t in range(length)] for line in ids]


@pytest.mark.parametrize(("order", "size", "discount"), [(1, 5, 0.7), (3, 6, 0.4), (3, 1000, 0.7), (4, 1000, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_and_rows_are_those_of_the_definition(order, size, discount, dtype):
    V = 9
    ids = batch(50, V)
    layer = DocumentCacheLayer(V, SEPARATOR, order, size, discount, dtype)
    expected = np.array(
        [[row(document(line[: t + 1].tolist()), V, order, size, discount) for t in range(50)] for line in ids]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    rows = layer(torch.from_numpy(ids))
    assert rows.dtype == dtype
    np.testing.assert_allclose(rows, np.log(expected), rtol=0, atol=tolerance)
    targets = np.random.default_rng(1).integers(0, V, ids.shape)
    found = layer.target_log_probs(torch.from_numpy(ids), torch.from_numpy(targets))
    np.testing.assert_allclose(
        found, np.log(np.take_along_axis(expected, targets[..., None], -1)[..., 0]), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(("order", "size"), [(1, 1), (2, 40), (3, 500), (3, 65_536)])
def test_a_stream_is_read_as_by_numpy(order, size):
    V = 30
    tokens = np.minimum(np.random.default_rng(2).geometric(0.15, 3000), V - 1)
    tokens[[0, 1000, 1001, 1400, -1]] = SEPARATOR
    cache, layer = DocumentCache(V, SEPARATOR, order, size), DocumentCacheLayer(V, SEPARATOR, order, size)
    counts = cache.read(tokens[1:])
    ids = torch.from_numpy(tokens)[None]
    assert np.array_equal(layer.counts(ids[:, :-1], ids[:, 1:])[0], counts.counts)
    scores = layer.scores(ids[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(scores.probs[0].log(), np.log(counts.probabilities(0.7)), rtol=0, atol=1e-5)
    assert scores.known[0].tolist() == counts.known.tolist()
    assert scores.position[0].tolist() == counts.position.tolist()
    for end in (1, 2, 900, 1003, 2999):
        cache = DocumentCache(V, SEPARATOR, order, size)
        cache.read(tokens[1:end])
        np.testing.assert_allclose(layer.rows(layer.start(ids[:, :end]))[0].log(), np.log(cache.row()), atol=1e-5)


def test_by_hand():
    layer = DocumentCacheLayer(vocab_size=4, separator=0, order=2, discount=0.5)
    ids = torch.tensor([[0, 1, 2, 1]])
    spread = 0.5 * 2 / 3 / 4  # two types in three targets
    after_nothing = [spread, 1.5 / 3 + spread, 0.5 / 3 + spread, spread]
    expected = [p / 2 for p in after_nothing]
    expected[2] += 0.5  # 1 was followed by 2
    torch.testing.assert_close(layer.rows(layer.start(ids)), torch.tensor([expected]))
    found = layer.scores(ids.expand(2, 4), torch.tensor([[1, 2, 1, 2], [1, 2, 1, -1]]))
    assert found.probs[:, 3].tolist() == pytest.approx([expected[2], 1.0])
    assert (found.known.tolist(), found.position.tolist()) == ([[0, 0, 0, 1]] * 2, [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(("order", "size"), [(1, 3), (3, 1), (3, 10), (4, 1000)])
def test_states_go_on_as_the_whole_text_does(order, size):
    V = 9
    ids = torch.from_numpy(batch(60, V))
    layer = DocumentCacheLayer(V, SEPARATOR, order, size)
    for length in (1, 2, 33):
        state = layer.start(ids[:, :length])
        for t in range(length, 60):
            state = layer.advance(state, ids[:, t])
        assert state.window.shape[1] == min(60, size + order - 1)
        whole = layer.start(ids)
        assert torch.equal(state.window, whole.window)
        assert torch.equal(state.position, whole.position)
    scores = layer.scores(ids, ids)
    counts = layer.row_counts(state)
    assert torch.equal(layer.contexts(counts), scores.counts[:, -1, :, 1:])
    assert torch.equal(counts.gather(2, ids[:, None, -1:].expand(5, order, 1))[..., 0], scores.counts[:, -1, :, 0])
    assert torch.equal(state.position, scores.position[:, -1])
    torch.testing.assert_close(layer.rows(state).gather(1, ids[:, -1:])[:, 0], scores.probs[:, -1])


def test_rows_sum_to_one_after_any_text():
    layer = DocumentCacheLayer(9, SEPARATOR, order=4, size=13, dtype=torch.float64)
    sums = layer(torch.from_numpy(batch(80, 9))).exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)


def test_targets_do_not_see_later_tokens_nor_earlier_documents():
    layer = DocumentCacheLayer(9, SEPARATOR, size=20)
    ids = torch.from_numpy(batch(60, 9))
    whole = layer.counts(ids[:, :-1], ids[:, 1:])
    assert torch.equal(layer.counts(ids[:, :30], ids[:, 1:31]), whole[:, :30])
    start = int((ids[2] == SEPARATOR).nonzero()[-2])
    assert start > 0
    assert torch.equal(layer.counts(ids[2:3, start:-1], ids[2:3, start + 1 :]), whole[2:3, start:])


def test_negative_targets_do_not_count():
    layer = DocumentCacheLayer(9, SEPARATOR)
    ids = torch.from_numpy(batch(20, 9))
    some = ids.masked_fill(torch.arange(20) % 3 == 0, -100)
    found, whole = layer.target_log_probs(ids, some), layer.target_log_probs(ids, ids)
    assert torch.equal(found, whole.masked_fill(some < 0, 0.0))
    assert (whole < 0).all()


def test_narrow_integers_views_and_an_empty_batch_are_accepted():
    layer, ids = DocumentCacheLayer(9, SEPARATOR), torch.from_numpy(batch(12, 9))
    for other in (ids.to(torch.uint8), ids.T.contiguous().T):
        assert torch.equal(layer(other), layer(ids))
        assert torch.equal(layer.target_log_probs(other, other), layer.target_log_probs(ids, ids))
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert layer(empty).shape == (0, 3, 9)
    assert layer.target_log_probs(empty, empty).shape == (0, 3)


def test_it_has_no_weights():
    layer = DocumentCacheLayer(9, SEPARATOR)
    assert not layer.state_dict()
    assert "size=65536" in repr(layer)


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device):
    layer, ids = DocumentCacheLayer(9, SEPARATOR, size=20), torch.from_numpy(batch(60, 9))
    there = ids.to(device)
    scores = layer.scores(there[:, :-1], there[:, 1:])
    assert scores.probs.device.type == device
    for found, expected in zip(scores, layer.scores(ids[:, :-1], ids[:, 1:]), strict=True):
        torch.testing.assert_close(found.cpu(), expected)
    torch.testing.assert_close(layer(there).cpu(), layer(ids))


@pytest.mark.filterwarnings("default")  # those of the compiler about itself
def test_targets_and_steps_compile_without_a_break():
    backend = "aot_eager"
    layer, ids = DocumentCacheLayer(9, SEPARATOR, size=20), torch.from_numpy(batch(60, 9))
    compiled = torch.compile(layer.target_log_probs, backend=backend, fullgraph=True)
    expected = layer.target_log_probs(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(compiled(ids[:, :-1], ids[:, 1:]), expected, rtol=0, atol=1e-6)
    step = torch.compile(lambda *given: layer.rows(layer.advance(*given)), backend=backend, fullgraph=True)
    state = layer.start(ids)
    torch.testing.assert_close(step(state, ids[:, 3]), layer.rows(layer.advance(state, ids[:, 3])), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"separator": 9},
        {"separator": -1},
        {"order": 0},
        {"size": 0},
        {"discount": 0.0},
        {"discount": 1.5},
        {"discount": float("nan")},
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        DocumentCacheLayer(**{"vocab_size": 9, "separator": 0} | wrong)


@pytest.mark.parametrize("ids", [torch.tensor([1]), torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[9]])], ids=str)
def test_wrong_ids_and_targets_are_refused(ids):
    layer = DocumentCacheLayer(9, SEPARATOR)
    for call in (layer, layer.start, lambda ids: layer.scores(ids, ids), lambda ids: layer.scores(ids[:1] * 0, ids)):
        with pytest.raises(InputError, match="expected"):
            call(ids)
