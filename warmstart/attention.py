"""Self-attention without gradients: its weights W are solved from hidden targets.

| symbol | shape | meaning |
|---|---|---|
| `X` | (B, b) | vectors of a window, newest first; the newest, ``x_0``, is the pivot |
| `q` | (B,) | comparisons ``<x_i, x_0>`` |
| `A` | (B,) | attention ``softmax(q W)``; the context is ``A^T X`` |
| `R` | (B,) | responsibilities: the hidden target of A |

The data do not say where to look. But position i alone would give the token y that came next the probability
``l_i = P(y | x_i)``. The loss of the mixture ``sum_i A_i l_i`` has the gradient ``A - R`` with respect to the attention
logits, where ``R_i = A_i l_i / sum_j A_j l_j``. This is output minus target, as in any softmax layer. So R is the
target, and the explicit solution applies with ``F = sum outer(q, R)``. Repeating this from uniform attention is
expectation-maximisation. The idea of hidden targets is from Williams and Zhao 2023 (arXiv 2311.07510); docs/math.md
derives the responsibilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import solution
from warmstart._softmax import log_sum_exp
from warmstart._threads import blocks, run_parts
from warmstart.accumulators import empty, update
from warmstart.contexts import attend, superposed

ROUNDS = 12
STRETCHES, HELD_OUT_EVERY = 64, 8  # the windows form 64 stretches; every 8th decides when to stop
LEAST_GAIN = 1e-4  # nats per held-out target that a round must gain
TOKENS_PER_BLOCK = 512
SAMPLE = 4096  # about as many windows fit the temperature of W


@dataclass(frozen=True)
class AttentionFit:
    """Weights of every round, (B, B) float32, and the mixture's loss on the held-out windows, in nats per target.

    The first round is uniform attention, the last one the best. ``bounds`` are those of its `warmstart.solution.Fit`.
    """

    rounds: list[NDArray[np.float32]]
    held_out_losses: list[float]
    bounds: tuple[str, ...]

    @property
    def W(self) -> NDArray[np.float32]:  # noqa: N802 - the symbol of the papers
        """The weights of the last round."""
        return self.rounds[-1]


def log_normalisers(vectors: sparse.csr_array, scores: NDArray[np.floating], workers: int = 1) -> NDArray[np.float64]:
    """Return the log-normaliser of the logits ``x_t . scores`` of each token t, (V,); ``scores`` are weights (b, C)."""
    tokens = blocks(vectors.shape[0], TOKENS_PER_BLOCK)
    parts = run_parts(lambda block: log_sum_exp(vectors[block] @ scores), tokens, workers)
    return np.concatenate(parts).astype(np.float64)


def solve_attention(
    q: NDArray[np.float64], R: NDArray[np.float64], workers: int = 1
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return W (B, B) from comparisons and hidden targets, (n, B) each: a softmax layer with a fitted temperature.

    The second value says what the fit left at a bound, see `warmstart.solution.Fit`.
    """
    size = q.shape[1]
    F = empty(size, size)
    targets = sparse.csr_array(R)
    update(F, q, np.arange(R.shape[0]), targets)
    prior = solution.marginal_prior(F)
    stride = max(1, R.shape[0] // SAMPLE)
    sample = solution.Sample([q[::stride]], targets[::stride])
    fit = solution.fit(sample, [F], prior, k=F.mean_norm, smoothing=1.0, workers=workers)
    return solution.solve([F], prior, k=F.mean_norm, smoothing=1.0, temperatures=fit.temperatures), fit.bounds


def fit_attention(
    window: NDArray[np.int64],
    targets: NDArray[np.int64],
    vectors: sparse.csr_array,
    prior: NDArray[np.float64],
    *,
    smoothing: float = 100.0,
    workers: int = 1,
    progress: Callable[[int, float], None] | None = None,
) -> AttentionFit:
    """Find W by expectation-maximisation, up to the round whose mixture is best on held-out windows.

    Parameters
    ----------
    window : (B, n) int64
        Token ids, newest first; every position is filled.
    targets : (n,) int64
        The token that came next.
    vectors : (V, b) csr_array
        Non-negative vectors of unit L1 norm.
    prior : (V,)
        Token probabilities.
    smoothing : float
        Smoothing of the probabilities ``P(y | x_i)``, in co-occurrences.
    workers : int
        Number of threads; the result does not depend on it.
    progress : callable of (round, loss), optional
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    size, n = window.shape
    held_out = np.arange(n) * STRETCHES // n % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train, check = (np.ascontiguousarray(window[:, rows]) for rows in (~held_out, held_out))
    y, y_check = targets[~held_out], targets[held_out]
    q = np.empty((train.shape[1], size))
    _kernels.compare(train, vectors.indptr, vectors.indices, vectors.data, q)
    A, A_check = (np.full((w.shape[1], size), 1.0 / size, dtype=np.float32) for w in (train, check))
    rounds, losses = [np.zeros((size, size), dtype=np.float32)], [np.inf]
    bounds: list[tuple[str, ...]] = [()]
    for round_ in range(ROUNDS + 1):
        F = empty(vectors.shape[1], prior.size)
        update(F, superposed(train, A, vectors), y, workers=workers)
        scores = solution.solve([F], prior, k=1.0, smoothing=smoothing, temperatures=np.ones(1))
        norm = log_normalisers(vectors, scores, workers)
        loss = mixture(check, y_check, A_check, vectors, scores, norm)[0]
        if progress:
            progress(round_, loss)
        if loss > losses[-1] - LEAST_GAIN:
            break
        losses.append(loss)
        W, at_bounds = solve_attention(q, mixture(train, y, A, vectors, scores, norm)[1], workers)
        rounds.append(W)
        bounds.append(at_bounds)
        A, A_check = attend(train, W, vectors), attend(check, W, vectors)
    return AttentionFit(rounds[:-1], losses[1:], bounds[-2])


def mixture(
    window: NDArray[np.int64],
    targets: NDArray[np.int64],
    A: NDArray[np.float32],
    vectors: sparse.csr_array,
    scores: NDArray[np.floating],
    norm: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """Return the mixture's loss, in nats per target, and the responsibilities (n, B).

    window (B, n); targets (n,); attention A (n, B); ``scores`` (b, V) are the weights that turn a vector into logits,
    ``norm`` (V,) the log-normalisers of the tokens.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    R = np.empty(A.shape)
    rows = (vectors.indptr, vectors.indices, vectors.data)
    total = _kernels.responsibilities(window, targets, A, *rows, scores, norm, R)
    return -total / targets.size, R
