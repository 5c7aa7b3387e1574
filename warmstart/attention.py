"""Self-attention without gradients: the weights W from hidden targets.

| symbol | shape | meaning |
|---|---|---|
| `X` | (B, b) | vectors of a window, newest first; the pivot is ``x_0`` |
| `q` | (B,) | comparisons ``<x_i, x_0>`` |
| `A` | (B,) | attention ``softmax(q W)``; the context is ``A^T X`` |
| `R` | (B,) | responsibilities, the hidden target of A |

Nothing in the data says where to look. But if position i alone predicted, it would give the token y that came the
probability ``l_i = P(y | x_i)``. The loss of the mixture ``sum_i A_i l_i`` has the gradient ``A - R`` with respect to
the attention logits, ``R_i = A_i l_i / sum_j A_j l_j``: output minus target, as in any softmax layer. So R is the
target, and the explicit solution applies with ``F_W = sum outer(q, R)``. Starting from uniform attention and repeating
is expectation-maximisation. The idea of hidden targets is from Williams and Zhao 2023 (arXiv 2311.07510); the
responsibilities are derived in docs/math.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import solution
from warmstart.accumulators import empty, run_parts, update
from warmstart.contexts import attend, superposed

ROUNDS = 12
STRETCHES, HELD_OUT = 64, 8  # of 64 stretches of windows every 8th says when to stop
ROWS = 512


@dataclass(frozen=True)
class AttentionFit:
    """Weights (B, B) float32 of every round and nats a held-out target under their mixture; the first is uniform."""

    rounds: list[NDArray[np.float32]]
    nats: list[float]

    @property
    def W(self) -> NDArray[np.float32]:  # noqa: N802 - the symbol of the papers
        """The weights of the last round, the best on the held-out windows."""
        return self.rounds[-1]


def log_normalisers(vectors: sparse.csr_array, scores: NDArray[np.floating], workers: int = 1) -> NDArray[np.float64]:
    """Return ``logsumexp_y (x_t . scores)`` for every token t: (V,) from vectors (V, b) and scores (b, C)."""

    def part(start: int) -> NDArray[np.floating]:
        z = vectors[start : start + ROWS] @ scores
        top = z.max(axis=1)
        np.exp(z - top[:, None], out=z)
        return np.asarray(np.log(z.sum(axis=1)) + top)

    return np.concatenate(run_parts(part, range(0, vectors.shape[0], ROWS), workers)).astype(np.float64)


def comparisons(window: NDArray[np.int64], vectors: sparse.csr_array) -> NDArray[np.float64]:
    """Return ``q`` (n, B) of windows (B, n)."""
    from warmstart import _kernels  # numba is loaded here, not on import

    q = np.empty((window.shape[1], window.shape[0]))
    _kernels.compare(window, vectors.indptr, vectors.indices, vectors.data, q)
    return q


def solve_attention(q: NDArray[np.float64], R: NDArray[np.float64], workers: int = 1) -> NDArray[np.float32]:
    """Return W (B, B) from comparisons and hidden targets, both (n, B): one softmax layer, its temperature fitted."""
    size = q.shape[1]
    F = empty(size, size)
    targets = sparse.csr_array(R)
    update(F, q, np.arange(R.shape[0]), targets)
    prior = solution.marginal_prior(F)
    stride = max(1, R.shape[0] // 4096)
    sample = solution.Sample([q[::stride]], targets[::stride])
    found = solution.fit(sample, [F], prior, k=F.mean_norm, smoothing=1.0, workers=workers)
    return solution.solve([F], prior, k=F.mean_norm, smoothing=1.0, temperatures=found.temperatures)


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
    """Find W by expectation-maximisation until the held-out mixture no longer improves.

    Parameters
    ----------
    window : (B, n) int64
        Token ids, newest first, all positions filled.
    targets : (n,) int64
        The token that came next.
    vectors : (V, b) csr_array
        Non-negative vectors of unit L1 norm.
    prior : (V,)
        Token probabilities.
    smoothing : float
        Of the values ``P(y | x_i)``, in co-occurrences.
    progress : callable of (round, nats), optional

    Returns
    -------
    AttentionFit
        Up to the round that was best on the held-out windows.
    """
    size, n = window.shape
    held = np.arange(n) * STRETCHES // n % HELD_OUT == HELD_OUT - 1
    parts = [(np.ascontiguousarray(window[:, side]), targets[side]) for side in (~held, held)]
    (train, y), (check, y_check) = parts
    q = comparisons(train, vectors)
    A, A_check = (np.full((w.shape[1], size), 1.0 / size, dtype=np.float32) for w in (train, check))
    rounds, nats = [np.zeros((size, size), dtype=np.float32)], [np.inf]
    for round_ in range(ROUNDS + 1):
        values = empty(vectors.shape[1], prior.size)
        update(values, superposed(train, A, vectors), y, workers=workers)
        scores = solution.solve([values], prior, k=1.0, smoothing=smoothing, temperatures=np.ones(1))
        norm = log_normalisers(vectors, scores, workers)
        now = _mixture(check, y_check, A_check, vectors, scores, norm)[0]
        if progress:
            progress(round_, now)
        if now > nats[-1] - 1e-4:
            break
        nats.append(now)
        W = solve_attention(q, _mixture(train, y, A, vectors, scores, norm)[1], workers)
        rounds.append(W)
        A, A_check = attend(train, W, vectors), attend(check, W, vectors)
    return AttentionFit(rounds[:-1], nats[1:])


def _mixture(
    window: NDArray[np.int64],
    targets: NDArray[np.int64],
    A: NDArray[np.float32],
    vectors: sparse.csr_array,
    scores: NDArray[np.floating],
    norm: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """Return the mixture's nats a target and the responsibilities (n, B)."""
    from warmstart import _kernels  # numba is loaded here, not on import

    R = np.empty(A.shape)
    rows = (vectors.indptr, vectors.indices, vectors.data)
    total = _kernels.responsibilities(window, targets, A, *rows, scores, norm, R)
    return -total / targets.size, R
