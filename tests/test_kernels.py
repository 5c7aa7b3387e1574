import numpy as np
import pytest
import reference
from scipy import sparse

from warmstart import _kernels

SIZES = [0, 1, 63, 64, 65, 65_600]
AWKWARD = pytest.mark.parametrize("n", SIZES)


def sparse_rows(rng, n, d, density=0.4):
    dense = np.where(rng.random((n, d)) < density, rng.random((n, d)), 0.0)
    return dense, sparse.csr_array(dense)


def windows(rng, size, n, vocabulary):
    """Token ids (B, n), newest first; a random number of the oldest positions is empty, the newest never."""
    window = rng.integers(0, vocabulary, (size, n))
    window[np.arange(size)[:, None] >= rng.integers(1, size + 1, n)] = -1
    return window


@AWKWARD
def test_add_pairs(n):
    rng = np.random.default_rng(n)
    bits = (rng.random((11, 5)) < 0.5).astype(np.int64)
    codes = sparse.csr_array(bits)
    units = rng.integers(1, 60, 11)
    inputs, targets = rng.integers(0, 11, n), rng.integers(0, 7, n)
    before = rng.integers(0, 9, (7, 5))
    sums = before.copy()
    for chunk in np.array_split(np.arange(n), 3):
        _kernels.add_pairs(inputs[chunk], targets[chunk], codes.indptr, codes.indices, units, sums)
    assert np.array_equal(sums, reference.add_pairs(inputs, targets, bits, units, before))


def added(X, targets, rows, before, *, cuts=1, threads=1):
    """Sums of one kernel or the other, in chunks and threads."""
    sums = before.copy()
    for chunk in np.array_split(np.arange(rows.size), cuts):
        target = (targets.indptr, targets.indices, targets.data, rows[chunk], sums)
        for thread in reversed(range(threads)):
            if sparse.issparse(X):
                x = X[chunk]
                _kernels.add_sparse(x.indptr, x.indices, x.data, *target, thread, threads)
            else:
                _kernels.add_dense(X[chunk], *target, thread, threads)
    return sums


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@AWKWARD
def test_add_examples_in_any_chunks_and_threads(n, dtype):
    rng = np.random.default_rng(n)
    dense, _ = sparse_rows(rng, n, 6)
    dense = dense.astype(dtype)
    soft, targets = sparse_rows(rng, 9, 4)  # target rows of several classes
    rows = rng.integers(0, 9, n)
    before = rng.random((4, 6))
    expected = reference.add_examples(dense.astype(np.float64), soft[rows], before)
    for X in (dense, sparse.csr_array(dense)):
        for cuts, threads in ((1, 1), (1, 2), (1, 3), (3, 1), (7, 2)):
            assert np.array_equal(added(X, targets, rows, before, cuts=cuts, threads=threads), expected)


def test_add_examples_to_more_classes_than_16_bits_hold():
    rng = np.random.default_rng(0)
    classes = 65_600
    dense, X = sparse_rows(rng, 40, 3)
    rows = np.r_[classes - 1, 65_535, 65_536, 0, rng.integers(0, classes, 36)]
    one_hot = sparse.eye_array(classes, format="csr")
    before = np.zeros((classes, 3))
    expected = reference.add_examples(dense, one_hot[rows].toarray(), before)
    assert np.array_equal(added(dense, one_hot, rows, before, threads=3), expected)
    assert np.array_equal(added(X, one_hot, rows, before, threads=2), expected)


@AWKWARD
def test_compare(n):
    rng = np.random.default_rng(n)
    E, rows = sparse_rows(rng, 10, 8)
    window = windows(rng, 3, n, 10)
    q = np.full((n, 3), np.nan)
    _kernels.compare(window, rows.indptr, rows.indices, rows.data, q)
    assert np.array_equal(q, reference.compare(window, E))


def test_compare_with_an_empty_pivot_is_zero():
    q = np.full((1, 2), np.nan)
    _kernels.compare(np.array([[-1], [0]]), np.array([0, 1]), np.array([0]), np.array([1.0]), q)
    assert q.tolist() == [[0, 0]]


@AWKWARD
def test_superpose(n):
    rng = np.random.default_rng(n)
    window = windows(rng, 3, n, 10)
    A, G = rng.random((n, 3)), rng.random((10, 5))
    out = np.full((n, 5), np.nan)
    _kernels.superpose(window, A, G, out)
    assert np.array_equal(out, reference.superpose(window, A, G))


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 3_000])
def test_running_mean_in_any_chunks(n):
    rng = np.random.default_rng(n)
    G = rng.random((10, 4))
    newest = rng.integers(0, 10, n)
    starts = rng.random(n) < 0.02
    starts[:1] = True
    position = np.arange(n) - np.maximum.accumulate(np.where(starts, np.arange(n), 0))
    expected = reference.running_mean(newest, position, G)
    for cuts in (1, 4):
        out, state = np.full((n, 4), np.nan), np.full(4, np.nan)
        for chunk in np.array_split(np.arange(n), cuts):
            rows = np.full((chunk.size, 4), np.nan)
            _kernels.running_mean(newest[chunk], position[chunk], G, state, rows)
            out[chunk] = rows
        assert np.array_equal(out, expected)


