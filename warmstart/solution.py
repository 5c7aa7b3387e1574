"""The explicit solution of a softmax layer: counts in, weights out. The only place with a logarithm of counts.

| symbol | shape | meaning |
|---|---|---|
| `F` | (D, C) | co-occurrence of inputs and targets |
| `p` | (C,) | class prior |
| `k` | | features per prediction: mean L1 norm of the inputs |
| `eps` | | smoothing, in co-occurrences a feature, spread over the classes in proportion to `p` |
| `tau` | (G,) | temperature of each group of features (a context position, a context, the whole input) |

    U[d, c] = tau_g(d) * log(F[d, c] / F[., c]) + 1/k * log p[c]            F[., c] = sum_d F[d, c]

At ``tau = 1``, without smoothing and with ``p = F. / sum(F.)`` (`marginal_prior`) this is the published
``log F - (k-1)/k log F.`` up to a constant that no softmax sees (Williams and Zhao 2023, arXiv 2311.07498, theorem 1).
Multiplied out it is multinomial naive Bayes with the prior raised to ``|x|_1 / k``. Naive Bayes counts correlated
evidence twice; the temperatures, found by a convex fit of the cross-entropy, take that back. The fit sees every example
with its own count removed (leave one out; the prior stays), so no part of the data is lost to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from warmstart.accumulators import Accumulator, run_parts
from warmstart.errors import InputError

Inputs: TypeAlias = NDArray[np.floating] | sparse.csr_array
ROWS = 256  # examples scored at once: fixed, so that sums do not depend on the number of threads
KEPT_BYTES = 2**30  # scores of a sample are kept between evaluations up to this size, else computed again
SMOOTHING_GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def class_prior(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return class probabilities; a class never seen counts as half an example, so that its logarithm exists.

    Examples
    --------
    >>> class_prior(np.array([3, 1, 0])).round(3).tolist()
    [0.667, 0.222, 0.111]
    """
    floored = np.maximum(counts, 0.5)
    return np.asarray(floored / floored.sum(), dtype=np.float64)


def marginal_prior(accumulator: Accumulator) -> NDArray[np.float64]:
    """Return each class's share of the co-occurrences, ``F[., c]``: the prior of the published formula.

    A class without any counts as half an example of mean norm. Where all inputs have one L1 norm these are the shares
    of the examples.

    Examples
    --------
    >>> from warmstart.accumulators import empty, update
    >>> F = empty(2, 2)
    >>> update(F, np.array([[1.0, 2.0], [1.0, 0.0]]), np.array([0, 1]))
    >>> marginal_prior(F).tolist()
    [0.75, 0.25]
    """
    F = accumulator.F.sum(axis=0) * accumulator.scale
    return class_prior(F / accumulator.mean_norm if F.any() else F)


def log_likelihood(
    accumulator: Accumulator, prior: NDArray[np.float64], smoothing: float, dtype: type = np.float32
) -> NDArray[np.floating]:
    """Return ``log(F[d, c] / F[., c])`` of the smoothed counts.

    Parameters
    ----------
    accumulator : Accumulator of (D, C)
    prior : (C,)
        Class probabilities.
    smoothing : float
        Co-occurrences added to each feature, spread over the classes in proportion to ``prior``.

    Returns
    -------
    (D, C) array, C-contiguous

    Raises
    ------
    InputError
        A count is zero and so is the smoothing.
    """
    added = smoothing * prior
    F = accumulator.F
    marginal = F.sum(axis=0) * accumulator.scale + F.shape[0] * added
    out: NDArray[np.floating] = np.empty(F.shape, dtype)
    for start in range(0, F.shape[0], ROWS):
        counts = F[start : start + ROWS] * accumulator.scale + added
        if not counts.all():
            raise InputError("a feature never occurred with a class and smoothing is 0; expected smoothing > 0")
        out[start : start + ROWS] = np.log(counts) - np.log(marginal)
    return out


