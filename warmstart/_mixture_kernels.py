"""Compiled loop of the mixture: expectation-maximisation of its weights."""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(cache=True, nogil=True)
def responsibilities(probs: NDArray[Any], index: NDArray[Any], weights: NDArray[Any], sums: NDArray[Any]) -> float:
    """Add the responsibility of every expert for every target to ``sums``, and return the sum of ``log P``.

    probs (n, m): probability of each target by each expert; index (n,): bucket of each target; weights, sums (B, m).
    """
    total = 0.0
    n, m = probs.shape
    for i in range(n):
        b = index[i]
        p = 0.0
        for j in range(m):
            p += weights[b, j] * probs[i, j]
        for j in range(m):
            sums[b, j] += weights[b, j] * probs[i, j] / p
        total += np.log(p)
    return total
