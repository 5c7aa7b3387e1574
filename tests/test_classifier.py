import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, make_blobs
from sklearn.ensemble import AdaBoostClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import (
    check_class_weight_classifiers,
    check_decision_proba_consistency,
    parametrize_with_checks,
)

from warmstart import solution
from warmstart.accumulators import empty, update
from warmstart.errors import InputError
from warmstart.estimators import ExplicitClassifier
from warmstart.estimators.classifier import SAMPLE_SIZE

NO_HELP = "ignore:temperature. the search ended at its bound 0:UserWarning"  # classes at random, one class
NEGATIVE = "the check gives negative values, whatever the tag positive_only says"


@pytest.mark.filterwarnings(NO_HELP)
@parametrize_with_checks(
    [ExplicitClassifier()],
    expected_failed_checks=lambda _: dict.fromkeys(
        ("check_class_weight_classifiers", "check_decision_proba_consistency"), NEGATIVE
    ),
    xfail_strict=True,
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings(NO_HELP)
@pytest.mark.parametrize("check", [check_class_weight_classifiers, check_decision_proba_consistency])
def test_conventions_whose_data_scikit_learn_does_not_make_positive(check, monkeypatch):
    """With the tag positive_only a check is to subtract the least value, as all others do; these two pass then."""
    with pytest.raises(ValueError, match="Negative values in data"):
        check("ExplicitClassifier", ExplicitClassifier())

    def blobs(*args, **options):
        X, y = make_blobs(*args, **options)
        return X - X.min(), y

    monkeypatch.setattr(estimator_checks, "make_blobs", blobs)
    for temperature in ("fit", 1):
        check("ExplicitClassifier", ExplicitClassifier(temperature=temperature))


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
    assert model.temperature_ == pytest.approx(found.temperatures[0], rel=1e-3)
    objective = solution.CrossEntropy(
        sample, [accumulator], prior, k=accumulator.mean_norm, smoothing=3, dtype=np.float64
    )
    assert abs(objective(np.array([model.temperature_]))[1][0]) < 1e-12
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
        {"class_weight": "even"},
        {"class_weight": {0: -1.0}},
        {"class_weight": {0: np.nan}},
        {"class_prior": 0.5},
        {"class_prior": [0.5, 0.5]},
        {"class_prior": [0.5, 0.5, 0.0]},
        {"class_prior": [0.5, 0.5, 0.5]},
        {"class_prior": [np.nan, 0.5, 0.5]},
        {"class_prior": ["a", "b", "c"]},
    ],
)
def test_parameters_out_of_range_are_named(params):
    X, y = problem()
    model = ExplicitClassifier().fit(X, y)
    with pytest.raises(ValueError, match=next(iter(params))):
        ExplicitClassifier(**params).fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match=next(iter(params))):
        model.set_params(**params).fit(X[:50], y[:50])
    assert np.array_equal(model.predict_proba(X), before)  # what was fitted is still there


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


# Weights


def nats(model, X, y, weight):
    """Leave-one-out cross-entropy of a model by its formula: weight w is max(w, 1) rows of min(w, 1)."""
    total, mass = 0.0, 0.0
    for i, (w, c) in enumerate(zip(weight, y, strict=True)):
        scores = []
        for other in range(3):
            F = (weight[:, None] * X)[y == other].sum(axis=0)
            left = F - min(w, 1) * X[i] * (other == c)
            prior = (weight[:, None] * X)[y == other].sum() / (weight[:, None] * X).sum()
            log_ratio = np.log((left + model.smoothing * prior) / (left.sum() + 12 * model.smoothing * prior))
            scores.append(X[i] @ (model.temperature_ * log_ratio + np.log(prior) / model.k_))
        total += w * (np.logaddexp.reduce(scores) - scores[c])
        mass += w
    return total / mass


def test_weighted_rows_are_left_out_as_rows():
    X, y = problem(60)
    weight = np.random.default_rng(5).choice([0.25, 0.5, 1, 2, 3], 60)
    model = ExplicitClassifier(smoothing=3).fit(X, y, sample_weight=weight)
    assert model.k_ == pytest.approx((weight @ X.sum(axis=1)) / weight.sum(), rel=1e-12)
    assert model.class_count_.tolist() == [weight[y == c].sum() for c in range(3)]
    best, found = nats(model, X, y, weight), model.temperature_
    for factor in (0.99, 1.01):
        model._solved = model._solved._replace(temperatures=np.array([factor * found]))
        assert nats(model, X, y, weight) > best


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_whole_weights_are_repeated_rows(form):
    X, y = problem(300)
    weight = np.random.default_rng(1).integers(0, 4, 300)
    weighted = ExplicitClassifier().fit(form(X), y, sample_weight=weight)
    repeated = ExplicitClassifier().fit(form(X.repeat(weight, axis=0)), y.repeat(weight))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)
    assert weighted.class_count_.tolist() == repeated.class_count_.tolist()
    parts = ExplicitClassifier()
    for part in (slice(0, 7), slice(7, 300)):
        parts.partial_fit(form(X[part]), y[part], classes=[0, 1, 2], sample_weight=weight[part])
    same_bits(parts, weighted)
    weight = weight / 7
    parts = [ExplicitClassifier().fit(X[i::2], y[i::2], weight[i::2]) for i in range(2)]
    np.testing.assert_allclose(parts[0].merge(parts[1]).coef_, ExplicitClassifier().fit(X, y, weight).coef_, rtol=1e-9)


