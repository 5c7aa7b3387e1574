import numpy as np
import pytest
from reference import leave_one_out_cross_entropy
from scipy import sparse

from warmstart import solution
from warmstart.accumulators import empty, update
from warmstart.errors import InputError
from warmstart.solution import CrossEntropy, Sample, class_prior, fit, leave_one_out, log_likelihood, solve


class Problem:
    """Two groups of inputs, soft targets of one or two classes, everything counted, some of it in a sample."""

    def __init__(self, n=300, every=3, as_sparse=False, soft=True, c=5, widths=(6, 4), seed=0):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, c, n)
        self.Y = np.zeros((n, c))
        self.Y[np.arange(n), classes] = 1.0
        if soft:
            half = np.arange(n) % 2 == 0
            self.Y[half] *= 0.75
            self.Y[half, (classes[half] + 1) % c] = 0.25
        self.X = []
        for width in widths:
            means = rng.random((c, width)) ** 3
            X = rng.random((n, width)) * (rng.random((n, width)) < means[classes])
            self.X.append(X)
        convert = sparse.csr_array if as_sparse else np.asarray
        labels = sparse.csr_array(self.Y)
        self.accumulators = []
        for X in self.X:
            accumulator = empty(X.shape[1], c)
            update(accumulator, convert(X), np.arange(n), labels)
            self.accumulators.append(accumulator)
        self.sampled = np.arange(0, n, every)
        self.sample = Sample([convert(X[self.sampled]) for X in self.X], labels[self.sampled])
        self.prior = class_prior(self.Y.sum(axis=0))
        self.k = sum(a.mean_norm for a in self.accumulators)

    def objective(self, smoothing=1.0, workers=1):
        return CrossEntropy(self.sample, self.accumulators, self.prior, k=self.k, smoothing=smoothing, workers=workers)

    def fit(self, **settings):
        return fit(self.sample, self.accumulators, self.prior, k=self.k, **settings)


def counts(F):
    """Return an accumulator that holds F (D, C)."""
    accumulator = empty(*F.shape)
    accumulator.F[:] = F
    return accumulator


def test_weights_worked_out_by_hand():
    # class 0: 3 of 4 co-occurrences with feature 0; smoothing 2, prior 1/2: one more in each cell
    U = solve(
        [counts(np.array([[3.0, 0.0], [1.0, 2.0]]))],
        np.array([0.5, 0.5]),
        k=2,
        smoothing=2,
        temperatures=np.array([0.5]),
        dtype=np.float64,
    )
    expected = 0.5 * np.log([[4 / 6, 1 / 4], [2 / 6, 3 / 4]]) + 0.5 * np.log(0.5)
    np.testing.assert_allclose(U, expected, rtol=1e-14)
    assert U.flags.c_contiguous


def test_integer_counts_give_the_weights_of_the_co_occurrences_they_stand_for():
    F = np.array([[2.0, 1.0], [0.5, 3.0]])
    integer = empty(2, 2, unit=6)
    integer.F[:] = 6 * F
    settings = {"k": 1.0, "smoothing": 3.0, "temperatures": np.array([0.7]), "dtype": np.float64}
    prior = np.array([0.3, 0.7])
    np.testing.assert_allclose(solve([integer], prior, **settings), solve([counts(F)], prior, **settings), rtol=1e-14)


def test_infinite_k_leaves_the_prior_out():
    F = np.random.default_rng(0).random((7, 4)) + 0.1
    accumulator, prior = counts(F), np.full(4, 0.25)
    U = solve([accumulator], prior, k=np.inf, smoothing=1.0, temperatures=np.ones(1), dtype=np.float64)
    assert np.array_equal(U, log_likelihood(accumulator, prior, 1.0, np.float64))


def test_groups_are_stacked_in_their_order():
    problem = Problem()
    taus = np.array([0.3, 2.0])
    U = solve(problem.accumulators, problem.prior, k=3, smoothing=1.0, temperatures=taus)
    assert U.shape == (10, 5)
    assert U.dtype == np.float32
    for rows, accumulator, tau in zip((slice(0, 6), slice(6, 10)), problem.accumulators, taus, strict=True):
        one = solve([accumulator], problem.prior, k=3, smoothing=1.0, temperatures=np.array([tau]))
        assert np.array_equal(U[rows], one)


