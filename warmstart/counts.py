"""Counts of tokens and of pairs of neighbours, and n-gram models made of them: the marks a warm start has to beat."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import files
from warmstart.errors import InputError
from warmstart.solution import class_prior

CHUNK = 1 << 22  # pairs sorted at once
STRETCH = 1 << 12  # tokens of a stretch that is held out, or not, as a whole
HELD_OUT = 32  # every so many-th stretch


def bigram_counts(tokens: NDArray[np.integer], vocab_size: int) -> sparse.csr_array:
    """Count pairs of a token and the next one, (V, V) int64; all but the first token of the array come second once.

    Examples
    --------
    >>> bigram_counts(np.array([0, 1, 0, 1]), 2).toarray().tolist()
    [[0, 2], [1, 0]]
    """
    total = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    for start in range(0, tokens.size - 1, CHUNK):
        part = np.asarray(tokens[start : start + CHUNK + 1], dtype=np.int64)
        total += _pairs(part[:-1], part[1:], vocab_size)
    return total


@dataclass(frozen=True)
class PairStatistics:
    """Pairs of a token and the next one, the larger part to be solved and the rest to choose by. See `count_pairs`.

    Attributes
    ----------
    pairs : (V, V) csr_array of int64
        Occurrences of token x (row) before token y (column).
    held_out : (V, V) csr_array of int64
        The same from every 32nd stretch of 4,096 tokens.
    max_pairs : int
        Entries that are stored at most, in either.
    dropped : int
        Occurrences that were left out to stay below ``max_pairs``.
    vocabulary : str
        Digest of the tokenizer's vocabulary, see `vocabulary_digest`; empty if it was not given.
    """

    pairs: sparse.csr_array
    held_out: sparse.csr_array
    max_pairs: int
    dropped: int = 0
    vocabulary: str = ""

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return int(self.pairs.shape[0])

    def __add__(self, other: "PairStatistics") -> "PairStatistics":
        """Return the statistics of both texts; the same in any order while nothing is dropped.

        Raises
        ------
        InputError
            The vocabularies or the limits differ.
        """
        own, others = ((s.vocab_size, s.vocabulary[:8], s.max_pairs) for s in (self, other))
        if own != others:
            raise InputError(
                f"expected pair statistics of one vocabulary (size, digest) and limit, got {own} and {others}; "
                "count both texts with the same tokenizer and limit"
            )
        pairs, lost = _capped(self.pairs + other.pairs, self.max_pairs)
        held_out, lost_too = _capped(self.held_out + other.held_out, self.max_pairs)
        dropped = self.dropped + other.dropped + lost + lost_too
        return PairStatistics(pairs, held_out, self.max_pairs, dropped, self.vocabulary)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        parts = {"pairs": self.pairs, "held_out": self.held_out}
        arrays = {f"{k}.{a}": getattr(m, a) for k, m in parts.items() for a in ("indptr", "indices", "data")}
        facts = {name: getattr(self, name) for name in ("max_pairs", "dropped", "vocabulary")}
        files.save_arrays(path, arrays, {"pairs": facts})

    @classmethod
    def load(cls, path: Path) -> "PairStatistics":
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The file is missing, truncated or of another kind.
        """
        arrays, facts = files.load_arrays(path)
        if "pairs" not in facts:
            raise InputError(f"{path}: expected pair statistics, got a safetensors file of another kind")
        size = arrays["pairs.indptr"].size - 1
        parts = (
            sparse.csr_array(tuple(arrays[f"{k}.{a}"] for a in ("data", "indices", "indptr")), shape=(size, size))
            for k in ("pairs", "held_out")
        )
        return cls(*parts, **facts["pairs"])


def count_pairs(
    tokens: NDArray[np.integer],
    vocab_size: int,
    vocabulary: Mapping[str, int] | None = None,
    max_pairs: int = 50_000_000,
) -> PairStatistics:
    """Count the pairs of neighbours of a text in one pass, for `warmstart.spectral`.

    Memory is bounded by ``max_pairs``: above it the rarest pairs are dropped, and how many is said.

    Parameters
    ----------
    tokens : (n,) int, may be memory-mapped
    vocab_size : int
    vocabulary : mapping of str to int, optional
        Of the tokenizer, so that a model with another one is refused.
    max_pairs : int
        16 bytes each.

    Returns
    -------
    PairStatistics
        Statistics of shards are added with ``+``.

    Raises
    ------
    InputError
        Fewer than two tokens, or a token outside the vocabulary.

    Examples
    --------
    >>> count_pairs(np.array([0, 1, 0, 1]), 2).pairs.toarray().tolist()
    [[0, 2], [1, 0]]
    """
    if tokens.size < 2:
        raise InputError(f"expected at least two tokens to count a pair, got {tokens.size}; give more text")
    nothing = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    digest = "" if vocabulary is None else vocabulary_digest(vocabulary)
    total = PairStatistics(nothing, nothing, max_pairs, 0, digest)
    for start in range(0, tokens.size - 1, CHUNK):
        part = np.asarray(tokens[start : start + CHUNK + 1], dtype=np.int64)
        if part.min() < 0 or part.max() >= vocab_size:
            raise InputError(
                f"expected tokens from 0 to {vocab_size - 1}, got {part.min()} to {part.max()}; "
                "encode the text with the tokenizer of the model"
            )
        stretch = np.arange(start, start + part.size - 1) // STRETCH
        away = stretch % HELD_OUT == HELD_OUT - 1
        first, second = part[:-1], part[1:]
        kept, held_out = (_pairs(first[part], second[part], vocab_size) for part in (~away, away))
        total += PairStatistics(kept, held_out, max_pairs, 0, digest)
    return total


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """Return the sha256 of a mapping of tokens to ids, in any order."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def _pairs(first: NDArray[np.int64], second: NDArray[np.int64], vocab_size: int) -> sparse.csr_array:
    keys, counts = np.unique(first * vocab_size + second, return_counts=True)
    first, second = np.divmod(keys, vocab_size)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=vocab_size))])
    return sparse.csr_array((counts, second, indptr), shape=(vocab_size, vocab_size), dtype=np.int64)


def _capped(pairs: sparse.csr_array, max_pairs: int) -> tuple[sparse.csr_array, int]:
    """Drop the rarest pairs, all of one count together, until at most ``max_pairs`` are left; return how many went."""
    if pairs.nnz <= max_pairs:
        return pairs, 0
    least = np.partition(pairs.data, pairs.nnz - max_pairs - 1)[pairs.nnz - max_pairs - 1]
    rare = pairs.data <= least
    dropped = int(pairs.data[rare].sum())
    kept = pairs.copy()
    kept.data[rare] = 0
    kept.eliminate_zeros()
    return kept, dropped


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
