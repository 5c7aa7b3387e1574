"""The statements of docs/math.md, in numbers. The expected values are written out in float64."""

import re
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import log_softmax, softmax
from sklearn.naive_bayes import MultinomialNB

from bitcipher import codes
from warmstart import _kernels, accumulators, contexts, solution
from warmstart.gate import FLOOR, Gate
from warmstart.layers.gate import MixtureGate
from warmstart.near_shallow import cipher_vectors

ONE = np.ones(1)
ROOT = Path(__file__).parents[1]
CITED = sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "math.md").read_text())))


@pytest.mark.parametrize(("file", "name"), CITED)
def test_every_cited_test_exists(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def counted(X, Y):
    """Accumulate inputs (n, D) and target distributions (n, C)."""
    accumulator = accumulators.empty(X.shape[1], Y.shape[1])
    accumulators.update(accumulator, X, np.arange(len(Y)), sparse.csr_array(Y))
    return accumulator


def norms_of(X, norm):
    """Scale rows to an L1 norm."""
    return X / X.sum(axis=1, keepdims=True) * norm


def numeric_gradient(f, at, step=1e-6):
    out = np.empty_like(at)
    for i in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[i] = step
        out[i] = (f(at + shift) - f(at - shift)) / (2 * step)
    return out


def spread(a):
    """Largest difference within a row: 0 if rows are constant, which no softmax sees."""
    return np.ptp(a, axis=-1).max()


# 1. Bit cipher


@pytest.mark.parametrize("bits", [1, 2, 7, 10])
def test_cipher_uses_up_every_weight_before_the_next(bits):
    packed = codes.assign_codes(2**bits - 1, bits)
    assert len(np.unique(packed)) == 2**bits - 1
    sizes = [comb(bits, weight) for weight in range(1, bits + 1)]
    assert codes.code_weights(packed).tolist() == np.repeat(np.arange(1, bits + 1), sizes).tolist()


def test_nothing_is_closer_to_a_token_than_itself():
    E = cipher_vectors(2**7 - 1, 7).toarray()
    near = E @ E.T
    weights = (E > 0).sum(axis=1)
    np.testing.assert_allclose(near.diagonal(), 1 / weights, rtol=1e-6)
    assert (near <= 1 / np.maximum.outer(weights, weights) + 1e-7).all()


# 2. Explicit solution


def test_gradient_of_a_softmax_layer_is_expected_minus_observed(rng):
    X, Y, U = rng.random((20, 4)), rng.dirichlet(np.ones(3), 20), rng.normal(size=(4, 3))
    gradient = numeric_gradient(lambda U: -(Y * log_softmax(X @ U, axis=1)).sum(), U)
    np.testing.assert_allclose(gradient, X.T @ softmax(X @ U, axis=1) - counted(X, Y).F, atol=1e-7)


def test_one_hot_inputs_and_k_1_are_the_exact_minimum(rng):
    X, Y = np.eye(4)[rng.integers(4, size=200)], rng.dirichlet(np.ones(3), 200)
    prior = Y.mean(axis=0)
    U = solution.solve([counted(X, Y)], prior, k=1, smoothing=0, temperatures=ONE, dtype=np.float64)
    np.testing.assert_allclose(X.T @ (softmax(X @ U, axis=1) - Y), 0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2.5, 100])
def test_temperature_1_is_the_published_formula(rng, k):
    F = accumulators.Accumulator(rng.random((3, 6)), 10)  # (C, D)
    total = F.F.sum(axis=0)
    U = solution.solve([F], total / total.sum(), k=k, smoothing=0, temperatures=ONE, dtype=np.float64)
    assert spread(U - (np.log(F.F) - (k - 1) / k * np.log(total))) < 1e-12


