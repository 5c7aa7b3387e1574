"""The explicit solution of a softmax layer: counts in, weights out. The only module that takes logarithms of counts.

| symbol | shape | meaning |
|---|---|---|
| `F` | (D, C) | co-occurrence of inputs and targets |
| `p` | (C,) | class prior |
| `k` | | features per prediction: the mean L1 norm of the inputs |
| `eps` | | smoothing: co-occurrences added to each feature, spread over the classes in proportion to `p` |
| `tau` | (G,) | temperature of each group of features; a group is a position, a context, or the whole input |

    U[d, c] = tau_g(d) * log(F[d, c] / F[., c]) + 1/k * log p[c]            F[., c] = sum_d F[d, c]

At ``tau = 1``, without smoothing and with ``p = F. / sum(F.)`` (`marginal_prior`), this is the published
``log F - (k-1)/k log F.`` up to a constant that a softmax ignores (Williams and Zhao 2023, arXiv 2311.07498,
theorem 1). It is multinomial naive Bayes with the prior raised to ``|x|_1 / k``.

Naive Bayes counts correlated evidence twice. The temperatures correct this; they minimise a cross-entropy that is
convex in them. Each example of the sample is scored with its own count removed ("leave one out"; the prior keeps it),
so no data are held back for the fit.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from warmstart._softmax import exponentiate
from warmstart._threads import blocks, run_parts
from warmstart.accumulators import Accumulator
from warmstart.device import if_it_fits
from warmstart.errors import InputError

Inputs: TypeAlias = NDArray[np.floating] | sparse.csr_array
EXAMPLES_PER_BLOCK = 256  # fixed, so that sums do not depend on the number of threads
CLASSES_PER_BLOCK = 256
KEPT_BYTES = 2**30
SECANT_STEPS = 9
SMOOTHING_GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def class_prior(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return class probabilities. A class without examples counts as half an example, so that its logarithm exists.

    Examples
    --------
    >>> class_prior(np.array([3, 1, 0])).round(3).tolist()
    [0.667, 0.222, 0.111]
    """
    floored = np.maximum(counts, 0.5)
    return np.asarray(floored / floored.sum(), dtype=np.float64)


def marginal_prior(accumulator: Accumulator) -> NDArray[np.float64]:
    """Return each class's share of the co-occurrences, ``F[., c]``: the prior of the published formula.

    A class without counts gets half an example of mean norm. If all inputs have the same L1 norm, these are the shares
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
    accumulator: Accumulator,
    prior: NDArray[np.float64],
    smoothing: float,
    dtype: type = np.float32,
    device: str | None = None,
) -> NDArray[np.floating]:
    """Return ``log(F[d, c] / F[., c])`` of the smoothed counts.

    Parameters
    ----------
    accumulator : Accumulator of (D, C)
    prior : (C,)
        Class probabilities.
    smoothing : float
        Co-occurrences added to each feature, spread over the classes in proportion to ``prior``.
    dtype : type
        Of the result.
    device : str, optional
        Device of PyTorch, such as "cuda", that takes the logarithms for float32, if its memory holds them; else, and
        for float64, numpy does. The result does not depend on it, to the bit.

    Returns
    -------
    (D, C) array, C-contiguous

    Raises
    ------
    InputError
        A count and the smoothing are both zero.
    """
    n_features, n_classes = accumulator.F.shape
    if device is not None and dtype is np.float32:
        found = _log_likelihood_on(device, accumulator, smoothing * prior[:, None])
        if found is not None:
            return found
    out: NDArray[np.floating] = np.empty((n_features, n_classes), dtype)
    for classes in blocks(n_classes, CLASSES_PER_BLOCK):
        counts = accumulator.sums[classes] * accumulator.scale
        added = smoothing * prior[classes, None]
        marginal = accumulator.sums[classes].sum(axis=1, keepdims=True) * accumulator.scale + n_features * added
        counts += added
        if not counts.all():
            raise InputError("a feature never occurred with a class and smoothing is 0; expected smoothing > 0")
        np.log(counts, out=counts)
        counts -= np.log(marginal)
        out[:, classes] = counts.T
    return out


def _log_likelihood_on(device: str, accumulator: Accumulator, added: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Return `log_likelihood` from a device, None if its memory does not suffice. added: (C, 1)."""
    from warmstart import _solution_torch  # torch is loaded here, not on import

    sums, scale = accumulator.sums, accumulator.scale
    marginal = sums.sum(axis=1, keepdims=True) * scale + sums.shape[1] * added
    with np.errstate(divide="ignore"):  # a class without counts, which is refused
        logs = np.log(marginal)
    return if_it_fits(_solution_torch.log_likelihood, sums, scale, added, logs, device)