def test_a_zero_count_without_smoothing_is_an_error_and_not_a_nan():
    for F in (np.array([[1.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2))):
        with pytest.raises(InputError, match="smoothing > 0"):
            solve([counts(F)], np.array([0.5, 0.5]), k=1, smoothing=0.0, temperatures=np.ones(1))


def test_log_likelihood_takes_more_classes_than_a_block():
    F = np.random.default_rng(0).random((3, solution.CLASSES_PER_BLOCK + 1)) + 0.1
    likelihood = log_likelihood(counts(F), np.full(F.shape[1], 1 / F.shape[1]), 1e-12, np.float64)
    np.testing.assert_allclose(np.exp(likelihood), F / F.sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("taus", [(1.0, 1.0), (0.4, 1.7), (0.0, 0.0)])
def test_leave_one_out_is_the_brute_force(soft, as_sparse, taus):
    problem = Problem(n=60, every=2, soft=soft, as_sparse=as_sparse)
    value, _ = problem.objective(smoothing=0.5)(np.array(taus))
    expected = leave_one_out_cross_entropy(
        problem.X, problem.Y, problem.sampled, problem.prior, k=problem.k, smoothing=0.5, temperatures=taus
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_an_example_seen_once_is_scored_by_smoothing_alone():
    accumulator = empty(2, 2)
    update(accumulator, np.array([[3.0, 0.0]]), np.array([1]))
    got = leave_one_out(np.array([[3.0, 0.0]]), sparse.csr_array([[0.0, 1.0]]), accumulator, np.array([0.5, 0.5]), 1.0)
    np.testing.assert_allclose(got, [3 * np.log(1 / 2)])  # (0 + 1/2) / (0 + 2 * 1/2)


def test_fitted_temperatures_beat_a_grid():
    problem = Problem(n=900)
    objective, fitted = problem.objective(smoothing=3.0), problem.fit(smoothing=3.0)
    assert fitted.smoothing == 3.0
    assert fitted.cross_entropy == pytest.approx(objective(fitted.temperatures)[0], rel=1e-6)
    grid = np.linspace(0.0, 2.0, 11)
    assert fitted.cross_entropy <= min(objective(np.array([a, b]))[0] for a in grid for b in grid) + 1e-6


def test_fitted_smoothing_is_the_best_of_its_neighbours():
    problem = Problem(n=900)
    fitted = problem.fit()
    at = solution.SMOOTHING_GRID.index(fitted.smoothing)
    for near in {max(at - 1, 0), min(at + 1, len(solution.SMOOTHING_GRID) - 1)}:
        assert fitted.cross_entropy <= problem.fit(smoothing=solution.SMOOTHING_GRID[near]).cross_entropy + 1e-6


@pytest.mark.parametrize("exponent", [-500, -40, 3, 37, 500])
def test_fits_do_not_depend_on_units(exponent):
    """Inputs and smoothing times a power of two: the same bits, and temperatures divided by it."""
    factor, problem = 2.0**exponent, Problem(n=600, every=1)
    expected, scaled = problem.fit(smoothing=2.0), Problem(n=600, every=1)
    scaled.sample.groups = [X * factor for X in scaled.sample.groups]
    for accumulator in scaled.accumulators:
        accumulator.sums *= factor
    scaled.k *= factor
    found = scaled.fit(smoothing=2.0 * factor)
    assert found.cross_entropy == expected.cross_entropy
    assert (found.temperatures * factor).tolist() == expected.temperatures.tolist()


def test_a_fit_says_what_it_left_at_a_bound():
    problem = Problem(n=600, every=1)
    assert problem.fit(smoothing=3.0).bounds == ()
    assert problem.fit(smoothing=1.0, temperature=1.0).bounds == ()
    at = problem.fit()
    assert (at.bounds != ()) == (at.smoothing in (1.0, 10_000.0))
    rng = np.random.default_rng(1)
    shuffled = Problem(n=600, every=1)
    shuffled.accumulators[1], shuffled.sample.groups[1] = empty(4, 5), rng.random((600, 4))
    update(shuffled.accumulators[1], shuffled.sample.groups[1], np.arange(600), sparse.csr_array(shuffled.Y))
    found = shuffled.fit(smoothing=1.0)
    assert found.temperatures[1] == 0
    assert found.bounds == ("temperature 0 of group 2",)
    assert shuffled.fit().bounds[-1] == "temperature 0 of group 2"


def test_a_smoothing_at_the_end_of_its_range_is_named(monkeypatch):
    monkeypatch.setattr(solution, "SMOOTHING_GRID", (100.0, 300.0))
    assert Problem(n=900).fit().bounds == ("smoothing 100",)


def test_given_temperature_is_kept_for_every_group():
    fitted = Problem().fit(smoothing=1.0, temperature=0.3)
    assert fitted.temperatures.tolist() == [0.3, 0.3]
    assert fitted.cross_entropy == pytest.approx(Problem().objective()(np.array([0.3, 0.3]))[0])


@pytest.mark.parametrize("as_sparse", [False, True])
def test_number_of_workers_changes_no_bit(as_sparse):
    problem = Problem(n=1_100, every=1, as_sparse=as_sparse)  # several blocks
    one, two = (problem.fit(workers=workers) for workers in (1, 2))
    assert one.temperatures.tolist() == two.temperatures.tolist()
    assert (one.smoothing, one.cross_entropy) == (two.smoothing, two.cross_entropy)


def test_every_keeps_inputs_and_targets_together():
    problem = Problem(n=30, every=1)
    thinned = problem.sample.every(4)
    assert thinned.size == 8
    assert np.array_equal(thinned.groups[1], problem.X[1][::4])
    assert np.array_equal(thinned.targets.toarray(), problem.Y[::4])