def test_prior_has_the_exponent_norm_over_k(rng):
    X, p, k = 5 * rng.random((20, 6)), rng.dirichlet(np.ones(3)), 2.5
    F = accumulators.Accumulator(rng.random((3, 6)), 10)
    U = solution.solve([F], p, k=k, smoothing=0, temperatures=ONE, dtype=np.float64)
    likelihood = X @ np.log(F.F / F.F.sum(axis=0))
    np.testing.assert_allclose(X @ U, likelihood + X.sum(axis=1, keepdims=True) / k * np.log(p))


def test_equals_multinomial_naive_bayes(rng):
    X, y = norms_of(rng.random((300, 6)), 2.5), rng.integers(3, size=300)
    F = counted(X, np.eye(3)[y])
    assert F.mean_norm == pytest.approx(2.5)
    prior = solution.class_prior(np.bincount(y))
    U = solution.solve([F], prior, k=F.mean_norm, smoothing=0, temperatures=ONE, dtype=np.float64)
    bayes = MultinomialNB(alpha=1e-10).fit(X, y)
    np.testing.assert_allclose(log_softmax(X @ U, axis=1), bayes.predict_log_proba(X), atol=1e-9)


def test_smoothing_of_balanced_classes_is_that_of_naive_bayes(rng):
    X, y = norms_of(rng.random((300, 6)), 2.5), np.arange(300) % 3
    prior, F = np.full(3, 1 / 3), counted(X, np.eye(3)[y])
    U = solution.solve([F], prior, k=F.mean_norm, smoothing=30, temperatures=ONE, dtype=np.float64)
    bayes = MultinomialNB(alpha=10).fit(X, y)
    np.testing.assert_allclose(log_softmax(X @ U, axis=1), bayes.predict_log_proba(X), atol=1e-9)


# 3. Smoothing


def test_smoothing_is_a_dirichlet_prior_around_the_class_prior(rng):
    X, Y, eps = np.eye(5)[rng.integers(4, size=50)], rng.dirichlet(np.ones(3), 50), 7.0  # feature 4 never occurs
    F, p = counted(X, Y), Y.mean(axis=0)
    U = solution.solve([F], p, k=1, smoothing=eps, temperatures=ONE, dtype=np.float64)
    expected = (F.F + eps * p) / (F.F.sum(axis=1, keepdims=True) + eps)
    np.testing.assert_allclose(softmax(U, axis=1), expected)
    np.testing.assert_allclose(expected[4], p)


# 4. Temperatures


@pytest.fixture
def two_groups(rng):
    """Return a sample of two groups of inputs, the first informative, its accumulators and its prior."""
    y = rng.integers(4, size=600)
    near = norms_of(rng.random((600, 6)) + np.eye(6)[y], 1)
    far = norms_of(rng.random((600, 5)), 1)
    Y = np.eye(4)[y]
    sample = solution.Sample([near, far], sparse.csr_array(Y))
    return sample, [counted(near, Y), counted(far, Y)], solution.class_prior(np.bincount(y))


def test_loss_is_convex_in_the_temperatures(two_groups, rng):
    loss = solution.CrossEntropy(*two_groups, k=2, smoothing=3)
    for _ in range(50):
        a, b, t = 10 * rng.random(2), 10 * rng.random(2), rng.random()
        assert loss(t * a + (1 - t) * b)[0] <= t * loss(a)[0] + (1 - t) * loss(b)[0] + 1e-6


def test_gradient_in_the_temperatures(two_groups):
    loss, at = solution.CrossEntropy(*two_groups, k=2, smoothing=3), np.array([1.5, 0.5])
    numeric = numeric_gradient(lambda tau: loss(tau)[0], at, step=1e-2)  # the scores are float32
    np.testing.assert_allclose(loss(at)[1], numeric, rtol=1e-3, atol=1e-5)


def test_evidence_seen_twice_halves_the_temperature(two_groups):
    sample, (F, _), prior = two_groups
    X, targets = sample.groups[0], sample.targets
    copies = np.hstack([X, X])
    doubled = solution.Sample([copies], targets), [counted(copies, targets.toarray())]
    once = solution.CrossEntropy(solution.Sample([X], targets), [F], prior, k=1, smoothing=3)
    twice = solution.CrossEntropy(*doubled, prior, k=2, smoothing=3)
    for tau in (0.5, 1.0, 4.0):
        assert twice(np.array([tau / 2]))[0] == pytest.approx(once(np.array([tau]))[0], abs=1e-6)