def solve(
    accumulators: list[Accumulator],
    prior: NDArray[np.float64],
    *,
    k: float,
    smoothing: float,
    temperatures: NDArray[np.float64],
    dtype: type = np.float32,
    device: str | None = None,
) -> NDArray[np.floating]:
    """Return the weights of a softmax layer on the concatenated groups.

    Parameters
    ----------
    accumulators : list of G accumulators, (D_g, C) each
    prior : (C,)
    k : float
        Features per prediction; ``numpy.inf`` leaves the prior out.
    smoothing : float
        Co-occurrences added to each feature, see `log_likelihood`.
    temperatures : (G,)
        One for each group; 1 is the published solution.
    dtype, device
        See `log_likelihood`.

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
    weights = []
    for accumulator, tau in zip(accumulators, temperatures, strict=True):
        table = log_likelihood(accumulator, prior, smoothing, dtype, device)
        table *= dtype(tau)
        table += bias.astype(dtype)
        weights.append(table)
    return np.concatenate(weights) if len(weights) > 1 else weights[0]


@dataclass
class Sample:
    """Examples on which temperatures are fitted. Each is left out of the counts while it is scored.

    Attributes
    ----------
    groups : list of G arrays or csr_arrays, (n, D_g) each
        Inputs by group.
    targets : (n, C) csr_array
        Target distributions, rows summing to 1, or to what the counts hold of one such example.
    keep_scores : bool
        Keep the scores, (n, C) float32 for each group, from one evaluation to the next if they fit in `KEPT_BYTES`.
    repeats : (n,) float64, optional
        How many examples each stands for; one of them is left out. 1 by default.
    """

    groups: list[Inputs]
    targets: sparse.csr_array
    keep_scores: bool = False
    repeats: NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return int(self.targets.shape[0])

    def every(self, stride: int) -> "Sample":
        """Return every ``stride``-th example."""
        repeats = None if self.repeats is None else self.repeats[::stride]
        return Sample([X[::stride] for X in self.groups], self.targets[::stride], self.keep_scores, repeats)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Weight of each example (n,) in the cross-entropy; None for equal weights."""
        return None if self.repeats is None else np.asarray(self.targets.sum(axis=1)).ravel() * self.repeats


def leave_one_out(
    X: Inputs,
    targets: sparse.csr_array,
    accumulator: Accumulator,
    prior: NDArray[np.float64],
    smoothing: float,
) -> NDArray[np.float64]:
    """Score each example at its own target classes, with its own count removed.

    Returns
    -------
    (nnz of targets,) float64
        ``sum_d x_d log((F[d, c] - x_d y_c) / (F[., c] - |x|_1 y_c))`` for every target class c of every example.
    """
    examples = np.repeat(np.arange(targets.shape[0]), np.diff(targets.indptr))
    sums, scale = accumulator.sums, accumulator.scale
    total = sums.sum(axis=1) * scale  # (C,)
    out = np.empty(examples.size)
    for block in blocks(examples.size, EXAMPLES_PER_BLOCK):  # a dense block of inputs is (EXAMPLES_PER_BLOCK, D)
        x: Any = X[examples[block]]
        classes, values = targets.indices[block], targets.data[block]
        added = smoothing * prior[classes]
        marginal = total[classes] - np.asarray(x.sum(axis=1)).ravel() * values
        marginal = np.log(np.maximum(marginal, 0.0) + sums.shape[1] * added)
        if sparse.issparse(x):
            row = np.repeat(np.arange(classes.size), np.diff(x.indptr))
            rest = sums[classes[row], x.indices] * scale - x.data * values[row]
            terms = x.data * (np.log(np.maximum(rest, 0.0) + added[row]) - marginal[row])
            out[block] = np.bincount(row, terms, minlength=classes.size)
        else:
            rest = sums[classes] * scale - x * values[:, None]
            terms = x * (np.log(np.maximum(rest, 0.0) + added[:, None]) - marginal[:, None])
            out[block] = terms.sum(axis=1)
    return out