@pytest.mark.parametrize("weight", [[1.0] * 399, [-1.0] * 400, [np.nan] * 400, np.ones((400, 2))])
def test_bad_weights_change_nothing(weight):
    X, y = problem()
    model = ExplicitClassifier().fit(X, y)
    before = model.coef_.copy()
    for change in (model.partial_fit, model.fit):
        with pytest.raises(ValueError, match="weight"):
            change(X, y, sample_weight=weight)
    assert np.array_equal(model.solve().coef_, before)
    with pytest.raises(ValueError, match=r"weights|example"):
        model.fit(X, y, sample_weight=np.zeros(400))
    assert model.class_count_.sum() == 400


def test_class_weights_scale_the_counts_of_a_class():
    X, y = problem(120)
    model = ExplicitClassifier(temperature=1, class_weight={0: 3.0, 2: 0.5}).fit(X, y)
    scaled = ExplicitClassifier(temperature=1).fit(X, y, sample_weight=np.array([3.0, 1.0, 0.5])[y])
    np.testing.assert_allclose(model.coef_, scaled.coef_, rtol=1e-12)
    few = np.r_[np.flatnonzero(y == 0)[:8], np.flatnonzero(y > 0)]
    balanced = ExplicitClassifier(class_weight="balanced").fit(X[few], y[few])
    factors = (few.size / 3 / np.bincount(y[few])).tolist()
    by_hand = ExplicitClassifier(class_weight=dict(enumerate(factors))).fit(X[few], y[few])
    np.testing.assert_allclose(balanced.coef_, by_hand.coef_, rtol=1e-9)
    plain = ExplicitClassifier().fit(X[few], y[few])
    assert (balanced.predict(X) == 0).sum() > (plain.predict(X) == 0).sum()
    same_bits(plain.set_params(class_weight="balanced").solve(), balanced)  # the data are not needed again
    unseen = ExplicitClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2, 3])
    assert np.isfinite(unseen.coef_).all()


def test_a_given_prior_takes_the_place_of_the_shares():
    X, y = problem()
    prior = [0.7, 0.2, 0.1]
    model = ExplicitClassifier(k=2, temperature=1, smoothing=3, class_prior=prior).fit(X, y)
    F = np.array([X[y == c].sum(axis=0) for c in range(3)]) + 3 * np.array(prior)[:, None]
    expected = np.log(F / F.sum(axis=1, keepdims=True)) + np.log(prior)[:, None] / 2
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-12)