@pytest.mark.parametrize("as_inputs", [np.asarray, sparse.csr_array])
def test_leave_one_out_equals_recounting(rng, as_inputs):
    X, Y, eps = rng.random((30, 5)) * rng.integers(2, size=(30, 5)), rng.dirichlet(np.ones(3), 30), 2.0
    p = Y.mean(axis=0)
    scores = solution.leave_one_out(as_inputs(X), sparse.csr_array(Y), counted(X, Y), p, eps)
    expected = []
    for n in range(30):
        F = X.T @ Y - np.outer(X[n], Y[n]) + eps * p
        expected.append(X[n] @ np.log(F / F.sum(axis=0)))
    np.testing.assert_allclose(scores, np.ravel(expected))


def test_leave_one_out_does_not_see_repetition_within_a_document(rng):
    word, topic = np.repeat(np.arange(20), 10), np.repeat(rng.integers(2, size=20), 10)  # a document: 1 word, 10 times
    X, Y = np.eye(20)[word], np.eye(2)[topic]
    F, p = counted(X, Y), np.full(2, 0.5)
    scores = solution.leave_one_out(X, sparse.csr_array(Y), F, p, 1.0)
    U = np.log((F.F - 10 * np.eye(20)[:, word[::10]] @ Y[::10] + p) / 200)  # whole documents left out: words unseen
    assert spread(U) < 1e-12
    assert scores.mean() > U.mean() + 2


def test_temperature_0_switches_a_group_off(two_groups):
    sample, (near, far), prior = two_groups
    both = solution.CrossEntropy(sample, [near, far], prior, k=2, smoothing=3)
    alone = solution.CrossEntropy(solution.Sample(sample.groups[:1], sample.targets), [near], prior, k=1, smoothing=3)
    for tau in (0.0, 0.7, 4.0):
        assert both(np.array([tau, 0.0]))[0] == pytest.approx(alone(np.array([tau]))[0], abs=1e-6)


def test_another_group_cannot_raise_the_fitted_loss(two_groups):
    sample, (near, far), prior = two_groups
    alone = solution.fit(solution.Sample(sample.groups[:1], sample.targets), [near], prior, k=1, smoothing=3)
    both = solution.fit(sample, [near, far], prior, k=2, smoothing=3)
    assert both.cross_entropy <= alone.cross_entropy + 1e-5


# 5. Attention


def mixture(attention, likelihood):
    """Return the log-likelihood of `sum_i A_i l_i` over targets, and R (n, B), by the package's kernel.

    likelihood (n, B): what position i of window n gives the target 0.
    """
    n, size = likelihood.shape
    window = np.arange(n * size).reshape(n, size).T  # each position has another token
    one_hot = (np.arange(n * size + 1), np.arange(n * size), np.ones(n * size))
    R = np.empty((n, size))
    A, targets = np.tile(attention, (n, 1)), np.zeros(n, np.int64)
    scores = np.log(likelihood.reshape(-1, 1))
    total = _kernels.responsibilities(window, targets, A, *one_hot, scores, np.zeros(n * size), R)
    return total, R


def test_gradient_of_the_mixture_is_attention_minus_responsibilities(rng):
    a, likelihood = rng.normal(size=6), rng.random((1, 6))
    gradient = numeric_gradient(lambda a: -mixture(softmax(a), likelihood)[0], a)
    np.testing.assert_allclose(gradient, softmax(a) - mixture(softmax(a), likelihood)[1][0], atol=1e-9)


