"""Spectral warm start: a bigram model of low rank, and its place in the residual stream of a transformer.

| symbol | shape | meaning |
|---|---|---|
| `P` | (V, V) | absolute-discounting bigram, ``max(c - d, 0) / n_x + left_x p_y`` with ``left_x = d types_x / n_x`` |
| `M` | (V, V) | ``log(P / (left_x p_y))``, sparse: 0 for unseen pairs; a constant per row does not change a softmax |
| `A`, `B` | (V, r) | factors: ``softmax(A B^T + log p)`` is the bigram model of rank r |
| `E`, `W` | (V, d) | embedding and head of a transformer that holds it |

First ``diag(p**a) M diag(p**b)`` is factorised, then A and B are solved by turns toward the cross-entropy with P.
Sources: Levy and Goldberg 2014 (NeurIPS, word vectors as factorised log ratios), Ney, Essen and Kneser 1994 (Computer
Speech and Language 8, discounting), Boehning 1992 (Annals of the Institute of Statistical Mathematics 44, Newton steps
of a softmax with a curvature that all rows share).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from warmstart.accumulators import run_parts
from warmstart.counts import NGrams, PairStatistics
from warmstart.errors import InputError
from warmstart.progress import Progress
from warmstart.solution import class_prior

EXPONENTS = ((0.25, 0.25), (0.35, 0.35), (0.35, 0.5))  # a, b: weights of rows and columns
FREQUENT = 1024  # tokens on which exponents and rank are chosen
COVERED = 0.9  # share of the text whose rows take part in every sweep; the last takes all
STEPS = {"A": 1.0, "B": 0.3}  # of the Newton step
DAMPING = 10.0  # of the curvature, in units of its mean diagonal: the rows share it and do not have it
ROWS = 512  # rows of logits worked on at once
FLOOR = 8  # least rank

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Bigram:
    """The absolute-discounting bigram `P`, as its sparse part and what is left for the unigram.

    Attributes
    ----------
    kept : (V, V) csr_array of float32
        ``max(c - d, 0) / n_x``.
    left : (V,) float32
        Share of the unigram in every row; 1 for a row without counts.
    prior : (V,) float64
        p.
    share : (V,) float64
        Share of the text before whose tokens each row stands.
    """

    kept: sparse.csr_array
    left: Array
    prior: NDArray[np.float64]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: sparse.csr_array) -> "Bigram":
        """Return the model of pair counts (V, V)."""
        n, types = pairs.sum(axis=1), np.diff(pairs.indptr)
        unigrams = pairs.sum(axis=0)
        discount = min(max(NGrams(unigrams, pairs).discount, 0.1), 0.9)
        kept = pairs.astype(np.float64)
        kept.data = (kept.data - discount) / np.repeat(n, types)
        left = np.where(n > 0, discount * types / np.maximum(n, 1), 1.0)
        return cls(kept.astype(np.float32), left.astype(np.float32), class_prior(unigrams), n / n.sum())

    @cached_property
    def log_prior(self) -> Array:
        """``log p``."""
        return np.log(self.prior).astype(np.float32)

    def log_ratio(self) -> sparse.csr_array:
        """Return M (V, V)."""
        out = self.kept.copy()
        rows = np.repeat(np.arange(out.shape[0]), np.diff(out.indptr))
        out.data = np.log1p(out.data / (self.left[rows] * self.prior[out.indices])).astype(np.float32)
        return out

    def top(self, size: int) -> "Bigram":
        """Return the model of the ``size`` most frequent tokens alone; what they lose goes to what is left."""
        chosen = np.argsort(-self.prior, kind="stable")[:size]
        kept = self.kept[chosen][:, chosen]
        prior = self.prior[chosen] / self.prior[chosen].sum()
        share = self.share[chosen] / self.share[chosen].sum()
        return Bigram(kept, (1.0 - kept.sum(axis=1)).astype(np.float32), prior, share)


@dataclass(frozen=True)
class Factors:
    """A bigram model of low rank, ``softmax(A B^T + log p)``.

    Attributes
    ----------
    A, B : (V, r) float32
    log_prior : (V,) float32
    exponents : tuple of two floats
    sweeps : int
    nats : float
        Cross-entropy of the held-out pairs that begin with one of the 1,024 most frequent tokens.
    """

    A: Array
    B: Array
    log_prior: Array
    exponents: tuple[float, float]
    sweeps: int
    nats: float

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

    Exponents, rank (the given one or a half or a quarter of it) and the number of sweeps are those with the lowest
    cross-entropy of the held-out pairs. A sweep takes about ``4 V**2 r`` multiplications on the frequent rows.

    Parameters
    ----------
    statistics : PairStatistics
    rank : int
        At most; a transformer of width d holds ``d - 3`` with LayerNorm and ``d - 2`` with RMSNorm.
    sweeps : int
        Refits of A and B at most; they stop when they no longer help.
    workers : int
        Threads; the result does not depend on them.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        The rank is below 8 or not below the vocabulary, or no pair was held out.

    Examples
    --------
    >>> from warmstart.counts import count_pairs
    >>> tokens = np.random.default_rng(0).integers(0, 20, 300_000).cumsum() % 50
    >>> factors = factorise(count_pairs(tokens, 50), rank=32)
    >>> factors.A.shape, bool(factors.nats < np.log(50))
    ((50, 32), True)
    """
    size = statistics.vocab_size
    if not FLOOR <= rank < size:
        raise InputError(f"rank: expected {FLOOR} to {size - 1}, below the vocabulary of {size} tokens, got {rank}")
    if not statistics.held_out.nnz:
        raise InputError("expected held-out pairs to choose by, got none: give at least 131,072 tokens of text")
    tell = progress or (lambda *_: None)
    bigram = Bigram.of(statistics.pairs)
    frequent = np.argsort(-bigram.prior, kind="stable")[:FREQUENT]
    judge = _Judge(statistics.held_out, bigram, frequent)
    tell("factorise", 0, None)
    a, b = _choose_exponents(statistics.held_out, bigram, min(rank, len(frequent) // 2))
    A, B = _svd(bigram, a, b, rank)
    chosen = min((max(FLOOR, rank // part) for part in (1, 2, 4)), key=lambda r: judge(A[:, :r], B[:, :r]))
    A, B = np.ascontiguousarray(A[:, :chosen]), np.ascontiguousarray(B[:, :chosen])
    best = Factors(A, B, bigram.log_prior, (a, b), 0, judge(A, B))
    covered = np.argsort(-bigram.share, kind="stable")
    covered = covered[: int(np.searchsorted(np.cumsum(bigram.share[covered]), COVERED)) + 1]
    for sweep in range(sweeps):
        tell("refit", sweep, sweeps)
        A = refit_rows(bigram, A, B, covered, workers)
        B = refit_columns(bigram, A, B, covered, workers)
        nats = judge(A, B)
        if nats > best.nats - 1e-3:
            break
        best = Factors(A, B, bigram.log_prior, (a, b), sweep + 1, nats)
    if best.sweeps:
        A = refit_rows(bigram, best.A, best.B, np.arange(size), workers)
        best = Factors(A, best.B, bigram.log_prior, (a, b), best.sweeps, judge(A, best.B))
    return best


class _Judge:
    """Cross-entropy of held-out pairs that begin with a frequent token."""

    def __init__(self, held_out: sparse.csr_array, bigram: Bigram, rows: NDArray[np.int64]) -> None:
        self.rows, self.log_prior = rows, bigram.log_prior
        self.there = held_out[rows].tocoo()

    def __call__(self, A: Array, B: Array) -> float:
        z = A[self.rows] @ B.T + self.log_prior
        x, y = self.there.coords
        picked = z[x, y].astype(np.float64)
        top = z.max(axis=1)
        mass = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
        total = self.there.data @ (mass[x] - picked)
        return float(total / self.there.data.sum())


def _choose_exponents(held_out: sparse.csr_array, bigram: Bigram, rank: int) -> tuple[float, float]:
    """Choose among `EXPONENTS` by the factors of the frequent tokens alone: a small part of the time."""
    frequent = np.argsort(-bigram.prior, kind="stable")[:FREQUENT]
    small = bigram.top(FREQUENT)
    judge = _Judge(held_out[:, frequent], small, frequent)
    judge.rows = np.arange(len(frequent))
    return min(EXPONENTS, key=lambda pair: judge(*_svd(small, pair[0], pair[1], rank)))


def _svd(bigram: Bigram, a: float, b: float, rank: int) -> tuple[Array, Array]:
    """Factorise M with rows weighted by ``p**a`` and columns by ``p**b``; always from the same start vectors."""
    rows, columns = bigram.prior**a, bigram.prior**b
    weighted = (sparse.diags_array(rows) @ bigram.log_ratio() @ sparse.diags_array(columns)).tocsr().astype(np.float32)
    with threadpool_limits(1):  # the same bits on any number of cores
        U, S, Vt = randomized_svd(
            weighted, rank, n_iter=4, n_oversamples=32, power_iteration_normalizer="QR", random_state=0
        )
    root = np.sqrt(S)
    A, B = U * (root / rows[:, None]), Vt.T * (root / columns[:, None])
    return A.astype(np.float32), B.astype(np.float32)


def refit_rows(bigram: Bigram, A: Array, B: Array, rows: NDArray[np.int64], workers: int = 1) -> Array:
    """Return A after a damped Newton step of some rows toward the cross-entropy with P, B held.

    ``a_x += (P - Q)_x B H^-1`` with Q the model and ``H = B^T (diag p - p p^T) B``, the curvature at the unigram.
    """
    prior = bigram.prior.astype(np.float32)
    mean = prior @ B
    gradient = bigram.kept[rows] @ B + bigram.left[rows, None] * mean

    def part(start: int) -> None:
        here = slice(start, start + ROWS)
        gradient[here] -= _model(A[rows[here]], B, bigram.log_prior) @ B

    with threadpool_limits(1):
        run_parts(part, range(0, rows.size, ROWS), workers)
        step = _damped_solve((B.T * prior) @ B - np.outer(mean, mean), gradient)
    out = A.copy()
    out[rows] += np.float32(STEPS["A"]) * step
    return out


def refit_columns(bigram: Bigram, A: Array, B: Array, rows: NDArray[np.int64], workers: int = 1) -> Array:
    """Return B after a damped Newton step toward the cross-entropy of some rows with P, A held.

    ``b_y += g_y H^-1 / p_y`` with ``g_y = sum_x n_x (P - Q)_xy a_x`` and ``H = sum_x n_x a_x a_x^T``, n in shares.
    """
    prior, share = bigram.prior.astype(np.float32), bigram.share[rows].astype(np.float32)
    weighted = A[rows] * share[:, None]

    def part(start: int) -> Array:
        here = slice(start, start + ROWS)
        return np.asarray(_model(A[rows[here]], B, bigram.log_prior).T @ weighted[here])

    with threadpool_limits(1):
        gradient = bigram.kept[rows].T @ weighted + np.outer(prior, bigram.left[rows] @ weighted)
        for model in run_parts(part, range(0, rows.size, ROWS), workers):
            gradient -= model
        step = _damped_solve(A[rows].T @ weighted, gradient / (prior + 1e-5)[:, None])
    return np.asarray(B + np.float32(STEPS["B"]) * step, dtype=np.float32)


def _model(A: Array, B: Array, log_prior: Array) -> Array:
    """Return Q for some rows."""
    z: Array = A @ B.T
    z += log_prior
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


def _damped_solve(H: NDArray[Any], gradient: NDArray[Any]) -> Array:
    damped = H + DAMPING * np.trace(H) / len(H) * np.eye(len(H), dtype=np.float32)
    return np.asarray(linalg.solve(damped, gradient.T, assume_a="pos").T, dtype=np.float32)


@dataclass(frozen=True)
class Residual:
    """Embedding and head of a residual stream that holds the factors.

    Attributes
    ----------
    E : (V, d) float32
        Rows of one norm, of standard deviation ``scale``.
    W : (V, d) float32
        ``norm(E) W^T`` are the logits, up to a constant a row.
    axes : (r + 2 + spare, d) float32
        Orthonormal: the factors, what fills rows up to one norm, the constant, what is spare.
    """

    E: Array
    W: Array
    axes: Array


def residual(
    factors: Factors, width: int, *, scale: float, centred: bool, eps: float, spare: int = 0, spare_share: float = 0.0
) -> Residual:
    """Place factors in a residual stream before a final norm.

    All rows of A get one norm, so that the final norm is a known constant: rows above the 99.9 % quantile R are
    clipped, and a coordinate that the head does not read fills up to R. One more coordinate is constant, and the head
    reads ``log p`` from it. For LayerNorm all is rotated into the subspace of mean 0.

    Parameters
    ----------
    factors : Factors
    width : int
        d.
    scale : float
        Standard deviation of a row of E.
    centred : bool
        Whether the norm subtracts the mean (LayerNorm; RMSNorm does not).
    eps : float
        Of the norm.
    spare : int
        Coordinates that the head does not read, for positions.
    spare_share : float
        Norm of what will be added there, as a share of the norm of a row.

    Raises
    ------
    InputError
        The width does not hold the rank, two more coordinates, and what is spare.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.normal(size=(2, 50, 4))
    >>> factors = Factors(A, B, np.log(np.full(50, 0.02)), (0.5, 0.5), 0, 0.0)
    >>> found = residual(factors, 8, scale=0.1, centred=False, eps=0.0)
    >>> x = found.E / np.sqrt((found.E**2).mean(axis=1, keepdims=True))  # RMSNorm
    >>> unclipped = np.linalg.norm(A, axis=1) < np.quantile(np.linalg.norm(A, axis=1), 0.99)
    >>> bool(np.allclose((x @ found.W.T)[unclipped], (A @ B.T)[unclipped], atol=1e-5))
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
    unit = np.sqrt(width / 2) / R  # makes rows of standard deviation 1
    shrunk = np.sqrt(scale**2 * (1 + spare_share**2) + eps) / scale  # what eps and the spare part take from the norm
    E = scale * unit * (rows @ axes[: r + 2])
    W = shrunk / unit * (head @ axes[: r + 2])
    return Residual(E.astype(np.float32), W.astype(np.float32), axes.astype(np.float32))


def frame(width: int, centred: bool) -> NDArray[np.float64]:
    """Return orthonormal rows (d, d), or (d - 1, d) of mean 0: cosines, without a random number."""
    i = np.arange(width)
    Q = np.cos(np.pi * np.outer(i, i + 0.5) / width) * np.sqrt(2 / width)
    Q[0] = 1 / np.sqrt(width)
    return np.asarray(Q[1:] if centred else Q)
