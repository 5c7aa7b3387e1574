"""Spectral warm start: a bigram model of low rank, and its place in the residual stream of a transformer.

| symbol | shape | meaning |
|---|---|---|
| `Y` | (V, V) | bigram with absolute discounting, ``max(N_st - delta, 0) / N_s + backoff_s p_t`` for t after s |
| `M` | (V, V) | ``log(Y_st / (backoff_s p_t))``, sparse: 0 for unseen pairs; ``softmax(M + log p)`` is Y |
| `A`, `B` | (V, r) | factors, `Phi` and `Psi` in docs/math.md, with rows ``a_s`` and ``b_t`` |
| `P` | (V, V) | ``softmax(A B^T + log p)``, a bigram model of rank r |
| `E`, `W` | (V, d) | embedding of a transformer that holds the factors, and its head, `O^T` in docs/math.md |

First ``diag(p**a) M diag(p**b)`` is factorised. Then A and B are refitted in turn to lower the cross-entropy with Y.
Sources: Levy and Goldberg 2014 (NeurIPS, word vectors as factorised log ratios), Ney, Essen and Kneser 1994 (Computer
Speech and Language 8, discounting), Boehning 1992 (Annals of the Institute of Statistical Mathematics 44, Newton steps
of a softmax with one curvature for all rows).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from warmstart._softmax import log_sum_exp, softmax
from warmstart._threads import blocks, run_parts
from warmstart.counts import NGrams, PairStatistics, discounted
from warmstart.errors import InputError
from warmstart.progress import Progress
from warmstart.solution import class_prior

EXPONENTS = ((0.25, 0.25), (0.35, 0.35), (0.35, 0.5))  # of the weights p**a of rows and p**b of columns
LITTLE_TEXT = (0.35, 0.35)  # without held-out pairs
FREQUENT = 1024  # tokens on which exponents and rank are chosen
COVERED_SHARE = 0.9  # share of the text whose rows take part in every sweep; the last refit takes all rows
STEP_B = 0.3  # length of the Newton step of B; that of A is 1
DAMPING = 10.0  # of the curvature, in units of its mean diagonal: one curvature does not fit all rows
ROWS_PER_BLOCK = 512  # rows of logits computed at once
LEAST_RANK = 8
LEAST_GAIN = 1e-3  # nats that a sweep must gain on the held-out pairs

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Bigram:
    """The bigram `Y` with absolute discounting, as a sparse part and a weight of the unigram.

    Attributes
    ----------
    discounted : (V, V) csr_array of float32
        ``max(N_st - delta, 0) / N_s``.
    backoff : (V,) float32
        Weight of the unigram in each row; 1 for a row without counts.
    prior : (V,) float64
        p.
    share : (V,) float64
        Each token's share of the positions that have a next token.
    """

    discounted: sparse.csr_array
    backoff: Array
    prior: NDArray[np.float64]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: sparse.csr_array) -> "Bigram":
        """Return the model of pair counts (V, V)."""
        n, unigrams = pairs.sum(axis=1), pairs.sum(axis=0)
        discount = min(max(NGrams(unigrams, pairs).discount, 0.1), 0.9)
        counts, backoff = discounted(pairs, discount)
        return cls(counts.astype(np.float32), backoff.astype(np.float32), class_prior(unigrams), n / n.sum())

    @cached_property
    def log_prior(self) -> Array:
        """``log p``."""
        return np.log(self.prior).astype(np.float32)

    def log_ratio(self) -> sparse.csr_array:
        """Return M (V, V)."""
        out = self.discounted.copy()
        rows = np.repeat(np.arange(out.shape[0]), np.diff(out.indptr))
        out.data = np.log1p(out.data / (self.backoff[rows] * self.prior[out.indices])).astype(np.float32)
        return out

    def frequent(self) -> NDArray[np.int64]:
        """Return the ids of the `FREQUENT` most frequent tokens."""
        return np.argsort(-self.prior, kind="stable")[:FREQUENT]

    def restricted(self, tokens: NDArray[np.int64]) -> "Bigram":
        """Return the model of these tokens alone; the unigram takes what each row loses."""
        inner = self.discounted[tokens][:, tokens]
        prior = self.prior[tokens] / self.prior[tokens].sum()
        share = self.share[tokens] / self.share[tokens].sum()
        return Bigram(inner, (1.0 - inner.sum(axis=1)).astype(np.float32), prior, share)


@dataclass(frozen=True)
class Factors:
    """A bigram model of low rank, ``softmax(A B^T + log p)``.

    Attributes
    ----------
    A, B : (V, r) float32
    log_prior : (V,) float32
        ``log p``.
    exponents : tuple of two floats
        a and b of the weights.
    sweeps : int
        Number of refits of A and B.
    held_out_loss : float or None
        Cross-entropy of the held-out pairs that begin with one of the 1,024 most frequent tokens, in nats. None where
        the text was too short to hold pairs out.
    """

    A: Array
    B: Array
    log_prior: Array
    exponents: tuple[float, float]
    sweeps: int
    held_out_loss: float | None

    @property
    def rank(self) -> int:
        """Rank r of the model."""
        return int(self.A.shape[1])


def factorise(
    statistics: PairStatistics,
    rank: int,
    sweeps: int = 4,
    workers: int = 1,
    progress: Progress | None = None,
) -> Factors:
    """Solve pair statistics into factors.

    The held-out pairs choose the exponents, the rank (the given one, a half or a quarter of it) and the number of
    sweeps. A text below 131,072 tokens has none: it gets the exponents `LITTLE_TEXT`, the given rank and no sweep,
    because sweeps can make a model of little text worse. A sweep takes about ``4 V**2 r`` multiplications for the
    frequent rows.

    Parameters
    ----------
    statistics : PairStatistics
    rank : int
        Largest rank; a transformer of width d has room for ``d - 3`` with LayerNorm and ``d - 2`` with RMSNorm.
    sweeps : int
        Largest number of refits of A and B; they stop when they no longer help.
    workers : int
        Number of threads; the result does not depend on it.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        The rank is below 8 or not below the vocabulary, or there are no pairs.

    Examples
    --------
    >>> from warmstart.counts import count_pairs
    >>> tokens = np.random.default_rng(0).integers(0, 20, 300_000).cumsum() % 50
    >>> factors = factorise(count_pairs(tokens, 50), rank=32)
    >>> factors.A.shape, bool(factors.held_out_loss < np.log(50))
    ((50, 32), True)
    """
    size = statistics.vocab_size
    if not LEAST_RANK <= rank < size:
        raise InputError(
            f"rank: expected {LEAST_RANK} to {size - 1}, below the vocabulary of {size} tokens, got {rank}"
        )
    if not statistics.pairs.nnz:
        raise InputError("expected counts of pairs, got none; count a text of at least two tokens")
    report = progress or (lambda *_: None)
    report("factorise", 0, None)
    bigram = Bigram.of(statistics.pairs)
    if not statistics.held_out.nnz:
        return Factors(*decompose(bigram, LITTLE_TEXT, rank), bigram.log_prior, LITTLE_TEXT, 0, None)
    loss = HeldOutLoss(statistics.held_out, bigram.frequent(), bigram.log_prior)
    exponents = _choose_exponents(statistics.held_out, bigram, rank)
    A, B = decompose(bigram, exponents, rank)
    ranks = (max(LEAST_RANK, rank // divisor) for divisor in (1, 2, 4))
    rank = min(ranks, key=lambda r: loss(A[:, :r], B[:, :r]))
    A, B = np.ascontiguousarray(A[:, :rank]), np.ascontiguousarray(B[:, :rank])
    best, lowest = Factors(A, B, bigram.log_prior, exponents, 0, None), loss(A, B)
    covered = np.argsort(-bigram.share, kind="stable")
    covered = covered[: int(np.searchsorted(np.cumsum(bigram.share[covered]), COVERED_SHARE)) + 1]
    for sweep in range(sweeps):
        report("refit", sweep, sweeps)
        A = refit_rows(bigram, A, B, covered, workers)
        B = refit_columns(bigram, A, B, covered, workers)
        if (refitted := loss(A, B)) > lowest - LEAST_GAIN:
            break
        best, lowest = replace(best, A=A, B=B, sweeps=sweep + 1), refitted
    if best.sweeps:
        best = replace(best, A=refit_rows(bigram, best.A, best.B, np.arange(size), workers))
    return replace(best, held_out_loss=loss(best.A, best.B))


class HeldOutLoss:
    """Cross-entropy of factors on held-out pairs (V, V) that begin with one of some tokens (n,), in nats."""

    def __init__(self, held_out: sparse.csr_array, tokens: NDArray[np.int64], log_prior: Array) -> None:
        self.tokens, self.log_prior = tokens, log_prior
        self.pairs = held_out[tokens].tocoo()

    def __call__(self, A: Array, B: Array) -> float:
        """Return the loss of factors A, B (V, r)."""
        z = A[self.tokens] @ B.T + self.log_prior
        x, y = self.pairs.coords
        at_target = z[x, y].astype(np.float64)
        total = self.pairs.data @ (log_sum_exp(z)[x] - at_target)
        return float(total / self.pairs.data.sum())


def _choose_exponents(held_out: sparse.csr_array, bigram: Bigram, rank: int) -> tuple[float, float]:
    """Choose among `EXPONENTS` with factors of the frequent tokens alone, which takes a small part of the time."""
    frequent = bigram.frequent()
    small = bigram.restricted(frequent)
    loss = HeldOutLoss(held_out[frequent][:, frequent], np.arange(len(frequent)), small.log_prior)
    rank = min(rank, len(frequent) // 2)
    return min(EXPONENTS, key=lambda exponents: loss(*decompose(small, exponents, rank)))


def decompose(bigram: Bigram, exponents: tuple[float, float], rank: int) -> tuple[Array, Array]:
    """Factorise M with rows weighted by ``p**a`` and columns by ``p**b``, and take the weights out again.

    The singular value decomposition is randomised, always from the same start vectors.
    """
    rows, columns = (bigram.prior**exponent for exponent in exponents)
    weighted = (sparse.diags_array(rows) @ bigram.log_ratio() @ sparse.diags_array(columns)).tocsr().astype(np.float32)
    with threadpool_limits(1):  # the same bits on any number of cores
        U, S, Vt = randomized_svd(
            weighted, rank, n_iter=4, n_oversamples=32, power_iteration_normalizer="QR", random_state=0
        )
    root = np.sqrt(S)
    A, B = U * (root / rows[:, None]), Vt.T * (root / columns[:, None])
    return A.astype(np.float32), B.astype(np.float32)


def refit_rows(bigram: Bigram, A: Array, B: Array, rows: NDArray[np.int64], workers: int = 1) -> Array:
    """Return A after a damped Newton step of some rows that lowers the cross-entropy with Y, for fixed B.

    ``a_s += (Y - P)_s B H^-1`` with ``H = B^T (diag p - p p^T) B``, the curvature at the unigram.
    """
    prior = bigram.prior.astype(np.float32)
    mean = prior @ B
    gradient = bigram.discounted[rows] @ B + bigram.backoff[rows, None] * mean

    def subtract_model(block: slice) -> None:
        gradient[block] -= softmax(A[rows[block]] @ B.T + bigram.log_prior) @ B

    with threadpool_limits(1):
        run_parts(subtract_model, blocks(rows.size, ROWS_PER_BLOCK), workers)
        step = damped_solve((B.T * prior) @ B - np.outer(mean, mean), gradient.T, DAMPING).T
    out = A.copy()
    out[rows] += step
    return out


def refit_columns(bigram: Bigram, A: Array, B: Array, rows: NDArray[np.int64], workers: int = 1) -> Array:
    """Return B after a damped Newton step that lowers the cross-entropy of some rows with Y, for fixed A.

    ``b_t += 0.3 / p_t sum_s share_s (Y - P)_st a_s H^-1`` with ``H = sum_s share_s a_s a_s^T``.
    """
    prior, share = bigram.prior.astype(np.float32), bigram.share[rows].astype(np.float32)
    weighted = A[rows] * share[:, None]

    def model_sum(block: slice) -> Array:
        return np.asarray(softmax(A[rows[block]] @ B.T + bigram.log_prior).T @ weighted[block])

    with threadpool_limits(1):
        gradient = bigram.discounted[rows].T @ weighted + np.outer(prior, bigram.backoff[rows] @ weighted)
        for model in run_parts(model_sum, blocks(rows.size, ROWS_PER_BLOCK), workers):
            gradient -= model
        step = damped_solve(A[rows].T @ weighted, (gradient / (prior + 1e-5)[:, None]).T, DAMPING).T
    return np.asarray(B + np.float32(STEP_B) * step, dtype=np.float32)


def damped_solve(H: NDArray[Any], right: NDArray[Any], damping: float) -> NDArray[Any]:
    """Return ``(H + damping I)^-1 right`` for positive definite H (r, r); ``damping`` is in mean diagonals of H."""
    damped = H + damping * np.trace(H) / len(H) * np.eye(len(H), dtype=H.dtype)
    return np.asarray(linalg.solve(damped, right, assume_a="pos"))


@dataclass(frozen=True)
class Residual:
    """Embedding and head of a residual stream that holds the factors.

    Attributes
    ----------
    E : (V, d) float32
        Rows of equal norm and of standard deviation ``scale``.
    W : (V, d) float32
        ``norm(E) W^T`` are the logits, up to a constant for each row.
    axes : (r + 2 + spare, d) float32
        Orthonormal rows: r for the factors, one that brings all rows to one norm, one that is constant, then the spare
        ones.
    """

    E: Array
    W: Array
    axes: Array


def residual(
    factors: Factors, width: int, *, scale: float, centred: bool, eps: float, spare: int = 0, spare_share: float = 0.0
) -> Residual:
    """Place factors in a residual stream before a final normalisation layer.

    All rows of A get the same norm R, so that the normalisation divides by a known constant. R is the 99.9 % quantile
    of the norms: longer rows are clipped, and for shorter rows a coordinate that the head does not read makes up the
    difference. One more coordinate is constant, and the head reads ``log p`` from it. For LayerNorm everything is
    rotated into the subspace of mean 0.

    Parameters
    ----------
    factors : Factors
    width : int
        Width d of the stream.
    scale : float
        Standard deviation of a row of E.
    centred : bool
        Whether the normalisation layer subtracts the mean, as LayerNorm does and RMSNorm does not.
    eps : float
        Epsilon of the normalisation layer.
    spare : int
        Number of coordinates that the head does not read, for positions.
    spare_share : float
        Norm of what will be added in these coordinates, as a share of the norm of a row.

    Raises
    ------
    InputError
        The width has no room for the rank, two more coordinates and the spare ones.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.normal(size=(2, 50, 4))
    >>> factors = Factors(A, B, np.log(np.full(50, 0.02)), (0.5, 0.5), 0, 0.0)
    >>> placed = residual(factors, 8, scale=0.1, centred=False, eps=0.0)
    >>> x = placed.E / np.sqrt((placed.E**2).mean(axis=1, keepdims=True))  # RMSNorm
    >>> unclipped = np.linalg.norm(A, axis=1) < np.quantile(np.linalg.norm(A, axis=1), 0.99)
    >>> bool(np.allclose((x @ placed.W.T)[unclipped], (A @ B.T)[unclipped], atol=1e-5))
    True
    """
    A, B, r = factors.A, factors.B, factors.rank
    needed = r + 2 + centred + spare
    if width < needed:
        raise InputError(f"width: expected at least {needed} for rank {r}, got {width}; give a lower rank")
    norms = np.linalg.norm(A, axis=1)
    R = float(np.quantile(norms, 0.999))
    A = A * np.minimum(1.0, R / np.maximum(norms, 1e-12))[:, None]
    fill = np.sqrt(np.maximum(R**2 - (A**2).sum(axis=1), 0.0))
    log_prior = factors.log_prior - factors.log_prior.mean()
    rows = np.column_stack([A, fill, np.full(len(A), R)])  # of norm sqrt(2) R
    head = np.column_stack([B, np.zeros(len(B)), log_prior / R])
    axes = frame(width, centred)[: r + 2 + spare]
    to_unit = np.sqrt(width / 2) / R  # gives the rows standard deviation 1
    shrinkage = np.sqrt(scale**2 * (1 + spare_share**2) + eps) / scale  # of the norm, by eps and the spare coordinates
    E = scale * to_unit * (rows @ axes[: r + 2])
    W = shrinkage / to_unit * (head @ axes[: r + 2])
    return Residual(E.astype(np.float32), W.astype(np.float32), axes.astype(np.float32))


def frame(width: int, centred: bool) -> NDArray[np.float64]:
    """Return orthonormal rows, a cosine basis: (d, d), or (d - 1, d) of mean 0. No random number is drawn."""
    i = np.arange(width)
    Q = np.cos(np.pi * np.outer(i, i + 0.5) / width) * np.sqrt(2 / width)
    Q[0] = 1 / np.sqrt(width)
    return np.asarray(Q[1:] if centred else Q)