def test_expectation_maximisation_never_lowers_the_likelihood(rng):
    likelihood = rng.random((200, 6)) ** 4
    A, totals = np.full(6, 1 / 6), []
    for _ in range(30):
        total, R = mixture(A, likelihood)
        totals.append(total)
        A = R.mean(axis=0)
    assert (np.diff(totals) > -1e-9).all()
    assert totals[-1] > totals[0] + 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_shorter_windows_use_the_corner_of_the_weights(rng, length):
    vectors, W = cipher_vectors(20, 6), rng.normal(size=(5, 5))
    window = rng.integers(20, size=(5, 30))
    window[length:] = -1
    A = contexts.attend(window, W, vectors)
    x = vectors.toarray().astype(np.float64)[window[:length]]  # (L, n, b)
    q = np.einsum("inb,nb->ni", x, x[0])
    np.testing.assert_allclose(A[:, :length], softmax(q @ W[:length, :length], axis=1), rtol=1e-6)
    assert not A[:, length:].any()


# 6. Values


def test_value_layer_predicts_the_mean_label_embedding(rng):
    labels = cipher_vectors(9, 4).toarray().astype(np.float64)
    X, Y = np.eye(3)[rng.integers(3, size=100)], labels[rng.integers(9, size=100)]
    F = counted(X, Y)
    U = solution.solve([F], Y.mean(axis=0), k=1, smoothing=0, temperatures=ONE, dtype=np.float64)
    means = [Y[X[:, d] == 1].mean(axis=0) for d in range(3)]
    np.testing.assert_allclose(softmax(U, axis=1), means)


def test_values_before_or_after_superposing_are_the_same(rng):
    vectors, U = cipher_vectors(20, 6), rng.normal(size=(6, 4)).astype(np.float32)
    window, A = rng.integers(-1, 20, size=(5, 30)), rng.dirichlet(np.ones(5), 30).astype(np.float32)
    after = contexts.superposed(window, A, vectors) @ U
    np.testing.assert_allclose(contexts.superposed_rows(window, A, vectors @ U), after, atol=1e-6)


# 11. The gate beside a network


def beside(rng, n=6, m=4, width=8):
    """Return a fitted gate, the trained one that reads a state, states, buckets, and what counted experts say."""
    weights = rng.dirichlet(np.ones(m), 5) * (1 - FLOOR) + FLOOR * np.eye(m)[-1]
    fitted = Gate((5,), weights)
    drawn = rng.normal(size=(n, width)), rng.integers(5, size=n), rng.random((n, m - 1))
    gate = MixtureGate(fitted, torch.float64, width)
    return (fitted, gate, *map(torch.from_numpy, drawn))


def test_a_gate_that_reads_a_state_starts_as_the_one_that_was_fitted(rng):
    fitted, gate, h, buckets, _ = beside(rng)
    np.testing.assert_allclose(gate.weights(buckets, h).detach(), fitted.weights[buckets], atol=1e-12)
    with torch.no_grad():
        gate.state.copy_(torch.from_numpy(rng.normal(size=gate.state.shape)))
    free = fitted.weights[buckets] - FLOOR * np.eye(4)[-1]
    share = softmax(np.log(free) + h.numpy() @ gate.state.detach().numpy().T / 10, axis=1)
    expected = FLOOR * np.eye(4)[-1] + (1 - FLOOR) * share
    np.testing.assert_allclose(gate.weights(buckets, h).detach(), expected, atol=1e-12)


def test_beside_counts_a_network_learns_by_its_responsibility(rng):
    fitted, gate, h, buckets, probs = beside(rng)
    z, y = torch.from_numpy(rng.normal(size=(6, 9))).requires_grad_(), torch.from_numpy(rng.integers(9, size=6))
    nats = -z.log_softmax(1).gather(1, y[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(gate.nats(nats, probs, buckets, h).sum(), z)
    q, own = softmax(z.detach().numpy(), axis=1), np.exp(-nats.detach().numpy())
    weights = fitted.weights[buckets]
    P = (weights[:, [0, 1, 3]] * probs.numpy()).sum(axis=1) + weights[:, 2] * own
    R = weights[:, 2] * own / P
    np.testing.assert_allclose(gradient, R[:, None] * (q - np.eye(9)[y]), atol=1e-12)
