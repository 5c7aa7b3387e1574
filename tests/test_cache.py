import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from warmstart.cache import CacheCounts, DocumentCache
from warmstart.errors import InputError

SIZES = [1, 2, 63, 64, 65]


def same(a, b):
    return np.array_equal(a.counts, b.counts) and np.array_equal(a.position, b.position)


def check(cache, tokens):
    """Read a stream from the start and compare every target with the twin."""
    got = cache.read(tokens)
    for n in range(len(tokens)):
        counts, position = reference.cache_counts(tokens, n, cache.separator, cache.order, cache.size)
        assert (got.counts[n].tolist(), got.position[n]) == (counts, position)
        assert got.known[n] == max(k for k in range(cache.order) if k == 0 or counts[k][1])


def check_tree(cache):
    """The arrays hold the n-grams of the cache and nothing else; every place is live, free or not used yet."""
    from warmstart._cache_kernels import COUNT, FIRST, FREE, NEXT, TOKEN, TOTAL, TYPES, USED, _find

    nodes, state = cache._nodes, cache._state
    assert nodes.shape == ((cache.size + cache.order) * cache.order + 1, 8)
    free, place = 0, state[FREE]
    while place:
        free, place = free + 1, nodes[place, NEXT]
    live, stack = 0, [0]
    while stack:
        node = stack.pop()
        children, child = [], nodes[node, FIRST]
        while child:
            assert _find(cache._slots, nodes, node, nodes[child, TOKEN]) == child
            children.append(child)
            child = nodes[child, NEXT]
        assert nodes[node, TOTAL] == nodes[children, COUNT].sum()
        assert nodes[node, TYPES] == np.count_nonzero(nodes[children, COUNT])
        live += len(children)
        stack += children
    assert live == np.count_nonzero(cache._slots) == state[USED] - free
    assert state[USED] <= len(nodes) - 1


@st.composite
def streams(draw):
    """A cache over a small vocabulary and a stream for it, often longer than the cache."""
    vocab_size = draw(st.integers(1, 6))
    cache = DocumentCache(
        vocab_size,
        separator=draw(st.integers(0, vocab_size - 1)),
        order=draw(st.integers(1, 5)),
        size=draw(st.sampled_from(SIZES)),
        discount=draw(st.floats(0.01, 1.0)),
    )
    return cache, draw(st.lists(st.integers(0, vocab_size - 1), max_size=150))


@given(streams(), st.data())
def test_any_stream_in_any_pieces_equals_the_twin(stream, data):
    cache, tokens = stream
    pieces, rest = cache.copy(), tokens
    check(cache, tokens)
    parts = []
    while rest:
        cut = data.draw(st.integers(0, len(rest)))
        parts.append(pieces.read(rest[:cut]))
        check_tree(pieces)
        rest = rest[cut:]
    for name in ("counts", "position") if parts else ():
        whole = getattr(DocumentCache(cache.vocab_size, cache.separator, cache.order, cache.size).read(tokens), name)
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), whole)


@given(streams())
def test_row_is_the_distribution_of_the_next_token(stream):
    cache, tokens = stream
    cache.read(tokens)
    row = cache.row()
    scores = [cache.copy().read([y]).probabilities(cache.discount)[0] for y in range(cache.vocab_size)]
    settings = (cache.separator, cache.order, cache.size, cache.discount, cache.vocab_size)
    assert abs(row.sum() - 1) < 1e-9
    assert row.min() > 0
    np.testing.assert_allclose(row, scores, rtol=1e-9)
    np.testing.assert_allclose(row, reference.cache_row(tokens, *settings), rtol=1e-9)


@pytest.mark.parametrize("vocab_size", [2, 3, 40, 3000])
@pytest.mark.parametrize("size", [*SIZES, 65_536])
def test_long_streams(size, vocab_size):
    """Without a separator, so that the oldest targets leave all the time."""
    rng = np.random.default_rng(size)
    tokens = np.minimum(rng.geometric(3 / (vocab_size + 4), 65_700), vocab_size - 1)
    cache = DocumentCache(vocab_size, separator=0, size=size)
    got = cache.read(tokens)
    check_tree(cache)
    assert abs(cache.row().sum() - 1) < 1e-9
    assert np.array_equal(got.position, np.arange(tokens.size))
    for n in (1, 62, 63, 64, 65, 66, 67, 65_535, 65_536, 65_537, 65_538, 65_539, tokens.size - 1):
        counts, _ = reference.cache_counts(tokens.tolist(), n, 0, 3, size)
        assert got.counts[n].tolist() == counts


@pytest.mark.parametrize("size", SIZES)
def test_all_tokens_equal(size):
    cache = DocumentCache(2, separator=0, size=size)
    check(cache, [1] * 200)
    check_tree(cache)
    check(DocumentCache(2, separator=0, size=size), [0] * 200)


