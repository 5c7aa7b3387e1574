"""Draw a token from a distribution, and refuse settings of sampling that are out of range."""

from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError

SEEDS = 2**63  # so many seeds all generators take


def draw(probs: NDArray[np.float64], temperature: float, top_p: float, rng: "np.random.Generator | None") -> int:
    """Draw a token from a distribution (V,), see `Stream.generate`. Holtzman et al. 2020, arXiv 1904.09751.

    Examples
    --------
    >>> draw(np.array([0.2, 0.5, 0.3]), 1.0, 0.4, np.random.default_rng(0))
    1
    """
    if temperature == 0 or rng is None:
        return int(probs.argmax())
    p = np.exp((np.log(np.maximum(probs, 1e-300)) - np.log(probs.max())) / max(temperature, 1e-6))
    order = np.argsort(-p, kind="stable")
    p = p[order] / p.sum()
    nucleus = p[: int(np.searchsorted(np.cumsum(p), top_p)) + 1]
    return int(order[min(int(np.searchsorted(np.cumsum(nucleus), rng.random() * nucleus.sum())), nucleus.size - 1)])


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Refuse settings of sampling that are out of range."""
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
        raise InputError(f"max_new_tokens: expected a whole number of at least 0, got {max_new_tokens!r}")
    if not isinstance(temperature, Real) or not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: expected a number of at least 0, got {temperature!r}; 0 is greedy")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise InputError(f"top_p: expected a number above 0 and at most 1, got {top_p!r}; 1 samples from all tokens")
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Refuse what is no seed of the random numbers of numpy and of PyTorch."""
    if not isinstance(seed, Integral) or not 0 <= seed < SEEDS:
        raise InputError(f"seed: expected a whole number from 0 to {SEEDS - 1}, got {seed!r}")