def unit(norm: float) -> float:
    """Return the power of two next to the mean norm of inputs, in which they are near 1; 1 for inputs that are all 0.

    Examples
    --------
    >>> unit(0.99), unit(3e11) == 2.0**38
    (1.0, True)
    """
    return float(2.0 ** np.round(np.log2(norm))) if norm > 0 else 1.0


class CrossEntropy:
    """Cross-entropy of a leave-one-out sample, in nats per example, as a function of the temperatures; it is convex.

    The parameters are those of `fit`, but ``smoothing`` is a number, and scores are of type ``dtype``.
    """

    def __init__(
        self,
        sample: Sample,
        accumulators: list[Accumulator],
        prior: NDArray[np.float64],
        *,
        k: float,
        smoothing: float,
        workers: int = 1,
        dtype: type = np.float32,
        device: str | None = None,
    ) -> None:
        self.sample, self.k, self.workers, self.dtype = sample, k, workers, dtype
        self.weights = sample.weights
        self.blocks = blocks(sample.size, EXAMPLES_PER_BLOCK * 4 // np.dtype(dtype).itemsize)
        self.units = np.array([unit(accumulator.mean_norm) for accumulator in accumulators])
        self.tables = [log_likelihood(a, prior, smoothing, dtype, device) for a in accumulators]
        self.left_out = [
            leave_one_out(X, sample.targets, a, prior, smoothing) / of_group
            for X, a, of_group in zip(sample.groups, accumulators, self.units, strict=True)
        ]
        self.log_prior: NDArray[np.floating] = np.log(prior).astype(dtype)
        self.keep = sample.keep_scores and sample.size * prior.size * len(self.tables) * 4 <= KEPT_BYTES
        self.kept_scores: dict[int, list[NDArray[np.floating]]] = {}

    def __call__(self, temperatures: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the cross-entropy and its gradient (G,)."""
        with threadpool_limits(1):
            sums = run_parts(lambda rows: self._block(temperatures * self.units, rows), self.blocks, self.workers)
        mean = np.sum(sums, axis=0) / (self.sample.size if self.weights is None else self.weights.sum())
        return float(mean[0]), mean[1:] * self.units

    def _scores(self, rows: slice, at: tuple[NDArray[np.intp], NDArray[np.integer]], entries: slice) -> Any:
        """Return the evidence (n, C) of each group in its unit for a block, its own count removed at the targets."""
        if rows.start in self.kept_scores:
            return self.kept_scores[rows.start]
        scores = []
        for X, of_group, table, left_out in zip(
            self.sample.groups, self.units, self.tables, self.left_out, strict=True
        ):
            x = X[rows] if of_group == 1 else X[rows] / of_group
            evidence = x.astype(table.dtype, copy=False) @ table
            evidence[at] = left_out[entries]
            scores.append(evidence)
        if self.keep:
            self.kept_scores[rows.start] = scores
        return scores

    def _block(self, temperatures: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Return the sums over a block of examples: the cross-entropy, then its slope for each group."""
        targets = self.sample.targets
        indptr = targets.indptr[rows.start : rows.stop + 1]
        entries = slice(indptr[0], indptr[-1])
        row = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
        at, values = (row, targets.indices[entries]), targets.data[entries]
        norm: Any = sum(np.asarray(X[rows].sum(axis=1)).ravel() for X in self.sample.groups)
        z = (norm / self.k).astype(self.dtype)[:, None] * self.log_prior
        scores = self._scores(rows, at, entries)
        for evidence, tau in zip(scores, temperatures, strict=True):
            z += self.dtype(tau) * evidence
        at_target = z[at].astype(np.float64)
        mass, top = exponentiate(z)
        if self.weights is not None and self.sample.repeats is not None:
            values = values * self.sample.repeats[rows][row]
            z *= self.weights[rows, None]
        loss = values @ ((np.log(mass) + top)[row] - at_target)
        slopes = [(np.einsum("nc,nc->n", z, a) / mass).sum(dtype=np.float64) - values @ a[at] for a in scores]
        return np.array([loss, *slopes])


def refined(objective: CrossEntropy, temperature: float) -> float:
    """Return the one temperature at which the slope of a cross-entropy in float64 is 0, from a value close to it.

    Equal samples then give equal temperatures, whatever the order of their examples. A value from which the secant
    method does not get there, such as one at a bound of its search, is returned as it is.
    """

    def slope(tau: float) -> float:
        return float(objective(np.array([tau]))[1][0])

    before, now = temperature * 1.001, temperature
    slope_before, slope_now = slope(before), slope(now)
    for _ in range(SECANT_STEPS):
        if slope_now == slope_before:
            break
        step = slope_now * (now - before) / (slope_now - slope_before)
        before, now, slope_before = now, now - step, slope_now
        if abs(step) <= 1e-13 * abs(now):
            return now
        slope_now = slope(now)
    return temperature


def check_settings(smoothing: float | str, temperature: float | str) -> None:
    """Raise InputError unless both are "fit" or a finite number above 0."""
    for name, value in (("smoothing", smoothing), ("temperature", temperature)):
        if value != "fit" and (isinstance(value, str) or not 0 < value < np.inf):
            raise InputError(f'{name}: expected "fit" or a finite number above 0, got {value!r}')


@dataclass(frozen=True)
class Fit:
    """Smoothing and temperatures (G,) found by `fit`, and the cross-entropy of the sample, in nats per example.

    ``bounds`` names what the search left at a bound, such as "smoothing 1" or "temperature 0 of group 2": a better
    smoothing may lie beyond, and these features do not help to predict.
    """

    smoothing: float
    temperatures: NDArray[np.float64]
    cross_entropy: float
    bounds: tuple[str, ...] = ()


def fit(
    sample: Sample,
    accumulators: list[Accumulator],
    prior: NDArray[np.float64],
    *,
    k: float,
    smoothing: float | str = "fit",
    temperature: float | str = "fit",
    workers: int = 1,
    device: str | None = None,
) -> Fit:
    """Find the smoothing and a temperature for each group that minimise the leave-one-out cross-entropy of a sample.

    Parameters
    ----------
    sample : Sample of n examples in G groups
    accumulators : list of G accumulators
        They contain the counts of the sample too.
    prior : (C,)
    k : float
        Features per prediction.
    smoothing : float or "fit"
        A number is used as it is. "fit" goes down a grid of 1 to 10,000 co-occurrences, on every other example.
    temperature : float or "fit"
        A number is used as it is, for every group.
    workers : int
        Number of threads; the result does not depend on it.
    device : str, optional
        See `log_likelihood`; nor on it.
    """
    check_settings(smoothing, temperature)

    def fit_at(eps: float, examples: Sample, tau: NDArray[np.float64]) -> Fit:
        objective = CrossEntropy(examples, accumulators, prior, k=k, smoothing=eps, workers=workers, device=device)
        if temperature != "fit":
            return Fit(eps, tau, objective(tau)[0])
        scale = np.where(tau > 0, tau, 1.0 / objective.units)  # the search sees numbers near 1, whatever the units

        def scaled(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, slopes = objective(x * scale)
            return value, slopes * scale

        bounds, options = [(0.0, None)] * tau.size, {"ftol": 1e-9}
        minimum = minimize(scaled, tau / scale, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        at_zero = tuple(f"temperature 0 of group {g}" for g in np.flatnonzero(minimum.x == 0) + 1)
        return Fit(eps, minimum.x * scale, float(minimum.fun), at_zero)

    units = np.array([unit(accumulator.mean_norm) for accumulator in accumulators])
    start = 1.0 / units if temperature == "fit" else np.full(units.size, temperature, float)
    if smoothing != "fit":
        return fit_at(float(smoothing), sample, start)
    half = sample.every(2) if sample.size > 2 * EXAMPLES_PER_BLOCK else sample
    best = SMOOTHING_GRID.index(100.0)
    tried = {best: fit_at(SMOOTHING_GRID[best], half, start)}
    for step in (1, -1):
        while 0 <= best + step < len(SMOOTHING_GRID) and best + step not in tried:
            trial = best + step
            tried[trial] = fit_at(SMOOTHING_GRID[trial], half, tried[best].temperatures)
            if tried[trial].cross_entropy >= tried[best].cross_entropy:
                break
            best = trial
    found = fit_at(tried[best].smoothing, sample, tried[best].temperatures)
    if best in (0, len(SMOOTHING_GRID) - 1):
        found = replace(found, bounds=(f"smoothing {found.smoothing:g}", *found.bounds))
    return found
