import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.naive_bayes import MultinomialNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from warmstart import solution
from warmstart.accumulators import empty, update
from warmstart.errors import InputError
from warmstart.estimators import ExplicitClassifier
from warmstart.estimators.classifier import SAMPLE_SIZE

NO_HELP = "ignore:temperature. the search ended at its bound 0:UserWarning"  # classes at random, one class


@pytest.mark.filterwarnings(NO_HELP)
@parametrize_with_checks([ExplicitClassifier()])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def problem(n=400, d=12, c=3, seed=0, integers=False):
    """Counts that depend on the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    rates = np.random.default_rng(99).gamma(0.7, 3.0, (c, d))
    X = rng.poisson(rates[y]).astype(float)
    return (X if integers else X * rng.random((n, d))), y


def same_bits(a, b):
    assert np.array_equal(a._statistics.sums, b._statistics.sums)
    assert np.array_equal(a.class_count_, b.class_count_)
    assert np.array_equal(a.coef_, b.coef_)
    assert (a.k_, a.temperature_) == (b.k_, b.temperature_)


def test_two_features_by_hand():
    # F = [[3, 1], [1, 1]], prior 1/2, k = 2; smoothing 2 adds one to each cell
    model = ExplicitClassifier(smoothing=2, temperature=1).fit(
        [[2, 0], [1, 1], [1, 1]][:2] + [[1, 1]] * 2, [0, 0, 1, 1]
    )
    likelihood = np.array([[4 / 6, 2 / 6], [3 / 6, 3 / 6]])  # by class: (3 + 1, 1 + 1) / 6 and (2 + 1, 2 + 1) / 6
    assert model.k_ == 2
    np.testing.assert_allclose(model.coef_, np.log(likelihood) + np.log(0.5) / 2, rtol=1e-14)
    assert model.intercept_.tolist() == [0, 0]
    odds = (4 / 6) ** 2 / (3 / 6) ** 2
    np.testing.assert_allclose(model.predict_proba([[2, 0]]), [[odds / (1 + odds), 1 / (1 + odds)]])


def test_rows_of_equal_norm_give_multinomial_naive_bayes():
    X, y = problem()
    X = (X + 0.01) / (X + 0.01).sum(axis=1, keepdims=True) * 7.5
    expected = MultinomialNB(alpha=1e-12, force_alpha=True).fit(X, y).predict_proba(X)
    got = ExplicitClassifier(smoothing=1e-12, temperature=1).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_fitted_temperature_lowers_the_cross_entropy_of_held_out_digits():
    X, y = load_digits(return_X_y=True)
    train, test = slice(0, 1200), slice(1200, None)
    models = [ExplicitClassifier(temperature=t).fit(X[train], y[train]) for t in ("fit", 1)]
    nats = [-m.predict_log_proba(X[test])[np.arange(597), y[test]].mean() for m in models]
    assert nats[0] < 0.6 < 1.5 < nats[1]
    assert models[0].score(X[test], y[test]) > 0.85


def test_dense_sparse_and_float32_agree():
    X, y = problem(integers=True)
    dense = ExplicitClassifier().fit(X, y)
    for form in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array, lambda X: X.astype(np.float32)):
        other = ExplicitClassifier().fit(form(X), y)
        assert np.array_equal(other._statistics.sums, dense._statistics.sums)
        np.testing.assert_allclose(other.predict_proba(form(X)), dense.predict_proba(X), atol=1e-5)


def test_entries_given_twice_are_summed_and_the_caller_keeps_his_arrays():
    twice = sparse.csr_array((np.array([1.0, 2.0, 5.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    model = ExplicitClassifier().fit(twice, [0, 1])
    same_bits(model, ExplicitClassifier().fit(sparse.csr_array([[0.0, 3.0], [5.0, 0.0]]), [0, 1]))
    assert twice.data.tolist() == [1, 2, 5]


@given(st.lists(st.integers(0, 5_000), max_size=5), st.booleans())
@settings(max_examples=12)
def test_any_cut_of_the_stream_gives_the_same_bits(cuts, as_sparse):
    X, y = problem(n=5_000, d=3)
    X = sparse.csr_array(X) if as_sparse else X
    model = ExplicitClassifier()
    for part in np.split(np.arange(5_000), sorted(cuts)):
        if part.size:
            model.partial_fit(X[part], y[part], classes=[0, 1, 2])
    same_bits(model, ExplicitClassifier().fit(X, y))


def test_sample_is_bounded_and_takes_classes_that_take_turns_in_proportion():
    n = 20_000
    y = np.arange(n) % 8
    sample = ExplicitClassifier(temperature=1).fit(np.ones((n, 1)), y)._sample
    assert SAMPLE_SIZE / 2 <= sample.number.size <= SAMPLE_SIZE
    share = np.bincount(sample.targets, minlength=8) / sample.number.size
    np.testing.assert_allclose(share, 1 / 8, rtol=0.05)
    assert np.array_equal(sample.targets, y[sample.number])


@pytest.mark.parametrize(("n", "m"), [(150, 250), (5_000, 300), (300, 5_000), (5_000, 9_000)])
def test_merge_of_integers_is_one_long_stream(n, m):
    X, y = problem(n + m, d=4, integers=True)
    parts = [ExplicitClassifier().partial_fit(X[s], y[s], classes=[0, 1, 2]) for s in (slice(0, n), slice(n, n + m))]
    merged, whole = parts[0].merge(parts[1]), ExplicitClassifier().fit(X, y)
    assert merged is parts[0]
    assert np.array_equal(merged._statistics.sums, whole._statistics.sums)
    assert merged.class_count_.tolist() == whole.class_count_.tolist()
    assert merged._sample.number.size <= SAMPLE_SIZE
    np.testing.assert_allclose(merged.temperature_, whole.temperature_, rtol=0.1)  # another sample
    merged.set_params(temperature=1).solve()
    assert np.array_equal(merged.coef_, whole.set_params(temperature=1).solve().coef_)


def test_merge_of_a_dense_and_a_sparse_part():
    X, y = problem(integers=True)
    a = ExplicitClassifier().fit(X[:200], y[:200])
    b = ExplicitClassifier().fit(sparse.csr_array(X[200:]), y[200:])
    np.testing.assert_allclose(a.merge(b).coef_, ExplicitClassifier().fit(X, y).coef_, rtol=1e-3)
    assert b.class_count_.sum() == 200


def test_predictions_follow_more_rows_and_other_settings_need_no_data():
    X, y = problem()
    model = ExplicitClassifier().partial_fit(X[:50], y[:50], classes=[0, 1, 2])
    early = model.predict_proba(X)
    model.partial_fit(X[50:], y[50:])
    same_bits(model, ExplicitClassifier().fit(X, y))
    assert not np.array_equal(model.predict_proba(X), early)
    for other in ({"k": 1}, {"k": np.inf, "temperature": 0.5}, {"smoothing": 30, "temperature": "fit"}):
        same_bits(model.set_params(**other).solve(), ExplicitClassifier(**model.get_params()).fit(X, y))


def test_temperature_is_the_one_of_the_leave_one_out_fit():
    X, y = problem()
    model = ExplicitClassifier(smoothing=3).fit(X, y)
    accumulator = empty(12, 3)
    update(accumulator, X, y)
    sample = solution.Sample([X], sparse.csr_array(np.eye(3)[y]))
    prior = np.array([X[y == c].sum() for c in range(3)]) / X.sum()
    found = solution.fit(sample, [accumulator], prior, k=accumulator.mean_norm, smoothing=3)
    assert model.temperature_ == found.temperatures[0]
    assert model.k_ == pytest.approx(X.sum() / 400)


def words_of_topics():
    """3,000 short texts of five topics, as counts of 40 words."""
    rng = np.random.default_rng(0)
    topics, y = rng.dirichlet(np.ones(40) * 1.5, size=5), rng.integers(0, 5, 3000)
    return np.array([rng.multinomial(12, topics[topic]) for topic in y]).astype(float), y


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1.0, 1e7, 1e11, 1e12, 1e100, 1e300])
def test_units_change_nothing(factor):
    X, y = words_of_topics()
    expected = ExplicitClassifier().fit(X, y)
    model = ExplicitClassifier(smoothing=factor).fit(X * factor, y)
    assert model.temperature_ * factor == pytest.approx(expected.temperature_, rel=1e-3)
    assert expected.temperature_ == pytest.approx(1.03, abs=0.01)
    np.testing.assert_allclose(model.predict_proba(X * factor), expected.predict_proba(X), atol=1e-3)
    if factor >= 1:  # one pseudo-count is less and less beside the counts
        assert ExplicitClassifier().fit(X * factor, y).score(X * factor, y) == pytest.approx(0.907, abs=2e-3)


def test_a_classifier_that_gives_the_prior_says_so():
    X, y = words_of_topics()
    with pytest.warns(UserWarning, match="smoothing: 1 for each of 40 features drowns counts of 3.6e-05 in all"):
        ExplicitClassifier().fit(X * 1e-9, y)
    with pytest.warns(UserWarning, match="temperature: the search ended at its bound 0"):
        model = ExplicitClassifier().fit(X, np.random.default_rng(1).permutation(y))
    assert model.temperature_ == 0


def test_a_class_declared_and_not_seen_is_finite_and_improbable():
    X, y = problem()
    model = ExplicitClassifier().partial_fit(X, y, classes=[0, 1, 2, 7])
    assert model.class_count_.tolist()[3] == 0
    assert np.isfinite(model.coef_).all()
    log_probability = model.predict_log_proba(X)
    assert np.isfinite(log_probability).all()
    assert np.exp(log_probability[:, 3]).mean() < 0.05


def test_one_class_is_certain():
    model = ExplicitClassifier().fit(np.eye(3), ["only"] * 3)
    assert model.predict(np.eye(3)).tolist() == ["only"] * 3
    assert model.predict_proba(np.eye(3)).tolist() == [[1.0]] * 3


def test_a_row_of_zeros_gets_equal_probabilities():
    model = ExplicitClassifier().fit(*problem())
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 12))), [[1 / 3] * 3])


@pytest.mark.parametrize(
    "params",
    [
        {"smoothing": 0},
        {"smoothing": np.inf},
        {"smoothing": "fit"},
        {"k": 0},
        {"k": -1.0},
        {"k": np.nan},
        {"k": "mean"},
        {"temperature": 0},
        {"temperature": "best"},
        {"temperature": np.inf},
        {"temperature": True},
    ],
)
def test_parameters_out_of_range_are_named(params):
    with pytest.raises(InputError, match=f"expected {next(iter(params))} to be a number above 0"):
        ExplicitClassifier(**params).fit(*problem())


def test_all_zero_features_have_no_mean_norm():
    with pytest.raises(InputError, match="not all zero"):
        ExplicitClassifier().fit(np.zeros((4, 2)), [0, 0, 1, 1])
    assert ExplicitClassifier(k=1).fit(np.zeros((4, 2)), [0, 0, 0, 1]).predict(np.ones((1, 2))).tolist() == [0]


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "infinity"), (-1.0, "Negative values")])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_bad_values_are_refused_and_nothing_is_counted(value, message, form):
    X, y = problem()
    model = ExplicitClassifier().fit(X, y)
    before = model.coef_.copy()
    bad = X.copy()
    bad[-1, -1] = value
    with pytest.raises(ValueError, match=message):
        model.partial_fit(form(bad), y)
    assert np.array_equal(model.solve().coef_, before)
    assert model.class_count_.sum() == 400


def test_partial_fit_says_what_is_wrong_with_classes():
    X, y = problem()
    model = ExplicitClassifier()
    with pytest.raises(InputError, match="expected classes on the first call"):
        model.partial_fit(X, y)
    with pytest.raises(InputError, match=r"expected classes among \[0 1\], got \[2\]"):
        model.partial_fit(X, y, classes=[0, 1])
    model.partial_fit(X, y, classes=[2, 1, 0])
    with pytest.raises(InputError, match="expected the classes of the first call"):
        model.partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(InputError, match="expected classes among"):
        model.partial_fit(X, y + 1)
    assert model.class_count_.sum() == 400


def test_merge_says_what_differs():
    X, y = problem()
    model = ExplicitClassifier().fit(X, y)
    with pytest.raises(InputError, match="same classes_"):
        model.merge(ExplicitClassifier().fit(X, y + 1))
    with pytest.raises(InputError, match="same n_features_in_"):
        model.merge(ExplicitClassifier().fit(X[:, 1:], y))
    with pytest.raises(NotFittedError):
        model.merge(ExplicitClassifier())


def test_attributes_before_fit():
    for name in ("coef_", "intercept_", "k_", "temperature_"):
        assert not hasattr(ExplicitClassifier(), name)


def test_pickle_goes_on_counting():
    X, y = problem()
    model = ExplicitClassifier().partial_fit(X[:100], y[:100], classes=[0, 1, 2])
    same_bits(pickle.loads(pickle.dumps(model)).partial_fit(X[100:], y[100:]), ExplicitClassifier().fit(X, y))  # noqa: S301


@pytest.mark.filterwarnings(NO_HELP)
def test_ten_thousand_classes_take_little_more_than_their_weights():
    n, d, c = 20_000, 64, 10_000
    rng = np.random.default_rng(0)
    y = np.r_[np.arange(c), rng.integers(0, c, n - c)]
    X = sparse.csr_array((np.ones(2 * n), np.c_[y % d, (y // d) % d].ravel(), np.arange(0, 2 * n + 1, 2)), shape=(n, d))
    X.sum_duplicates()
    ExplicitClassifier().fit(X[:10], y[:10])  # compile
    tracemalloc.start()
    model = ExplicitClassifier(smoothing=0.1).fit(X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 8 * c * d  # statistics, weights, float32 table, scores of 256 rows
    assert np.isfinite(model.coef_).all()
    assert model.predict_proba(X[:3]).shape == (3, c)


@pytest.mark.parametrize("temperature", [1, "fit"])
def test_torch_layer_gives_the_same_probabilities(temperature):
    torch = pytest.importorskip("torch")
    X, y = problem()
    model = ExplicitClassifier(temperature=temperature).fit(X / 10, y)
    layer = model.to_torch()
    x = torch.tensor(X / 10, dtype=torch.float32)
    assert layer.weight.shape == (12, 3)
    assert layer.weight.dtype == torch.float32
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    with torch.no_grad():
        got = torch.log_softmax(layer(x), dim=1).numpy()
        np.testing.assert_allclose(got, model.predict_log_proba(X / 10), atol=1e-5)
        np.testing.assert_allclose(layer.probabilities(x).numpy(), np.exp(got), atol=1e-6)
    torch.nn.functional.cross_entropy(layer(x), torch.tensor(y)).backward()
    assert layer.weight.grad.abs().sum() > 0


def test_the_estimator_is_imported_without_torch():
    code = "import sys, warmstart.estimators; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
