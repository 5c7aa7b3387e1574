"""The document so far: its last tokens, and which tokens followed the contexts that end it, found by search.

`warmstart.cache` keeps a tree of n-grams. A small machine has no room for it. The text itself takes two bytes a token,
and numpy searches 100,000 of them for the newest one in less time than the rows of the vocabulary take.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST_ROOM = 1024  # tokens


class Followers(NamedTuple):
    """The different tokens (types,) that followed a context, how often each, and all together."""

    tokens: NDArray[Any]
    counts: NDArray[Any]
    total: int


class Document:
    """The tokens since the separator that caches of some orders and sizes need; the separator itself is not kept.

    Parameters
    ----------
    vocab_size : int
    caches : sequence of (order, size)
        Longest n-gram of each cache, and how many of the newest tokens it holds. The first is the largest.
    keep : int
        So many tokens are needed without a cache.
    """

    def __init__(self, vocab_size: int, caches: Sequence[tuple[int, int]], keep: int) -> None:
        self.vocab_size, self.caches = vocab_size, tuple(caches)
        self.keep = max([keep, *(size + order for order, size in caches)])
        self.start()

    def start(self) -> None:
        """Forget the document."""
        self.size = 0  # tokens in memory
        self.text = np.zeros(FIRST_ROOM, np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        self.seen = [np.zeros(self.vocab_size, np.int32) for _ in self.caches]

    def add(self, token: int) -> None:
        """Read a token."""
        if self.size == self.text.size:
            self._make_room()
        self.text[self.size] = token
        self.size += 1
        for seen, (_, size) in zip(self.seen, self.caches, strict=True):
            seen[token] += 1
            if self.size > size:
                seen[self.text[self.size - 1 - size]] -= 1

    def _make_room(self) -> None:
        kept = self.text[max(0, self.size - self.keep) : self.size]
        text = np.zeros(2 * max(kept.size, FIRST_ROOM), kept.dtype)
        text[: kept.size] = kept
        self.text, self.size = text, kept.size

    def history(self, separator: int, length: int) -> list[int]:
        """Return the last tokens, at most so many, the separator before the document included."""
        newest: list[int] = self.text[max(0, self.size - length) : self.size].tolist()
        return newest if len(newest) == length else [separator, *newest]

    def followers(self) -> list[list[Followers]]:
        """Return for each cache what followed the last 0, 1, ... tokens, as far as anything did."""
        n, text = self.size, self.text
        longest, oldest = (max(column) for column in zip(*self.caches, strict=True)) if self.caches else (0, 0)
        places, found = [], np.zeros(0, np.int64)
        for k in range(1, min(longest, n + 1)):
            if k == 1:
                low = max(1, n - oldest)
                found = np.flatnonzero(text[low - 1 : n - 1] == text[n - 1]) + low
            else:
                found = found[found >= k]
                found = found[text[found - k] == text[n - k]]
            places.append(found)
        out = []
        for seen, (order, size) in zip(self.seen, self.caches, strict=True):
            tokens = np.flatnonzero(seen)
            levels = [Followers(tokens, seen[tokens], min(n, size))] if tokens.size else []
            for found in places[: order - 1]:
                here = found[found.searchsorted(n - size) :]
                if not here.size:
                    break
                counts = np.bincount(text[here])
                tokens = np.flatnonzero(counts)
                levels.append(Followers(tokens, counts[tokens], here.size))
            out.append(levels)
        return out
