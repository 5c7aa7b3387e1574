"""Counts of tokens and of pairs of neighbours, and n-gram models made of them, to compare a warm start with."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import files
from warmstart.errors import InputError
from warmstart.solution import class_prior

PAIRS_PER_CHUNK = 1 << 22  # pairs sorted at once
STRETCH = 1 << 12  # tokens in a stretch; a stretch is held out as a whole, or not
HELD_OUT_EVERY = 32  # every so many-th stretch is held out


def bigram_counts(tokens: NDArray[np.integer], vocab_size: int) -> sparse.csr_array:
    """Count the pairs of a token (row) and the next one (column), (V, V) int64.

    Examples
    --------
    >>> bigram_counts(np.array([0, 1, 0, 1]), 2).toarray().tolist()
    [[0, 2], [1, 0]]
    """
    total = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    for _, first, second in _neighbours(tokens):
        total += _count(first, second, vocab_size)
    return total


@dataclass(frozen=True)
class PairStatistics:
    """Counts of pairs of a token and the next one: the larger part to be solved, the rest held out. See `count_pairs`.

    Attributes
    ----------
    pairs : (V, V) csr_array of int64
        Occurrences of token s (row) before token t (column).
    held_out : (V, V) csr_array of int64
        The same, from every 32nd stretch of 4,096 tokens.
    max_pairs : int
        Largest number of entries that either matrix stores.
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
        """Return the statistics of both texts. The order does not matter while nothing is dropped.

        Raises
        ------
        InputError
            The vocabularies or the limits differ.
        """
        kinds = [(s.vocab_size, s.vocabulary[:8], s.max_pairs) for s in (self, other)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"expected pair statistics of one vocabulary (size, digest) and limit, got {kinds[0]} and {kinds[1]}; "
                "count both texts with the same tokenizer and limit"
            )
        pairs, dropped = _capped(self.pairs + other.pairs, self.max_pairs)
        held_out, dropped_held_out = _capped(self.held_out + other.held_out, self.max_pairs)
        dropped += dropped_held_out + self.dropped + other.dropped
        return PairStatistics(pairs, held_out, self.max_pairs, dropped, self.vocabulary)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        matrices = {"pairs": self.pairs, "held_out": self.held_out}
        arrays = {f"{k}.{a}": getattr(m, a) for k, m in matrices.items() for a in ("indptr", "indices", "data")}
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
        pairs, held_out = (
            sparse.csr_array(tuple(arrays[f"{k}.{a}"] for a in ("data", "indices", "indptr")), shape=(size, size))
            for k in ("pairs", "held_out")
        )
        return cls(pairs, held_out, **facts["pairs"])


def count_pairs(
    tokens: NDArray[np.integer],
    vocab_size: int,
    vocabulary: Mapping[str, int] | None = None,
    max_pairs: int = 50_000_000,
) -> PairStatistics:
    """Count the pairs of neighbours of a text in one pass, for `warmstart.spectral`.

    ``max_pairs`` limits the memory. Above it the rarest pairs are dropped, and ``dropped`` says how many.

    Parameters
    ----------
    tokens : (n,) int, may be memory-mapped
    vocab_size : int
    vocabulary : mapping of str to int, optional
        The vocabulary of the tokenizer, so that a model with another one can be refused.
    max_pairs : int
        Largest number of different pairs; one takes 16 bytes.

    Returns
    -------
    PairStatistics
        Add those of shards with ``+``.

    Raises
    ------
    InputError
        There are fewer than two tokens, or a token is outside the vocabulary.

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
    for start, first, second in _neighbours(tokens):
        low, high = min(first.min(), second.min()), max(first.max(), second.max())
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"expected tokens from 0 to {vocab_size - 1}, got {low} to {high}; "
                "encode the text with the tokenizer of the model"
            )
        stretch = np.arange(start, start + first.size) // STRETCH
        held_out = stretch % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        solved, judged = (_count(first[rows], second[rows], vocab_size) for rows in (~held_out, held_out))
        total += PairStatistics(solved, judged, max_pairs, 0, digest)
    return total


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """Return the sha256 of a mapping of tokens to ids, whatever its order."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def _neighbours(tokens: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of neighbours in chunks: the place of the first pair, the first tokens, the second tokens."""
    for start in range(0, tokens.size - 1, PAIRS_PER_CHUNK):
        chunk = np.asarray(tokens[start : start + PAIRS_PER_CHUNK + 1], dtype=np.int64)
        yield start, chunk[:-1], chunk[1:]


