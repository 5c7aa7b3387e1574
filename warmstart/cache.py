"""The cache: an expert that knows what this document has said so far.

| symbol | meaning |
|---|---|
| `h`, `y` | the last tokens of the document, and the next one |
| `c(hy)`, `c(h)` | how often h was followed by y, and by anything |
| `types(h)` | how many different tokens followed h |
| `d` | the discount, ``0 < d <= 1`` |
| `V` | vocabulary size |

The n-grams of the document so far predict its next token, by interpolated absolute discounting of their counts:

    P_n(y | h) = max(c(hy) - d, 0) / c(h) + d types(h) / c(h) P_{n-1}(y | h'),    P_0 = 1 / V

where h' is h without its oldest token. For a context that was not seen, ``P_n = P_{n-1}``. The separator in front of
the document is the oldest token of the history. Only the last ``size`` targets count: the oldest leaves when a new one
is written.
"""

import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError
from warmstart.ids import as_array

Ints = NDArray[np.integer]

_TOTAL, _WRITTEN = 3, 2  # places of total and types in a node, and of the position in the state: see _cache_kernels
MAX_NODES = 2**30
MAX_ORDER = 127  # lengths of contexts are int8


@dataclass(frozen=True, eq=False)
class CacheCounts:
    """What the cache knew of n targets, each before it was written.

    Attributes
    ----------
    counts : (n, order, 3) int32
        For contexts h of 0, 1, ..., order - 1 tokens: ``c(hy)``, ``c(h)`` and ``types(h)``. They are 0 where the
        history is shorter than the context.
    position : (n,) int64
        Tokens of the document before the target, 0 right after a separator. The size of the cache is no bound.
    vocab_size : int
    """

    counts: NDArray[np.int32]
    position: NDArray[np.int64]
    vocab_size: int

    @property
    def known(self) -> NDArray[np.int8]:
        """Tokens (n,) of the longest context that the cache has seen; 0 if it is the empty one or there is none."""
        lengths: NDArray[np.int8] = (self.counts[:, 1:, 1] > 0).sum(axis=1, dtype=np.int8)
        return lengths

    def probabilities(self, discount: float) -> NDArray[np.float64]:
        """Return the probability (n,) of each target.

        Raises
        ------
        InputError
            The discount is not above 0 and at most 1.
        """
        _check_discount(discount)
        P = np.full(len(self.counts), 1 / self.vocab_size)
        for k in range(self.counts.shape[1]):
            seen = np.flatnonzero(self.counts[:, k, 1])
            pair, total, types = self.counts[seen, k].T
            P[seen] = np.maximum(pair - discount, 0.0) / total + discount * types / total * P[seen]
        return P