@AWKWARD
def test_responsibilities(n):
    rng = np.random.default_rng(n)
    E, rows = sparse_rows(rng, 10, 8)
    L = np.log(rng.random((8, 6)))
    norm = np.log(np.exp(E @ L).sum(axis=1))
    window, targets = windows(rng, 3, n, 10), rng.integers(0, 6, n)
    A = rng.random((n, 3))
    R = np.full((n, 3), np.nan)
    total = _kernels.responsibilities(window, targets, A, rows.indptr, rows.indices, rows.data, L, norm, R)
    expected, expected_total = reference.responsibilities(window, targets, A, E, L, norm)
    np.testing.assert_allclose(R, expected, rtol=1e-12)
    np.testing.assert_allclose(total, expected_total, rtol=1e-12)


def test_responsibilities_of_two_positions_by_hand():
    # position 0 gives the target 1/2, position 1 gives it 1/4; attention 1/3 and 2/3: both explain it equally well
    window, L = np.array([[0], [1]]), np.log([[0.5], [0.25]])
    R = np.full((1, 2), np.nan)
    one_hot = (np.array([0, 1, 2]), np.array([0, 1]), np.ones(2))
    total = _kernels.responsibilities(window, np.array([0]), np.array([[1 / 3, 2 / 3]]), *one_hot, L, np.zeros(2), R)
    np.testing.assert_allclose(R, [[0.5, 0.5]])
    np.testing.assert_allclose(total, np.log(1 / 3))


@AWKWARD
def test_attend(n):
    rng = np.random.default_rng(n)
    E, rows = sparse_rows(rng, 10, 8)
    window, W = windows(rng, 3, n, 10), rng.normal(size=(3, 3))
    A = np.full((n, 3), np.nan)
    _kernels.attend(window, rows.indptr, rows.indices, rows.data, W, A)
    np.testing.assert_allclose(A, reference.attend(window, E, W), rtol=1e-12)


def test_attend_to_large_scores_does_not_overflow():
    A = np.full((1, 2), np.nan)
    one_hot = (np.array([0, 1]), np.array([0]), np.ones(1))
    _kernels.attend(np.array([[0], [0]]), *one_hot, np.array([[1e4, 0.0], [0.0, 1e4]]), A)
    assert A.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("bits", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("n", SIZES[:-1])
def test_compare_codes(n, bits):
    rng = np.random.default_rng(n + bits)
    V = min(60, 2**bits - 1)
    bit = rng.random((V, bits)) < 0.5
    bit[np.arange(V), rng.integers(0, bits, V)] = True
    packed = np.packbits(bit, axis=1, bitorder="little")
    codes = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    pivots, window = rng.integers(0, V, n), rng.integers(0, V, (n, 7))
    q = np.full((n, 7), np.nan, dtype=np.float32)
    inverse = 1 / bit.sum(axis=1)
    _kernels.compare_codes(pivots, window, codes, inverse, q)
    np.testing.assert_allclose(q, reference.compare_codes(pivots, window, codes), rtol=1e-6, atol=0)


@AWKWARD
def test_remember_in_any_chunks_and_columns(n):
    rng = np.random.default_rng(n)
    (keys, sparse_keys), (labels, sparse_labels) = sparse_rows(rng, 11, 6), sparse_rows(rng, 11, 5)
    tokens, position = rng.integers(0, 11, n + 1), np.zeros(n, np.int64)
    for i in range(1, n):
        position[i] = 0 if rng.random() < 0.1 else position[i - 1] + 1
    sides = [a for rows in (sparse_keys, sparse_labels) for a in (rows.indptr, rows.indices, rows.data)]
    expected = reference.remember(tokens[:-1], tokens[1:], position, keys, labels, 0.3)
    for columns in (slice(0, 5), slice(0, 2), slice(2, 5)):
        memory, out = np.full((6, columns.stop - columns.start), np.nan), np.full((n, 5), np.nan)
        for chunk in np.array_split(np.arange(n), 3):
            pairs = (tokens[:-1][chunk], tokens[1:][chunk], position[chunk])
            rows = out[chunk, columns]
            _kernels.remember(*pairs, *sides, 0.3, columns.start, memory, rows)
            out[chunk, columns] = rows
        np.testing.assert_allclose(out[:, columns], expected[:, columns], rtol=1e-9, atol=1e-12)
