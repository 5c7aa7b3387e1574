"""The gate of a mixture: weights of the experts, fitted by expectation-maximisation.

A mixture gives ``P(y) = sum_m lambda_m(b) P_m(y)``. The bucket b is known before the target: it is the combination of a
few small whole numbers, the features. The weights of a bucket maximise the probability of a sample. They need no
gradient: in turn, each expert gets the share of each target that it explains, and the weights become the mean shares.

A bucket with little data needs help. Weights are fitted for no feature first, then for the first, for the first two,
and so on. The weights of the coarser bucket count as `STRENGTH` targets in each finer one. The probability of the
sample cannot fall on the way: a finer bucket starts at the weights of the coarser one, and every step of the algorithm
raises the probability plus what speaks for these weights. So on its sample the gate is never worse than the best single
weights. Sources: Dempster, Laird and Rubin 1977 (Journal of the Royal Statistical Society B 39); Jelinek and Mercer
1980 (Pattern Recognition in Practice; buckets).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError

FLOOR = 0.01  # least weight of the last expert, the unigram model: no token costs over 4.6 nats more than there
STRENGTH = 100.0  # targets
TOLERANCE = 1e-6  # nats a target: the smallest gain of a step
MOST_STEPS = 200
ADDED_FEATURES = 3


@dataclass(frozen=True, eq=False)
class Gate:
    """Weights of experts by bucket.

    Attributes
    ----------
    sizes : tuple of int
        Number of values of each feature.
    weights : (product of sizes, m) float64
        Weights of the experts in every bucket; they sum to 1. The last feature varies fastest.

    Raises
    ------
    InputError
        A weight is no number from 0 to 1, or one of the last expert is below `FLOOR`.
    """

    sizes: tuple[int, ...]
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what are no weights."""
        weights, sums = self.weights, self.weights.sum(axis=1)
        if not (weights.min() >= 0 and weights[:, -1].min() >= FLOOR - 1e-9 and np.abs(sums - 1).max() < 1e-6):
            raise InputError(
                f"expected weights from 0 to 1 with sum 1, at least {FLOOR} for the last expert, got weights from "
                f"{weights.min()}, from {weights[:, -1].min()} for the last, and sums from {sums.min()} to {sums.max()}"
            )

    def index(self, features: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bucket (n,) of features (n, k); values above the largest count as the largest."""
        return buckets(features, self.sizes)

    def mix(self, probs: NDArray[np.float64], features: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return what each expert adds to the probability of each target (n, m); its sum is that of the mixture.

        Parameters
        ----------
        probs : (n, m)
        features : (n, k) int
        """
        added: NDArray[np.float64] = self.weights[self.index(features)] * probs
        return added


def buckets(features: NDArray[np.integer], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return one number for each combination of features.

    Examples
    --------
    >>> buckets(np.array([[0, 2], [1, 0], [1, 9]]), (2, 3)).tolist()
    [2, 3, 5]
    """
    index = np.zeros(len(features), np.int64)
    for column, size in zip(features.T, sizes, strict=True):
        index = index * size + np.clip(column, 0, size - 1)
    return index


def fit_gate(
    probs: NDArray[np.float64], features: NDArray[np.integer], sizes: tuple[int, ...]
) -> tuple[Gate, list[float]]:
    """Fit the weights of a gate.

    Parameters
    ----------
    probs : (n, m)
        Probability of each target of the sample by each expert, as if it had not been counted. The last expert is the
        unigram model.
    features : (n, k) int
        The most useful feature first.
    sizes : tuple of k int

    Returns
    -------
    gate : Gate
    losses : list of k + 1 float
        Nats a target on the sample: without features, with the first, with the first two, and so on.

    Raises
    ------
    InputError
        The sample is empty, an expert gives it a probability that is no number from 0 to 1, or the features do not fit.

    Examples
    --------
    Two experts, each right in one bucket:

    >>> probs = np.array([[0.9, 0.1]] * 500 + [[0.1, 0.9]] * 500)
    >>> gate, losses = fit_gate(probs, np.repeat([[0], [1]], 500, axis=0), (2,))
    >>> gate.weights.round(2).tolist()
    [[0.91, 0.09], [0.09, 0.91]]
    >>> [round(loss, 2) for loss in losses]
    [0.69, 0.19]
    """
    from warmstart import _mixture_kernels as kernels  # numba is loaded here, not on import

    if not len(probs):
        raise InputError("expected targets to fit the weights of experts on, got none; give more text")
    if not (np.isfinite(probs).all() and probs.min() >= 0 and probs[:, -1].min() > 0 and probs.max() <= 1 + 1e-9):
        raise InputError(
            "expected probabilities from 0 to 1, and above 0 for the unigram model, got "
            f"{probs.min()} to {probs.max()} and {probs[:, -1].min()}"
        )
    if features.shape != (len(probs), len(sizes)):
        raise InputError(f"expected features {(len(probs), len(sizes))}, got {features.shape}")
    weights, losses = np.full((1, probs.shape[1]), 1.0 / probs.shape[1]), []
    for k in range(len(sizes) + 1):
        prior = tried = np.repeat(weights, sizes[k - 1] if k else 1, axis=0)
        index, best = buckets(features[:, :k], sizes[:k]), -np.inf
        for _ in range(MOST_STEPS):
            sums = np.zeros_like(prior)
            total = kernels.responsibilities(probs, index, tried, sums)
            support = STRENGTH * float((prior * np.log(np.maximum(tried, 1e-300))).sum()) if k else 0.0
            gain, best = total + support - best, max(best, total + support)
            if gain > 0:
                weights, loss = tried, -total / len(probs)
            if gain <= TOLERANCE * len(probs):
                break
            tried = _normalised(sums + STRENGTH * prior if k else sums)
        losses.append(loss)
    return Gate(sizes, weights), losses


def with_expert(
    gate: Gate, probs: NDArray[np.float64], added: NDArray[np.float64], features: NDArray[np.integer]
) -> Gate:
    """Add an expert, last but one, to a gate whose other weights stay in proportion.

    Its weight depends on the same features as far as `ADDED_FEATURES` of them: it needs less data than a new gate.

    Parameters
    ----------
    gate : Gate
    probs : (n, m)
        Probability of each target by the experts of the gate.
    added : (n,)
        The same by the new expert.
    features : (n, k) int
    """
    mixed = gate.mix(probs, features).sum(axis=1)
    k = min(ADDED_FEATURES, len(gate.sizes))
    small, _ = fit_gate(np.stack([added, mixed], axis=1), features[:, :k], gate.sizes[:k])
    share = np.repeat(small.weights[:, :1], len(gate.weights) // len(small.weights), axis=0)
    return Gate(gate.sizes, _normalised(np.insert((1 - share) * gate.weights, -1, share[:, 0], axis=1)))


def with_share(gate: Gate, share: float) -> Gate:
    """Add an expert, last but one, that has the same weight in every bucket.

    The other weights stay in proportion, as far as the last expert keeps `FLOOR`.

    Examples
    --------
    >>> with_share(Gate((1,), np.array([[0.5, 0.5]])), 0.1).weights.tolist()
    [[0.45, 0.1, 0.45]]
    """
    weights = np.insert((1.0 - share) * gate.weights, -1, share, axis=1)
    weights[:, -1] = np.maximum(weights[:, -1], FLOOR)
    weights[:, :-1] *= (1.0 - weights[:, -1:]) / weights[:, :-1].sum(axis=1, keepdims=True)
    return Gate(gate.sizes, weights)


def _normalised(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide rows by their sums, with at least `FLOOR` for the last expert: the best weights under this bound."""
    weights: NDArray[np.float64] = sums / sums.sum(axis=1, keepdims=True)
    low = weights[:, -1] < FLOOR
    rest = weights[low, :-1]
    weights[low, :-1] = (1 - FLOOR) * rest / rest.sum(axis=1, keepdims=True)
    weights[low, -1] = FLOOR
    return weights
