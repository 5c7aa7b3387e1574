"""The gate: steps equal to a twin, losses that do not rise, and no expert that is better alone."""

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from warmstart import _mixture_kernels, gate
from warmstart.errors import InputError
from warmstart.gate import FLOOR, STRENGTH, Gate, buckets, fit_gate, with_expert


@st.composite
def samples(draw, most_features=3):
    """Probabilities (n, m), often 0, features (n, k), some above their largest value, and sizes."""
    n, m, k = draw(st.integers(1, 60)), draw(st.integers(1, 4)), draw(st.integers(0, most_features))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probs = rng.random((n, m)) ** rng.integers(1, 9, m) * (rng.random((n, m)) < draw(st.sampled_from([0.5, 1.0])))
    probs[:, -1] = rng.random(n) * 0.9 + 1e-6
    sizes = tuple(rng.integers(1, 4, k).tolist())
    return probs, rng.integers(0, 5, (n, k)), sizes


def loss(found, probs, features):
    return -np.log(found.mix(probs, features).sum(axis=1)).mean()


def check(found):
    assert found.weights.shape == (np.prod(found.sizes, dtype=int), found.weights.shape[1])
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-12)
    assert found.weights.min() >= 0
    assert found.weights[:, -1].min() >= FLOOR * (1 - 1e-12)


@given(samples())
def test_losses_do_not_rise_and_are_those_of_the_gate(sample):
    probs, features, sizes = sample
    found, losses = fit_gate(*sample)
    check(found)
    assert len(losses) == len(sizes) + 1
    assert losses[-1] == pytest.approx(loss(found, probs, features), abs=1e-12)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(losses))
    for k in range(len(sizes)):  # with fewer features the same path is gone
        assert losses[: k + 1] == fit_gate(probs, features[:, :k], sizes[:k])[1]


@given(samples())
def test_no_expert_is_better_alone(sample):
    probs, features, _ = sample
    found, _ = fit_gate(*sample)
    with np.errstate(divide="ignore"):
        alone = -np.log(probs).mean(axis=0)
    for expert in range(probs.shape[1] - 1):
        assert loss(found, probs, features) <= alone[expert] - np.log(1 - FLOOR) + 2e-3
    assert loss(found, probs, features) <= alone[-1] + 2e-3


@given(samples(most_features=0))
def test_one_bucket_has_the_best_weights(sample):
    """Between two experts: a grid of weights finds nothing better."""
    probs = sample[0][:, -2:]
    found, (least,) = fit_gate(probs, sample[1], ())
    if probs.shape[1] == 2:
        grid = np.linspace(FLOOR, 1, 500)
        losses = [-np.log(w * probs[:, 1] + (1 - w) * probs[:, 0]).mean() for w in grid]
        assert least <= min(losses) + 2e-3
    check(found)


@given(samples())
def test_a_step_equals_the_twin(sample):
    probs, features, sizes = sample
    m = probs.shape[1]
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(m), int(np.prod(sizes)))
    sums, total, index = np.zeros_like(weights), 0.0, buckets(features, sizes)
    total = _mixture_kernels.responsibilities(probs, index, weights, sums)
    assert total == pytest.approx(np.log((weights[index] * probs).sum(axis=1)).sum(), abs=1e-9)
    for strength in (0.0, STRENGTH):
        prior = np.full(m, 1 / m)
        new = gate._normalised((sums + strength * prior)[np.unique(index)])
        twin = [
            reference.expectation_maximisation(probs[index == b], prior, weights[b], strength, FLOOR)
            for b in np.unique(index)
        ]
        np.testing.assert_allclose(new, twin, atol=1e-12)


