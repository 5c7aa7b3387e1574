import numpy as np
import pytest
from scipy import sparse

from warmstart import contexts
from warmstart.attention import fit_attention, log_normalisers, solve_attention
from warmstart.near_shallow import cipher_vectors
from warmstart.solution import class_prior

V, B = 24, 6


def windows(age, certainty=0.8, n=12_000, seed=0):
    """Return windows (B, n) and targets of a text where a token depends on the one ``age`` tokens back."""
    rng = np.random.default_rng(seed)
    follows, tokens = rng.permutation(V), rng.integers(V, size=n + B)
    for i in range(age, tokens.size):
        if rng.random() < certainty:
            tokens[i] = follows[tokens[i - age]]
    return np.stack([tokens[B - 1 - i : B - 1 - i + n] for i in range(B)]), tokens[B : B + n]


def fitted(window, targets, vectors, **options):
    return fit_attention(window, targets, vectors, class_prior(np.bincount(targets, minlength=V)), **options)


@pytest.mark.parametrize("age", [1, 3, 5])
@pytest.mark.parametrize("bits", [7, V])  # at V bits the vectors are one-hot
def test_attention_finds_the_token_that_matters(age, bits):
    window, targets = windows(age)
    vectors = cipher_vectors(V, bits)
    fit = fitted(window, targets, vectors, smoothing=1.0)
    A = contexts.attend(window, fit.W, vectors).mean(axis=0)
    assert A.argmax() == age - 1  # index 0 is one token back
    assert A[age - 1] > 0.7
    assert min(fit.held_out_losses) < fit.held_out_losses[0] - 0.3
    assert (np.diff(fit.held_out_losses) < 0).all()


def test_nothing_to_find_stops_early_and_stays_finite():
    window, targets = windows(1, certainty=0.0)
    fit = fitted(window, targets, cipher_vectors(V, 7))
    assert len(fit.held_out_losses) <= 3
    assert np.isfinite(fit.W).all()
    assert fit.held_out_losses[0] == pytest.approx(np.log(V), abs=0.02)


def test_same_bits_for_any_number_of_workers():
    window, targets = windows(3)
    vectors = cipher_vectors(V, 7)
    one, two = (fitted(window, targets, vectors, workers=workers) for workers in (1, 2))
    assert one.W.tobytes() == two.W.tobytes()
    assert one.held_out_losses == two.held_out_losses


def test_progress_reports_every_round():
    window, targets = windows(3)
    reported = []
    fit = fitted(window, targets, cipher_vectors(V, 7), progress=lambda *round_: reported.append(round_))
    assert reported[: len(fit.held_out_losses)] == list(
        enumerate(fit.held_out_losses)
    )  # and then perhaps one that did not help


@pytest.mark.parametrize("size", [1, 511, 512, 513])
def test_log_normalisers_equal_a_dense_sum(size):
    scores = np.random.default_rng(0).normal(size=(10, 40))
    vectors = cipher_vectors(size, 10)
    expected = np.log(np.exp(vectors.toarray() @ scores).sum(axis=1))
    np.testing.assert_allclose(log_normalisers(vectors, scores), expected, rtol=1e-5)


def test_solved_attention_follows_the_comparisons():
    rng = np.random.default_rng(0)
    which = rng.integers(3, size=2000)
    q = 0.1 * rng.random((2000, 3)) + np.eye(3)[which]
    R = sparse.csr_array(np.eye(3)[which]).toarray()
    assert ((q @ solve_attention(q, R)[0]).argmax(axis=1) == which).mean() > 0.99