class DocumentCache:
    """N-gram counts of the document so far, read and written token by token; a fresh one stands after a separator.

    A token costs the same however long the document is. A separator is read as a target like any token; then the cache
    is empty, for the work that the document's own tokens cost. Memory is bounded by ``size * order``.

    Parameters
    ----------
    vocab_size : int
        ``V``.
    separator : int
        Id of the separator.
    order : int
        Longest n-gram, from 1 to 127: order 3 has contexts of up to 2 tokens.
    size : int
        How many targets count, the newest ones of the document.
    discount : float
        ``d`` of `row`, above 0 and at most 1.

    Raises
    ------
    InputError
        A parameter is out of range, or the size is too large for the order.

    References
    ----------
    Kuhn and De Mori 1990, IEEE Transactions on Pattern Analysis and Machine Intelligence 12 (cache); Ney, Essen and
    Kneser 1994, Computer Speech and Language 8 (absolute discounting); Goodman 2001, arXiv cs/0108005, section 3
    (caches of n-grams).

    Examples
    --------
    >>> cache = DocumentCache(vocab_size=4, separator=0)
    >>> counts = cache.read([1, 2, 1, 2])
    >>> counts.counts[:, 1].tolist()  # (1, 2) was seen once when 2 came again
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
    >>> counts.known.tolist(), counts.probabilities(0.5).round(3).tolist()
    ([0, 0, 0, 1], [0.25, 0.125, 0.375, 0.625])
    >>> cache.row().round(3).tolist()  # with its own discount of 0.7
    [0.043, 0.712, 0.202, 0.043]
    """

    def __init__(
        self, vocab_size: int, separator: int, order: int = 3, size: int = 65_536, discount: float = 0.7
    ) -> None:
        if not 1 <= vocab_size < 2**31:
            raise InputError(f"expected a vocab_size from 1 to {2**31 - 1}, got {vocab_size}")
        if not 0 <= separator < vocab_size:
            raise InputError(f"expected the id of a separator from 0 to {vocab_size - 1}, got {separator}")
        if not 1 <= order <= MAX_ORDER:
            raise InputError(f"expected an order from 1 to {MAX_ORDER}, got {order}")
        places = (size + order) * order + 1  # for nodes, the root included: see _cache_kernels
        if size < 1 or places > MAX_NODES:
            raise InputError(
                f"expected a size from 1 to {(MAX_NODES - 1) // order - order} for order {order}, got {size}"
            )
        _check_discount(discount)
        self.vocab_size, self.separator, self.order, self.size = vocab_size, separator, order, size
        self.discount = discount
        self._slots = np.zeros(1 << places.bit_length() + 1, np.int32)
        self._nodes = np.zeros((places, 8), np.int32)
        self._ring = np.zeros((size, order), np.int32)
        self._contexts = np.zeros(order, np.int32)
        self._state = np.zeros(3, np.int64)

    def read(self, tokens: Ints | list[int]) -> CacheCounts:
        """Read the next tokens of the stream; each is scored and then written. The cut into calls changes nothing.

        Parameters
        ----------
        tokens : (n,) int
            Targets: a corpus without its first separator.

        Raises
        ------
        InputError
            The tokens are not a row of ids below `vocab_size`. Nothing has changed.
        """
        from warmstart import _cache_kernels  # numba is loaded here, not on import

        ids = self._checked(tokens)
        counts = np.empty((ids.size, self.order, 3), np.int32)
        position = np.empty(ids.size, np.int64)
        tree = (self._slots, self._nodes, self._ring, self._contexts, self._state)
        _cache_kernels.read(ids, self.separator, *tree, counts, position)
        return CacheCounts(counts, position, self.vocab_size)

    def contexts(self) -> CacheCounts:
        """Return what the cache knows of the next target before it is seen: (1, order, 3), ``c(hy)`` left 0."""
        counts = np.zeros((1, self.order, 3), np.int32)
        written = int(self._state[_WRITTEN])
        for k in range(min(self.order, written + 1)):
            counts[0, k, 1:] = self._nodes[self._contexts[k], _TOTAL : _TOTAL + 2]
        return CacheCounts(counts, np.array([written]), self.vocab_size)

    def row(self) -> NDArray[np.float64]:
        """Return the distribution (V,) of the next token, in time that grows with V and not with the document."""
        from warmstart import _cache_kernels  # numba is loaded here, not on import

        out = np.full(self.vocab_size, 1 / self.vocab_size)
        _cache_kernels.row(self._nodes, self._contexts, self.discount, out)
        return out

    def copy(self) -> Self:
        """Return a cache in the same state, which goes its own way from here."""
        return copy.deepcopy(self)

    def _checked(self, tokens: Ints | list[int]) -> NDArray[np.int32]:
        ids = as_array("token ids", tokens)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise InputError(f"expected a row of token ids, got an array of shape {ids.shape} and type {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(
                f"expected ids from 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}; "
                "use the tokenizer that the cache was made for"
            )
        return np.ascontiguousarray(ids, np.int32)


def _check_discount(discount: float) -> None:
    if not 0 < discount <= 1:
        raise InputError(f"expected a discount above 0 and at most 1, got {discount}")