def _count(first: NDArray[np.int64], second: NDArray[np.int64], vocab_size: int) -> sparse.csr_array:
    keys, counts = np.unique(first * vocab_size + second, return_counts=True)
    first, second = np.divmod(keys, vocab_size)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=vocab_size))])
    return sparse.csr_array((counts, second, indptr), shape=(vocab_size, vocab_size), dtype=np.int64)


def _capped(pairs: sparse.csr_array, max_pairs: int) -> tuple[sparse.csr_array, int]:
    """Drop the rarest pairs, all of one count together, to at most ``max_pairs``; return also how many occurrences."""
    if pairs.nnz <= max_pairs:
        return pairs, 0
    least = np.partition(pairs.data, pairs.nnz - max_pairs - 1)[pairs.nnz - max_pairs - 1]
    rare = pairs.data <= least
    dropped = int(pairs.data[rare].sum())
    capped = pairs.copy()
    capped.data[rare] = 0
    capped.eliminate_zeros()
    return capped, dropped


def discounted(pairs: sparse.csr_array, discount: float) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Return both parts of the bigram with absolute discounting, ``max(N_st - delta, 0) / N_s + backoff_s p_t``.

    The first is a sparse matrix (V, V) float64. The second, (V,), is the weight of the unigram in each row,
    ``backoff_s = delta types_s / N_s``; it is 1 for a row without counts. ``N_st`` are the pair counts, ``N_s`` the sum
    of a row and ``types_s`` the number of its entries. Ney, Essen and Kneser 1994 (Computer Speech and Language 8).
    """
    n, types = pairs.sum(axis=1), np.diff(pairs.indptr)
    counts = pairs.astype(np.float64)
    counts.data = (counts.data - discount) / np.repeat(n, types)
    return counts, np.where(n > 0, discount * types / np.maximum(n, 1), 1.0)


@dataclass(frozen=True)
class NGrams:
    """The unigram model of a corpus, and its bigram model with absolute discounting, see `discounted`.

    Parameters
    ----------
    unigrams : (V,) int64
        Number of times each token is a target.
    bigrams : (V, V) csr_array of int64
        Pairs of a token and the next.
    """

    unigrams: NDArray[np.int64]
    bigrams: sparse.csr_array

    @property
    def discount(self) -> float:
        """The discount delta, ``n_1 / (n_1 + 2 n_2)`` with the numbers of pairs seen once and twice."""
        once, twice = (int((self.bigrams.data == n).sum()) for n in (1, 2))
        return once / (once + 2 * twice) if once + twice else 0.5

    def cross_entropies(self, tokens: NDArray[np.integer]) -> tuple[float, float]:
        """Return the mean of ``-log P`` over all tokens but the first, by the unigram and by the bigram.

        Examples
        --------
        >>> tokens = np.array([0, 1, 0, 1, 0])
        >>> model = NGrams(np.array([2, 2]), bigram_counts(tokens, 2))
        >>> [round(float(np.exp(x)), 3) for x in model.cross_entropies(tokens)]
        [2.0, 1.0]
        """
        prior = class_prior(self.unigrams)
        counts, backoff = discounted(self.bigrams, self.discount)
        unigram = bigram = 0.0
        for _, s, t in _neighbours(tokens):
            unigram -= float(np.log(prior[t]).sum())
            bigram -= float(np.log(np.asarray(counts[s, t]).ravel() + backoff[s] * prior[t]).sum())
        return unigram / (tokens.size - 1), bigram / (tokens.size - 1)