def solve(
    accumulators: list[Accumulator],
    prior: NDArray[np.float64],
    *,
    k: float,
    smoothing: float,
    temperatures: NDArray[np.float64],
    dtype: type = np.float32,
) -> NDArray[np.floating]:
    """Return the weights of a softmax layer on the concatenated groups.

    Parameters
    ----------
    accumulators : list of G accumulators, (D_g, C) each
    prior : (C,)
    k : float
        Features per prediction; ``numpy.inf`` leaves the prior out.
    smoothing : float
        In co-occurrences, see `log_likelihood`.
    temperatures : (G,)
        One a group; 1 is the published solution.

    Returns
    -------
    (sum of D_g, C) array

    Examples
    --------
    One-hot inputs and k = 1 give the empirical conditional distribution:

    >>> from warmstart.accumulators import empty, update
    >>> F = empty(2, 2)
    >>> update(F, np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 1, 1]))
    >>> U = solve([F], np.array([0.5, 0.5]), k=1, smoothing=1e-12, temperatures=np.ones(1))
    >>> P = np.exp(U[0], dtype=np.float64)
    >>> (P / P.sum()).round(3).tolist()
    [0.667, 0.333]
    """
    bias = np.log(prior) / k
    blocks = []
    for accumulator, tau in zip(accumulators, temperatures, strict=True):
        block = log_likelihood(accumulator, prior, smoothing, dtype)
        block *= dtype(tau)
        block += bias.astype(dtype)
        blocks.append(block)
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


@dataclass
class Sample:
    """Examples on which temperatures are fitted; each is left out of the counts when it is scored.

    Attributes
    ----------
    groups : list of G arrays or csr_arrays, (n, D_g) each
        Inputs by group.
    targets : (n, C) csr_array
        Target distributions, rows summing to 1.
    keep_scores : bool
        Keep the scores, (n, C) float32 a group, from one evaluation to the next while they fit in `KEPT_BYTES`.
    """

    groups: list[Inputs]
    targets: sparse.csr_array
    keep_scores: bool = False

    @property
    def size(self) -> int:
        """Number of examples."""
        return int(self.targets.shape[0])

    def every(self, stride: int) -> "Sample":
        """Return every ``stride``-th example."""
        return Sample([X[::stride] for X in self.groups], self.targets[::stride], self.keep_scores)


def leave_one_out(
    X: Inputs,
    targets: sparse.csr_array,
    accumulator: Accumulator,
    prior: NDArray[np.float64],
    smoothing: float,
) -> NDArray[np.float64]:
    """Score each example at its own target classes, its own count removed.

    Returns
    -------
    (nnz of targets,) float64
        ``sum_d x_d log((F[d, c] - x_d y_c) / (F[., c] - |x|_1 y_c))`` for every target class c of every example.
    """
    row = np.repeat(np.arange(targets.shape[0]), np.diff(targets.indptr))
    F, scale = accumulator.F, accumulator.scale
    total = F.sum(axis=0) * scale  # (C,)
    out = np.empty(row.size)
    for start in range(0, row.size, ROWS):  # a dense block of inputs is (ROWS, D)
        here = slice(start, start + ROWS)
        chosen: Any = X[row[here]]
        classes, values = targets.indices[here], targets.data[here]
        added = smoothing * prior[classes]
        marginal = total[classes] - np.asarray(chosen.sum(axis=1)).ravel() * values
        marginal = np.log(np.maximum(marginal, 0.0) + F.shape[0] * added)
        if sparse.issparse(chosen):
            entry = np.repeat(np.arange(classes.size), np.diff(chosen.indptr))
            rest = F[chosen.indices, classes[entry]] * scale - chosen.data * values[entry]
            terms = chosen.data * (np.log(np.maximum(rest, 0.0) + added[entry]) - marginal[entry])
            out[here] = np.bincount(entry, terms, minlength=classes.size)
        else:
            rest = F[:, classes].T * scale - chosen * values[:, None]
            terms = chosen * (np.log(np.maximum(rest, 0.0) + added[:, None]) - marginal[:, None])
            out[here] = terms.sum(axis=1)
    return out


