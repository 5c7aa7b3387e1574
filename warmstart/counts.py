"""Unigram and bigram counts, and the n-gram models made of them: the marks a warm start has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart.solution import class_prior

CHUNK = 1 << 22  # pairs sorted at once


def bigram_counts(tokens: NDArray[np.integer], vocab_size: int) -> sparse.csr_array:
    """Count pairs of a token and the next one, (V, V) int64; all but the first token of the array come second once.

    Examples
    --------
    >>> bigram_counts(np.array([0, 1, 0, 1]), 2).toarray().tolist()
    [[0, 2], [1, 0]]
    """
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, tokens.size - 1, CHUNK):
        part = np.asarray(tokens[start : start + CHUNK + 1], dtype=np.int64)
        new, times = np.unique(part[:-1] * vocab_size + part[1:], return_counts=True)
        keys, index = np.unique(np.concatenate([keys, new]), return_inverse=True)
        counts = np.bincount(index, np.concatenate([counts, times])).astype(np.int64)
    first, second = np.divmod(keys, vocab_size)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=vocab_size))])
    return sparse.csr_array((counts, second, indptr), shape=(vocab_size, vocab_size))


@dataclass(frozen=True)
class NGrams:
    """Unigram and absolute-discounting bigram models of one corpus.

    The bigram is ``P(y | x) = max(c(x, y) - d, 0) / c(x) + d * types(x) / c(x) * P(y)`` with ``d = n1 / (n1 + 2 n2)``
    from the numbers of pairs seen once and twice (Ney, Essen and Kneser 1994, Computer Speech and Language 8).

    Parameters
    ----------
    unigrams : (V,) int64
        How often each token is a target.
    bigrams : (V, V) csr_array of int64
        Pairs of a token and the next.
    """

    unigrams: NDArray[np.int64]
    bigrams: sparse.csr_array

    @property
    def discount(self) -> float:
        """The discount d."""
        once, twice = (int((self.bigrams.data == n).sum()) for n in (1, 2))
        return once / (once + 2 * twice) if once + twice else 0.5

    def nats(self, tokens: NDArray[np.integer]) -> tuple[float, float]:
        """Return the mean ``-log P`` of all tokens but the first under the unigram and under the bigram.

        Examples
        --------
        >>> tokens = np.array([0, 1, 0, 1, 0])
        >>> model = NGrams(np.array([2, 2]), bigram_counts(tokens, 2))
        >>> [round(float(np.exp(x)), 3) for x in model.nats(tokens)]
        [2.0, 1.0]
        """
        prior = class_prior(self.unigrams)
        seen = np.maximum(self.bigrams.sum(axis=1), 1)
        kept = self.bigrams.astype(np.float64)
        kept.data -= self.discount
        left = np.where(self.bigrams.sum(axis=1) > 0, self.discount * np.diff(self.bigrams.indptr) / seen, 1.0)
        unigram = bigram = 0.0
        for start in range(0, tokens.size - 1, CHUNK):
            part = np.asarray(tokens[start : start + CHUNK + 1], dtype=np.int64)
            x, y = part[:-1], part[1:]
            probability = np.asarray(kept[x, y]).ravel() / seen[x] + left[x] * prior[y]
            unigram -= float(np.log(prior[y]).sum())
            bigram -= float(np.log(probability).sum())
        return unigram / (tokens.size - 1), bigram / (tokens.size - 1)