@given(samples(), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_buckets_number_the_combinations(sample, values):
    _, features, sizes = sample
    combinations = list(itertools.product(*map(range, sizes)))
    rows = np.vstack([features, np.array(values[: len(sizes)], int).reshape(1, -1)])
    assert [combinations[i] for i in buckets(rows, sizes)] == [reference.bucket(row, sizes) for row in rows.tolist()]


def test_by_hand():
    """One target, one step of weight 1 / 2 each: shares 0.9 and 0.1 of it."""
    sums = np.zeros((1, 2))
    total = _mixture_kernels.responsibilities(np.array([[0.9, 0.1]]), np.zeros(1, int), np.full((1, 2), 0.5), sums)
    assert sums.tolist() == [[0.9, 0.1]]
    assert total == pytest.approx(np.log(0.5))


def test_buckets_without_data_take_the_weights_of_the_coarser_one():
    probs = np.array([[0.9, 0.3]] * 300 + [[0.1, 0.4]] * 200)
    coarse, _ = fit_gate(probs, np.zeros((500, 0), int), ())
    fine, _ = fit_gate(probs, np.zeros((500, 1), int), (3,))
    np.testing.assert_allclose(fine.weights[1:], np.repeat(coarse.weights, 2, axis=0), atol=1e-12)
    assert fine.index(np.array([[7], [2]])).tolist() == [2, 2]


def test_few_targets_move_a_bucket_little():
    probs = np.array([[0.9, 0.1]] * 500 + [[0.1, 0.9]] * 2)
    features = np.repeat([[0], [1]], [500, 2], axis=0)
    found, _ = fit_gate(probs, features, (2,))
    assert found.weights[0, 1] < found.weights[1, 1] < found.weights[0, 1] + 2.5 / STRENGTH


def test_the_last_expert_keeps_its_share():
    probs = np.array([[1.0, 1e-9]] * 50)
    found, losses = fit_gate(probs, np.zeros((50, 1), int), (2,))
    assert found.weights.tolist() == [[1 - FLOOR, FLOOR]] * 2
    assert losses == pytest.approx([-np.log(1 - FLOOR)] * 2)


def test_an_expert_that_is_always_wrong_gets_nothing():
    found, _ = fit_gate(np.array([[0.0, 0.5, 0.2]] * 9), np.zeros((9, 1), int), (2,))
    assert found.weights[:, 0].tolist() == [0, 0]


@given(samples())
def test_an_added_expert_is_last_but_one_and_does_no_harm(sample):
    probs, features, _ = sample
    found, _ = fit_gate(*sample)
    added = np.random.default_rng(1).random(len(probs))
    larger = with_expert(found, probs, added, features)
    check(larger)
    assert larger.weights.shape[1] == probs.shape[1] + 1
    before, alone = loss(found, probs, features), -np.log(added).mean()
    now = loss(larger, np.insert(probs, -1, added, axis=1), features)
    assert now <= min(before, alone) - 2 * np.log(1 - FLOOR) + 2e-3  # of the mixture, and of the last expert
    for old, new in zip(found.weights, np.delete(larger.weights, -2, axis=1), strict=True):
        products = np.outer(old[:-1], new[:-1])  # symmetric if they are in proportion, all but the last
        np.testing.assert_allclose(products, products.T, atol=1e-12)


def test_a_perfect_added_expert_takes_over_where_it_is_right():
    probs = np.full((4000, 2), 0.01)
    features = np.stack([np.arange(4000) % 2, np.zeros(4000, int)], axis=1)
    found, _ = fit_gate(probs, features, (2, 2))
    larger = with_expert(found, probs, np.where(features[:, 0] == 1, 1.0, 0.0), features)
    assert larger.weights[:2, 1].max() < 0.05
    assert larger.weights[2, 1] > 0.9


@pytest.mark.parametrize(
    ("probs", "match"),
    [
        (np.zeros((0, 2)), "expected targets"),
        ([[0.5, np.nan]], "nan"),
        ([[np.nan, 0.5]], "nan"),
        ([[np.inf, 0.5]], "inf"),
        ([[-0.1, 0.5]], "-0.1"),
        ([[1.1, 0.5]], "1.1"),
        ([[0.5, 0.0]], "above 0 for the unigram model"),
    ],
)
def test_probabilities_that_are_none_are_refused(probs, match):
    probs = np.asarray(probs, float)
    with pytest.raises(InputError, match=match):
        fit_gate(probs, np.zeros((len(probs), 0), int), ())
    one = Gate((), np.ones((1, 2)) / 2)
    if len(probs) and not np.isfinite(probs).all():
        with pytest.raises(InputError, match=match):
            with_expert(one, np.full((len(probs), 2), 0.5), probs.max(axis=1), np.zeros((len(probs), 0), int))


def test_features_of_other_targets_are_refused():
    for features in (np.zeros((3, 1), int), np.zeros((2, 2), int)):
        with pytest.raises(InputError, match=r"features \(2, 1\), got"):
            fit_gate(np.full((2, 2), 0.5), features, (2,))