def cross_entropy(
    sample: Sample,
    accumulators: list[Accumulator],
    prior: NDArray[np.float64],
    *,
    k: float,
    smoothing: float,
    workers: int = 1,
) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
    """Return the function ``temperatures -> (nats an example, gradient)`` of a leave-one-out sample; it is convex."""
    tables = [log_likelihood(a, prior, smoothing) for a in accumulators]
    own = [
        leave_one_out(X, sample.targets, a, prior, smoothing) for X, a in zip(sample.groups, accumulators, strict=True)
    ]
    log_prior = np.log(prior).astype(np.float32)
    indptr = sample.targets.indptr
    keep = sample.keep_scores and sample.size * prior.size * len(tables) * 4 <= KEPT_BYTES
    kept: dict[int, list[NDArray[np.floating]]] = {}

    def group_scores(start: int, stop: int) -> list[NDArray[np.floating]]:
        return [
            X[start:stop].astype(table.dtype, copy=False) @ table
            for X, table in zip(sample.groups, tables, strict=True)
        ]

    def part(temperatures: NDArray[np.float64], start: int) -> NDArray[np.float64]:
        stop = min(start + ROWS, sample.size)
        here = slice(indptr[start], indptr[stop])
        row = np.repeat(np.arange(stop - start), np.diff(indptr[start : stop + 1]))
        classes, values = sample.targets.indices[here], sample.targets.data[here]
        norm: Any = sum(np.asarray(X[start:stop].sum(axis=1)).ravel() for X in sample.groups)
        z = (norm / k).astype(np.float32)[:, None] * log_prior
        scores = kept.get(start) or group_scores(start, stop)
        if keep:
            kept[start] = scores
        for a, mine, tau in zip(scores, own, temperatures, strict=True):
            a[row, classes] = mine[here]
            z += np.float32(tau) * a
        at_target = z[row, classes].astype(np.float64)
        top = z.max(axis=1)
        z -= top[:, None]
        np.exp(z, out=z)
        mass = z.sum(axis=1)
        loss = values @ ((np.log(mass) + top)[row] - at_target)
        slope = [(np.einsum("nc,nc->n", z, a) / mass).sum(dtype=np.float64) - values @ a[row, classes] for a in scores]
        return np.array([loss, *slope])

    def objective(temperatures: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        starts = range(0, sample.size, ROWS)
        with threadpool_limits(1):
            sums = run_parts(partial(part, temperatures), starts, workers)
        total = np.sum(sums, axis=0) / sample.size
        return float(total[0]), total[1:]

    return objective


def check_settings(smoothing: float | str, temperature: float | str) -> None:
    """Raise InputError unless both are "fit" or a finite number above 0."""
    for name, value in (("smoothing", smoothing), ("temperature", temperature)):
        if value != "fit" and (isinstance(value, str) or not 0 < value < np.inf):
            raise InputError(f'{name}: expected "fit" or a finite number above 0, got {value!r}')


@dataclass(frozen=True)
class Fit:
    """What `fit` found: smoothing, temperatures (G,), and the cross-entropy of the sample in nats."""

    smoothing: float
    temperatures: NDArray[np.float64]
    nats: float


def fit(
    sample: Sample,
    accumulators: list[Accumulator],
    prior: NDArray[np.float64],
    *,
    k: float,
    smoothing: float | str = "fit",
    temperature: float | str = "fit",
    workers: int = 1,
) -> Fit:
    """Find the smoothing and one temperature a group by the leave-one-out cross-entropy of a sample.

    Parameters
    ----------
    sample : Sample of n examples in G groups
    accumulators : list of G accumulators
        They hold the sample's own counts too.
    prior : (C,)
    k : float
    smoothing : float or "fit"
        A number is kept; "fit" walks a grid of 1 to 10,000 co-occurrences downhill on every other example.
    temperature : float or "fit"
        A number is kept for every group.

    Returns
    -------
    Fit
    """
    check_settings(smoothing, temperature)
    start = np.full(len(accumulators), 1.0 if temperature == "fit" else float(temperature))

    def at(eps: float, on: Sample, tau: NDArray[np.float64]) -> Fit:
        objective = cross_entropy(on, accumulators, prior, k=k, smoothing=eps, workers=workers)
        if temperature != "fit":
            return Fit(eps, tau, objective(tau)[0])
        found = minimize(
            objective, tau, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * tau.size, options={"ftol": 1e-9}
        )
        return Fit(eps, found.x, float(found.fun))

    if smoothing != "fit":
        return at(float(smoothing), sample, start)
    half = sample.every(2) if sample.size > 2 * ROWS else sample
    tried: dict[int, Fit] = {}
    best = SMOOTHING_GRID.index(100.0)
    tried[best] = at(SMOOTHING_GRID[best], half, start)
    for step in (1, -1):
        while 0 <= best + step < len(SMOOTHING_GRID) and best + step not in tried:
            trial = best + step
            tried[trial] = at(SMOOTHING_GRID[trial], half, tried[best].temperatures)
            if tried[trial].nats >= tried[best].nats:
                break
            best = trial
    return at(tried[best].smoothing, sample, tried[best].temperatures)
