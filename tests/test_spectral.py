from dataclasses import replace

import numpy as np
import pytest
import reference
from scipy import sparse

from warmstart import spectral
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.spectral import Bigram, Factors, factorise, frame, refit_columns, refit_rows, residual


def chain(vocab_size, n=300_000, seed=0):
    """Tokens of a chain in which every token has a few likely successors."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, vocab_size, (vocab_size, 4))
    tokens, draw, jump = np.zeros(n, np.int64), rng.integers(0, 4, n), rng.random(n) < 0.1
    anywhere = rng.zipf(1.3, n) % vocab_size
    for i in range(1, n):
        tokens[i] = anywhere[i] if jump[i] else successors[tokens[i - 1], draw[i]]
    return tokens


TOKENS = chain(65)
STATISTICS = count_pairs(TOKENS, 65)


@pytest.fixture(scope="module")
def bigram():
    return Bigram.of(STATISTICS.pairs)


def dense(bigram):
    return bigram.discounted.toarray() + np.outer(bigram.backoff, bigram.prior)


def test_bigram_is_the_readable_one_also_without_counts():
    counts = np.array([[0, 3, 1], [1, 0, 0], [0, 0, 0]])
    bigram = Bigram.of(sparse.csr_array(counts))
    discount = 2 / (2 + 0)  # pairs seen once and twice: 2 and 0, so 1, limited to 0.9
    assert discount > 0.9
    np.testing.assert_allclose(dense(bigram), reference.discounted_bigram(counts, 0.9, bigram.prior), atol=1e-7)


def test_log_ratio_gives_the_bigram_back(bigram):
    z = bigram.log_ratio().toarray() + bigram.log_prior
    P = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(P, dense(bigram), atol=1e-6)


@pytest.mark.parametrize("workers", [1, 2])
def test_refits_are_the_readable_ones(bigram, workers, monkeypatch):
    monkeypatch.setattr(spectral, "ROWS_PER_BLOCK", 16)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 65, 9)).astype(np.float32)
    rows, P = np.arange(65), dense(bigram)
    expected = reference.refit_rows(P, A.astype(float), B.astype(float), bigram.prior, spectral.DAMPING)
    np.testing.assert_allclose(refit_rows(bigram, A, B, rows, workers), expected, atol=2e-5)
    expected = reference.refit_columns(
        P, A.astype(float), B.astype(float), bigram.prior, bigram.share, spectral.DAMPING, spectral.STEP_B
    )
    np.testing.assert_allclose(refit_columns(bigram, A, B, rows, workers), expected, atol=2e-5)


def test_rows_that_do_not_take_part_stay(bigram):
    A, B = np.random.default_rng(0).normal(size=(2, 65, 9)).astype(np.float32)
    out = refit_rows(bigram, A, B, np.array([3, 5]))
    assert (np.flatnonzero((out != A).any(axis=1)) == [3, 5]).all()


def test_the_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(spectral, "ROWS_PER_BLOCK", 16)
    one, two = (factorise(STATISTICS, 20, workers=workers) for workers in (1, 2))
    assert one.A.tobytes() == two.A.tobytes()
    assert one.B.tobytes() == two.B.tobytes()


def test_refits_and_rank_help_on_held_out_pairs():
    without, refitted, full = factorise(STATISTICS, 20, sweeps=0), factorise(STATISTICS, 20), factorise(STATISTICS, 60)
    unigram = spectral.HeldOutLoss(STATISTICS.held_out, np.arange(65), Bigram.of(STATISTICS.pairs).log_prior)
    assert (
        full.held_out_loss
        < refitted.held_out_loss
        < without.held_out_loss
        < unigram(np.zeros((65, 1)), np.zeros((65, 1)))
    )
    assert refitted.sweeps > 0


def test_nearly_full_rank_is_the_bigram(bigram):
    factors = factorise(STATISTICS, 64, sweeps=0)
    judge = spectral.HeldOutLoss(STATISTICS.held_out, np.arange(65), bigram.log_prior)
    held_out = STATISTICS.held_out.toarray()
    exact = -(held_out * np.log(dense(bigram))).sum() / held_out.sum()
    assert judge(factors.A, factors.B) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(("rank", "message"), [(7, "expected 8 to 64"), (65, "expected 8 to 64")])
def test_a_rank_that_cannot_be_is_refused(rank, message):
    with pytest.raises(InputError, match=message):
        factorise(STATISTICS, rank)


@pytest.mark.parametrize("length", [2, 3, 1000, 131_000])
def test_little_text_gets_the_default_exponents_and_rank(length):
    statistics = count_pairs(TOKENS[:length], 65)
    factors = factorise(statistics, 40)
    assert (factors.rank, factors.exponents, factors.sweeps) == (40, (0.35, 0.35), 0)
    assert factors.held_out_loss is None
    bigram = spectral.Bigram.of(statistics.pairs)
    A, B = spectral.decompose(bigram, (0.35, 0.35), 40)
    np.testing.assert_array_equal(factors.A @ factors.B.T, A @ B.T)
    seen = np.arange(65)
    judge = spectral.HeldOutLoss(statistics.pairs, seen, bigram.log_prior)
    assert judge(factors.A, factors.B) < judge(0 * A, 0 * B)  # better than the unigram on its own text


def test_counts_without_pairs_are_refused():
    none = count_pairs(TOKENS[:2], 65)
    none = replace(none, pairs=none.pairs - none.pairs)
    none.pairs.eliminate_zeros()
    with pytest.raises(InputError, match="expected counts of pairs, got none"):
        factorise(none, 8)


@pytest.mark.parametrize("width", [16, 33, 64])
def test_frames_are_orthonormal_and_centred(width):
    whole, centred = frame(width, centred=False), frame(width, centred=True)
    np.testing.assert_allclose(whole @ whole.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(centred @ centred.T, np.eye(width - 1), atol=1e-12)
    np.testing.assert_allclose(centred.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("scale", [0.02, 0.5])
def test_the_norm_gives_the_logits_back(centred, scale):
    rng = np.random.default_rng(0)
    A, B, log_prior = rng.normal(size=(30, 9)), rng.normal(size=(30, 9)), np.log(rng.dirichlet(np.ones(30)))
    factors = Factors(A, B, log_prior, (0.5, 0.5), 0, 0.0)
    E, eps = residual(factors, 16, scale=scale, centred=centred, eps=1e-3, spare=2, spare_share=0.5), 1e-3
    position = 0.5 * scale * 4 * E.axes[-1]  # of half the norm of a token, sqrt(16) scale
    x = E.E + position
    x = x - x.mean(axis=1, keepdims=True) if centred else x
    logits = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) @ E.W.T
    expected = A @ B.T + log_prior
    unclipped = np.linalg.norm(A, axis=1) < np.quantile(np.linalg.norm(A, axis=1), 0.95)
    difference = (logits - expected)[unclipped]
    np.testing.assert_allclose(difference - difference.mean(axis=1, keepdims=True), 0, atol=1e-4)
    np.testing.assert_allclose(np.sqrt((E.E**2).mean(axis=1)), scale, rtol=1e-5)


def test_a_width_that_does_not_hold_the_rank_is_refused():
    factors = Factors(np.ones((30, 9)), np.ones((30, 9)), np.zeros(30), (0.5, 0.5), 0, 0.0)
    with pytest.raises(InputError, match="expected at least 14 for rank 9, got 13"):
        residual(factors, 13, scale=0.1, centred=True, eps=0.0, spare=2)
