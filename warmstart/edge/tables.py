"""Tables of n-grams that stay on the disk: the own part of every probability, and where a context's extensions are.

The number of an n-gram is its place in the tables, all levels one after the other as in `warmstart.backoff`; that of an
n-gram of one token is the token. Interpolated models need no weights of shorter contexts beside the own parts:

    P(y | h) = own(hy) + gamma(h) P(y | h'),    gamma(h) = 1 - sum_y own(hy)

where h' is h without its first token, and ``own`` of one token is its probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tables:
    """N-gram tables, see the module.

    Parameters
    ----------
    order, vocab_size : int
    arrays : mapping of str to array
        ``last`` (M,) uint16 or uint32: last token of every n-gram; ``own`` (M,) float32; ``offsets`` (C + 1,) uint32:
        numbers of the extensions of every context; ``counted`` (C,) uint8: whether the text had an extension of it.
    """

    def __init__(self, order: int, vocab_size: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.order = order
        self.last, self.own, self.offsets, self.counted = (arrays[n] for n in ("last", "own", "offsets", "counted"))
        self.base = self.own[:vocab_size].astype(np.float64)
        self.base /= self.base.sum()

    def contexts(self, history: Sequence[int]) -> list[int]:
        """Return the numbers of the n-grams that end a history and are in the tables, shortest first.

        The history holds at least the last ``order - 1`` tokens of the document, the separator in front included.
        """
        found = []
        for length in range(1, min(len(history), self.order - 1) + 1):
            node = self.find(history[-length:])
            if node < 0:
                break
            found.append(node)
        return found

    def find(self, ngram: Sequence[int]) -> int:
        """Return the number of an n-gram, -1 if it is not in the tables."""
        node = int(ngram[0])
        for token in ngram[1:]:
            start, stop = int(self.offsets[node]), int(self.offsets[node + 1])
            node = start + int(self.last[start:stop].searchsorted(self.last.dtype.type(token)))
            if node == stop or self.last[node] != token:
                return -1
        return node

    def row(self, contexts: Sequence[int]) -> NDArray[np.float64]:
        """Return the probability of every token (V,) after contexts, as `contexts` returns them."""
        row = self.base.copy()
        for h in contexts:
            start, stop = int(self.offsets[h]), int(self.offsets[h + 1])
            own = self.own[start:stop].astype(np.float64)
            row *= max(0.0, 1.0 - float(own.sum()))
            row[self.last[start:stop]] += own
        return row
