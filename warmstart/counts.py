"""Pairs of neighbours, as matrices made of levels 1 and 2 of `warmstart.ngrams`, and a bigram model to compare with."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart._threads import blocks
from warmstart.errors import InputError
from warmstart.ids import whole_numbers
from warmstart.ngrams import NGramCounts, count_ngrams
from warmstart.solution import class_prior

PAIRS_PER_CHUNK = 1 << 22  # pairs scored at once
STRETCH = 1 << 12  # targets in a stretch of a document; a stretch is held out as a whole, or not
HELD_OUT_SHARE = 32  # one pair in so many is held out


def bigram_counts(counts: NGramCounts) -> sparse.csr_array:
    """Return how often each token (row) comes before each token (column), (V, V) int64: level 2 of the statistic.

    Raises
    ------
    InputError
        The statistic has single tokens only.

    Examples
    --------
    >>> counts = count_ngrams(np.array([0, 1, 1, 0]), np.array([0, 3]), vocab_size=2, order=2)
    >>> bigram_counts(counts).toarray().tolist()
    [[0, 1], [1, 1]]
    """
    if counts.order < 2:
        raise InputError("expected n-grams of order 2 or more, got order 1; count the text again with a higher order")
    first, second = counts.levels[:2]
    entries = second.counts.astype(np.int64), second.last.astype(np.int32), first.offsets
    return sparse.csr_array(entries, shape=(counts.vocab_size, counts.vocab_size))


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Counts of pairs of a token and the next one: the larger part to be solved, the rest held out.

    Documents are cut into stretches of 4,096 targets. In the order of their digests, stretches are held out until they
    have a 32nd of the targets. So the choice depends on the text alone, however it was cut and added up. A text of
    fewer than 131,072 targets has no stretch to spare.

    Attributes
    ----------
    pairs : (V, V) csr_array of int64
        Occurrences of token s (row) before token t (column).
    held_out : (V, V) csr_array of int64
        The same, from the held-out stretches.
    vocabulary : str
        Digest of the tokenizer's vocabulary, see `warmstart.ngrams.vocabulary_digest`; empty if it was not given.
    """

    pairs: sparse.csr_array
    held_out: sparse.csr_array
    vocabulary: str = ""

    @classmethod
    def of(cls, counts: NGramCounts) -> "PairStatistics":
        """Return the pairs of a statistic.

        Raises
        ------
        InputError
            The statistic has single tokens only.
        """
        held_out = _held_out(counts)
        return cls(bigram_counts(counts) - held_out, held_out, counts.vocabulary)

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return int(self.pairs.shape[0])


def count_pairs(
    tokens: NDArray[np.integer],
    vocab_size: int,
    vocabulary: Mapping[str, int] | None = None,
    *,
    device: str | None = None,
) -> PairStatistics:
    """Count the pairs of neighbours of a text, for `warmstart.spectral`.

    To add up shards or to take a text out again, count with `warmstart.ngrams.count_ngrams` and give the result to
    `PairStatistics.of`.

    Parameters
    ----------
    tokens : (n,) array-like or tensor of int, may be memory-mapped
        ``SEP d1 SEP d2 SEP ... dn SEP``, as in `warmstart.corpus.Corpus`. A text that does not end with its first token
        is one document, and this token is put at its end.
    vocab_size : int
    vocabulary : mapping of str to int, optional
        The vocabulary of the tokenizer, so that a model with another one can be refused.
    device : str, optional
        Device of PyTorch that counts, see `warmstart.ngrams.count_ngrams`. The result does not depend on it.

    Raises
    ------
    InputError
        There are fewer than two tokens, a token is outside the vocabulary, or there is no such device.

    Examples
    --------
    >>> count_pairs(np.array([0, 1, 0, 1, 1, 0]), 2).pairs.toarray().tolist()
    [[0, 2], [2, 1]]
    """
    tokens = whole_numbers("tokens", tokens)
    if tokens.size < 2:
        raise InputError(f"expected at least two tokens to count a pair, got {tokens.size}; give more text")
    borders = np.flatnonzero(tokens == tokens[0])
    if borders[-1] != tokens.size - 1:
        tokens, borders = np.append(tokens, tokens[0]), np.array([0, tokens.size])
    return PairStatistics.of(count_ngrams(tokens, borders, vocab_size, order=2, vocabulary=vocabulary, device=device))


def _held_out(counts: NGramCounts) -> sparse.csr_array:
    """Return the pairs (V, V) of the held-out stretches, see `PairStatistics`."""
    wanted = counts.n_tokens // HELD_OUT_SHARE
    stretches = sorted(_stretches(counts), key=lambda stretch: stretch[0]) if wanted >= STRETCH else []
    texts: list[NDArray[Any]] = [np.zeros(1, np.uint16)]  # no pair
    copies = [0]
    for _, most, text in stretches:
        if wanted <= 0:
            break
        texts.append(text)
        copies.append(min(most, -(-wanted // (text.size - 1))))
        wanted -= copies[-1] * (text.size - 1)
    first, second = (np.concatenate([text[places] for text in texts]) for places in (slice(-1), slice(1, None)))
    entries = np.repeat(np.array(copies), [text.size - 1 for text in texts])
    return sparse.coo_array((entries, (first, second)), shape=(counts.vocab_size, counts.vocab_size)).tocsr()


def _stretches(counts: NGramCounts) -> Iterator[tuple[bytes, int, NDArray[Any]]]:
    """Yield digest, copies and tokens of every stretch; its first token is only history."""
    for copies, document in counts.documents.texts().values():
        separator = np.array([counts.separator], document.dtype)
        text = np.concatenate([separator, document, separator])
        for part in blocks(text.size - 1, STRETCH):
            stretch = text[part.start : part.stop + 1]
            yield hashlib.blake2b(stretch.data, digest_size=16).digest(), copies, stretch


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

    @classmethod
    def of(cls, counts: NGramCounts) -> "NGrams":
        """Return the models of a statistic of order 2 or more."""
        return cls(counts.levels[0].counts, bigram_counts(counts))

    @property
    def discount(self) -> float:
        """The discount delta, ``n_1 / (n_1 + 2 n_2)`` with the numbers of pairs seen once and twice.

        It is 1/2 if no pair was seen once: with 0, pairs never seen would be impossible.
        """
        once, twice = (int((self.bigrams.data == n).sum()) for n in (1, 2))
        return once / (once + 2 * twice) if once else 0.5

    def cross_entropies(self, tokens: NDArray[np.integer]) -> tuple[float, float]:
        """Return the mean of ``-log P`` over all tokens but the first, by the unigram and by the bigram.

        Examples
        --------
        >>> tokens = np.array([0, 1, 0, 1, 0])
        >>> model = NGrams.of(count_ngrams(tokens, np.array([0, 4]), vocab_size=2, order=2))
        >>> [round(float(np.exp(x)), 3) for x in model.cross_entropies(tokens)]
        [2.0, 1.143]
        """
        prior = class_prior(self.unigrams)
        counts, backoff = discounted(self.bigrams, self.discount)
        unigram = bigram = 0.0
        for part in blocks(tokens.size - 1, PAIRS_PER_CHUNK):
            text = np.asarray(tokens[part.start : part.stop + 1], dtype=np.int64)
            s, t = text[:-1], text[1:]
            unigram -= float(np.log(prior[t]).sum())
            bigram -= float(np.log(np.asarray(counts[s, t]).ravel() + backoff[s] * prior[t]).sum())
        return unigram / (tokens.size - 1), bigram / (tokens.size - 1)