def test_counts_worked_out_by_hand():
    cache = DocumentCache(5, separator=0, size=4)
    got = cache.read([1, 2, 1, 2, 3, 0, 1])
    assert got.counts.tolist() == [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 1, 1], [0, 0, 0], [0, 0, 0]],
        [[1, 2, 2], [0, 0, 0], [0, 0, 0]],
        [[1, 3, 2], [1, 1, 1], [0, 0, 0]],
        [[0, 4, 2], [0, 1, 1], [0, 1, 1]],
        [[0, 4, 3], [0, 0, 0], [0, 0, 0]],  # (0, 1) has left; 1 is no target that counts but still a context
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    assert got.position.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert got.known.tolist() == [0, 0, 0, 1, 2, 0, 0]
    expected = [0.2, 0.5 * 0.2, 0.5 / 2 + 0.5 * 0.2]
    expected += [0.5 + 0.5 * (0.5 / 3 + 1 / 3 * 0.2), 0.5 * 0.5 * 0.25 * 0.2, 1.5 / 4 * 0.2, 0.2]
    np.testing.assert_allclose(got.probabilities(0.5), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_nothing_is_known_after_a_separator(order):
    cache = DocumentCache(9, separator=8, order=order)
    cache.read([1, 2, 1, 2, 8])
    assert cache.row().tolist() == [1 / 9] * 9
    check(cache, [1, 2, 1, 2, 8, 1])


def test_many_short_documents_leave_nothing_behind():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 300, 50_000)
    tokens[rng.random(50_000) < 0.2] = 7
    cache = DocumentCache(300, separator=7, size=64)
    cache.read([*tokens, 7])
    check_tree(cache)
    fresh = DocumentCache(300, separator=7, size=64)
    assert np.array_equal(cache._state, fresh._state)
    assert np.array_equal(cache._slots, fresh._slots)
    assert same(cache.read(tokens), fresh.read(tokens))


def test_copy_goes_its_own_way():
    cache = DocumentCache(4, separator=0, size=3)
    cache.read([1, 2, 3, 1])
    copy, row = cache.copy(), cache.row()
    copy.read([2, 2, 0, 3])
    assert np.array_equal(cache.row(), row)
    check_tree(cache)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.uint64])
def test_any_integers_in_any_layout(dtype):
    tokens = np.random.default_rng(0).integers(0, 200, 600).astype(dtype)
    got = DocumentCache(200, separator=3).read(tokens[::2])
    assert same(got, DocumentCache(200, separator=3).read(tokens[::2].tolist()))


def test_reading_nothing():
    cache = DocumentCache(4, separator=0, order=2)
    cache.read([1, 2])
    row = cache.row()
    for nothing in ([], np.empty(0, np.uint16)):
        got = cache.read(nothing)
        assert (got.counts.shape, got.position.shape) == ((0, 2, 3), (0,))
        assert got.known.dtype == np.int8
        assert got.probabilities(0.5).shape == (0,)
    assert np.array_equal(cache.row(), row)


def test_largest_vocabulary():
    top = 2**31 - 2
    cache = DocumentCache(top + 1, separator=top, size=3)
    counts = cache.read([top - 1, 0, top - 1, 0, top, top - 1]).counts
    assert counts[3].tolist() == [[1, 3, 2], [1, 1, 1], [0, 0, 0]]
    assert counts[5].tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize(
    "tokens", [[1, 2, 4], [1, -1], [1.0, 2.0], [[1, 2]], 1, [True], np.array([2**32 + 1]), np.array([2**63], np.uint64)]
)
def test_bad_tokens_are_refused_before_anything_changes(tokens):
    cache = DocumentCache(4, separator=0)
    cache.read([1, 2])
    before = [array.copy() for array in (cache._slots, cache._nodes, cache._ring, cache._contexts, cache._state)]
    with pytest.raises(InputError, match="expected"):
        cache.read(tokens)
    after = [cache._slots, cache._nodes, cache._ring, cache._contexts, cache._state]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 0}, "vocab_size from 1 to 2147483647, got 0"),
        ({"vocab_size": 2**31}, "vocab_size"),
        ({"separator": -1}, "separator from 0 to 3, got -1"),
        ({"separator": 4}, "separator"),
        ({"order": 0}, "order from 1 to 127, got 0"),
        ({"order": 128}, "order"),
        ({"size": 0}, "size from 1 to"),
        ({"size": 357_913_939}, "from 1 to 357913938 for order 3, got 357913939"),
        ({"discount": 0.0}, "discount above 0 and at most 1, got 0.0"),
        ({"discount": 1.1}, "discount"),
        ({"discount": float("nan")}, "discount"),
    ],
)
def test_bad_parameters_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        DocumentCache(**({"vocab_size": 4, "separator": 0} | changed))


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.5, float("nan")])
def test_bad_discounts_are_refused(discount):
    counts = CacheCounts(np.zeros((1, 3, 3), np.int32), np.zeros(1, np.int64), 4)
    with pytest.raises(InputError, match="discount above 0"):
        counts.probabilities(discount)