def test_decisions_are_log_odds():
    X, y = problem()
    model = ExplicitClassifier(temperature=0.2).fit(X, y)
    decisions, p = model.decision_function(X), model.predict_proba(X)
    np.testing.assert_allclose(decisions, np.log(p / (1 - p)), rtol=1e-6, atol=1e-9)
    far = model.decision_function(X * 1e4)
    assert np.isfinite(far).all()
    assert far.max() > 1000  # although 1 - p is rounded to 0
    np.testing.assert_array_equal(decisions.argmax(axis=1), model.predict(X))
    two = ExplicitClassifier().fit(X, y == 1)
    decisions, p = two.decision_function(X), two.predict_proba(X)
    np.testing.assert_allclose(decisions, np.log(p[:, 1] / p[:, 0]), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(decisions > 0, two.predict(X))


def test_inside_other_estimators():
    X, y = load_digits(return_X_y=True)
    weight = np.random.default_rng(0).integers(1, 4, 1000)
    train, test = slice(0, 1000), slice(1000, 1797)
    alone = ExplicitClassifier().fit(X[train], y[train]).score(X[test], y[test])
    for model in (
        AdaBoostClassifier(ExplicitClassifier(), n_estimators=5),
        VotingClassifier([("a", ExplicitClassifier()), ("b", MultinomialNB())], voting="soft"),
        CalibratedClassifierCV(ExplicitClassifier(), cv=3),
    ):
        fitted = model.fit(X[train], y[train], sample_weight=weight)
        assert fitted.score(X[test], y[test]) > alone - 0.03, model
    pipeline = make_pipeline(MinMaxScaler(), ExplicitClassifier())
    pipeline.fit(X[train], y[train], explicitclassifier__sample_weight=weight)
    assert pipeline.score(X[test], y[test]) > alone - 0.03


# States and inputs that cannot be written to


def test_rows_are_added_to_counts_that_are_only_mapped(tmp_path):
    import joblib

    X, y = problem(d=300)
    joblib.dump(ExplicitClassifier().fit(X[:200], y[:200]), tmp_path / "model")
    model = joblib.load(tmp_path / "model", mmap_mode="r")
    assert not model._statistics.sums.flags.writeable
    X.flags.writeable = y.flags.writeable = False
    same_bits(model.partial_fit(X[200:], y[200:]), ExplicitClassifier().fit(X, y))


def test_a_failed_fit_leaves_the_fitted_model():
    X, y = problem()
    model = ExplicitClassifier().fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match="continuous"):
        model.fit(X[:, :5], X[:, 0])
    with pytest.raises(InputError, match="not all zero"):
        model.fit(np.zeros((4, 5)), [0, 0, 1, 1])
    assert np.array_equal(model.predict_proba(X), before)
    empty = ExplicitClassifier()
    with pytest.raises(InputError, match="expected classes among"):
        empty.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(NotFittedError):
        empty.predict(X)


def mixed(n=400, seed=0):
    """Two loud features that know little of the class, one hundred times as loud as two that know much."""
    random = np.random.default_rng(seed)
    y = random.integers(2, size=n)
    loud, quiet = np.eye(2)[y ^ (random.random(n) < 0.4)], np.eye(2)[y ^ (random.random(n) < 0.1)]
    return np.hstack([100 * loud, quiet])[:, [0, 2, 1, 3]], y  # in turns


def test_each_group_has_its_own_temperature_and_its_own_sums():
    """The two groups in turns are the groups of `solution.fit`, and logits are sums of those of two classifiers."""
    X, y = mixed()
    groups = np.array([0, 1, 0, 1])
    model = ExplicitClassifier(groups=groups).fit(X, y)
    parts = [X[:, groups == g] for g in (0, 1)]
    alone = [ExplicitClassifier(temperature=float(tau), k=np.inf).fit(part, y)
             for tau, part in zip(model.temperature_, parts, strict=True)]  # fmt: skip
    expected = sum(a.coef_ @ part.T for a, part in zip(alone, parts, strict=True)).T
    prior = solution.marginal_prior(model._statistics)
    expected += np.log(prior) * X.sum(axis=1, keepdims=True) / model.k_
    for form in (X, sparse.csr_array(X)):
        z = model._scores(form)
        np.testing.assert_allclose(z[:, 1] - z[:, 0], expected[:, 1] - expected[:, 0], atol=1e-9)
    # independent features: the log ratio counts once each, that is once for 100 units of the loud ones
    np.testing.assert_allclose(model.temperature_ * [100, 1], 1, atol=0.2)
    one = ExplicitClassifier().fit(X, y)
    test, labels = mixed(4000, seed=1)
    nats = [-m.predict_log_proba(test)[np.arange(labels.size), labels].mean() for m in (model, one)]
    assert nats[0] < nats[1] - 0.1
    assert model.score(test, labels) > one.score(test, labels) + 0.2


def test_one_group_is_no_group_and_a_useless_one_is_switched_off():
    X, y = mixed()
    one, none = ExplicitClassifier(groups=[0] * 4).fit(X, y), ExplicitClassifier().fit(X, y)
    np.testing.assert_allclose(one.temperature_, [none.temperature_], rtol=1e-3)
    np.testing.assert_allclose(
        one.set_params(temperature=0.5).solve().coef_, none.set_params(temperature=0.5).solve().coef_
    )
    X[:, [1, 3]] = np.eye(2)[np.random.default_rng(2).integers(2, size=y.size)]
    taus = ExplicitClassifier(groups=[0, 1, 0, 1]).fit(X, y).temperature_
    assert taus[0] > 0.005 > abs(taus[1]) / 100


@pytest.mark.parametrize(
    "groups", [[0, 1, 0], [0, 2, 0, 2], [1, 1, 1, 1], [-1, 0, 0, 0], [0.0, 1.0, 0.0, 1.0], [[0, 1, 0, 1]]]
)
def test_groups_that_do_not_fit_are_refused(groups):
    with pytest.raises(InputError, match="groups: expected the group of each of 4 features"):
        ExplicitClassifier(groups=groups).fit(*mixed())
