import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from warmstart.accumulators import Accumulator, code_unit, empty, merge, update, update_pairs
from warmstart.errors import InputError

BITS = sparse.csr_array(np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]]))  # weights 1, 1, 2, 3


def examples(n=50, d=4, c=3, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, d)) < 0.6, rng.random((n, d)), 0.0), rng.integers(0, c, n)


def counted(X, targets, cuts=(), labels=None, workers=1, c=3):
    accumulator = empty(X.shape[1], c)
    for chunk in np.split(np.arange(targets.size), sorted(cuts)):
        update(accumulator, X[chunk], targets[chunk], labels, workers)
    return accumulator


def test_sums_worked_out_by_hand():
    accumulator = empty(2, 2)
    update(accumulator, np.array([[1.0, 2.0], [0.5, 0.0], [0.0, 1.5]]), np.array([0, 0, 1]))
    assert accumulator.F.tolist() == [[1.5, 0.0], [2.0, 1.5]]
    assert accumulator.n_examples == 3
    assert accumulator.mean_norm == 5 / 3


def test_pairs_worked_out_by_hand():
    accumulator = empty(3, 2, unit=6)
    update_pairs(accumulator, np.array([0, 2, 3, 3]), np.array([0, 0, 1, 0]), BITS)
    assert accumulator.F.tolist() == [[6 + 3 + 2, 2], [3 + 2, 2], [2, 2]]  # sixths: 1, 1/2 and 1/3 of a co-occurrence
    assert accumulator.mean_norm == 1.0


def test_unit_is_a_multiple_of_every_weight():
    assert code_unit(np.array([4, 1, 6, 4])) == 12


def test_soft_targets_share_an_example():
    X, targets = examples(c=2)
    labels = sparse.csr_array(np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]))
    got = counted(X, targets, labels=labels)
    np.testing.assert_allclose(got.F, X.T @ labels.toarray()[targets], rtol=1e-12)
    assert got.mean_norm == pytest.approx(X.sum() / 50)


@given(st.lists(st.integers(0, 50), max_size=6), st.sampled_from([1, 2, 3]), st.booleans())
@settings(max_examples=40)
def test_any_chunking_workers_and_format_give_the_same_bits(cuts, workers, as_sparse):
    X, targets = examples()
    got = counted(sparse.csr_array(X) if as_sparse else X, targets, cuts, workers=workers)
    assert np.array_equal(got.sums, counted(X, targets).sums)
    assert got.n_examples == 50


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=30), st.integers(0, 30))
def test_integer_counts_do_not_depend_on_grouping(pairs, cut):
    parts = []
    for shard in (pairs, pairs[:cut], pairs[cut:]):
        accumulator = empty(3, 2, unit=6)
        inputs, targets = np.array(shard, dtype=np.int64).reshape(-1, 2).T
        update_pairs(accumulator, inputs, targets, BITS)
        parts.append(accumulator)
    whole, a, b = parts
    for merged in (merge(a, b), merge(b, a)):
        assert np.array_equal(merged.sums, whole.sums)
        assert merged.n_examples == whole.n_examples == len(pairs)


def test_merge_commutes_has_a_neutral_element_and_leaves_its_parts_alone():
    a, b = (counted(*examples(seed=seed)) for seed in (1, 2))
    before = a.sums.copy()
    assert np.array_equal(merge(a, b).sums, merge(b, a).sums)
    assert np.array_equal(merge(a, empty(4, 3)).sums, a.sums)
    assert merge(a, b).n_examples == 100
    assert np.array_equal(a.sums, before)


def test_empty_update_changes_nothing():
    accumulator = counted(np.zeros((0, 4)), np.zeros(0, dtype=int))
    assert not accumulator.sums.any()
    assert accumulator.n_examples == 0
    with pytest.raises(InputError, match="at least one example"):
        _ = accumulator.mean_norm


@pytest.mark.parametrize("other", [empty(4, 2), empty(3, 3), empty(4, 3, unit=6)])
def test_parts_of_different_kinds_do_not_merge(other):
    with pytest.raises(InputError, match="one shape, type and unit"):
        merge(empty(4, 3), other)


@pytest.mark.parametrize(
    ("X", "targets", "labels"),
    [
        (np.ones((2, 4)), np.array([0, 3]), None),
        (np.ones((2, 4)), np.array([0, -1]), None),
        (np.ones((2, 5)), np.array([0, 1]), None),
        (np.ones((3, 4)), np.array([0, 1]), None),
        (np.ones((2, 4)), np.array([0, 1]), sparse.eye_array(2, format="csr")),
    ],
)
def test_update_refuses_what_does_not_fit_and_counts_nothing(X, targets, labels):
    accumulator = empty(4, 3)
    with pytest.raises(InputError, match="expected"):
        update(accumulator, X, targets, labels)
    assert not accumulator.sums.any()
    assert accumulator.n_examples == 0


@pytest.mark.parametrize(("s", "y", "unit"), [(4, 0, 6), (-1, 0, 6), (0, 2, 6), (0, 0, None)])
def test_update_pairs_refuses_what_does_not_fit(s, y, unit):
    accumulator = empty(3, 2, unit)
    with pytest.raises(InputError, match="expected"):
        update_pairs(accumulator, np.array([s]), np.array([y]), BITS)
    assert not accumulator.sums.any()


def test_floats_are_not_added_to_integer_counts():
    with pytest.raises(InputError, match="float sums"):
        update(empty(3, 2, unit=6), np.ones((1, 3)), np.array([0]))


def test_lists_and_sums_that_are_only_mapped(tmp_path):
    x, y = np.random.default_rng(0).random((6, 4)).astype(np.float16), [0, 1, 2, 2, 1, 0]
    expected = empty(4, 3)
    update(expected, x.astype(np.float64), np.array(y))
    np.save(tmp_path / "sums.npy", np.zeros((3, 4)))
    mapped = Accumulator(np.load(tmp_path / "sums.npy", mmap_mode="r"))
    update(mapped, x, y)
    assert np.array_equal(mapped.sums, expected.sums)
    assert not np.load(tmp_path / "sums.npy").any()
    for targets in ([0, 1, 2, 2, 1, 3], [0.0] * 6, [[0]] * 6, [0] * 5):
        with pytest.raises(InputError, match="expected"):
            update(mapped, x, targets)
    assert np.array_equal(mapped.sums, expected.sums)
    assert mapped.n_examples == 6
    codes = sparse.csr_array(np.eye(4))
    exact = Accumulator(np.zeros((3, 4), np.int64))
    exact.sums.flags.writeable = False
    update_pairs(exact, [0, 3, 3], [1, 2, 2], codes)
    assert exact.F[3].tolist() == [0, 0, 2]
