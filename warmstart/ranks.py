"""The ids of a statistic become frequency ranks, as those of a corpus are for `WarmStartLM.fit`.

A statistic that was counted in shards has the ids of a tokenizer that was there before. Which token is the most
frequent one is known when all shards are merged, and then the ids are renumbered: 0 for the most frequent token; equal
counts are ranked by the old id. This is the rule of `warmstart.corpus.Corpus.build` for a given tokenizer, so both give
the same ids, whatever the shards were.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from warmstart.levels import Level, Levels
from warmstart.ngrams import Documents, NGramCounts, joined, vocabulary_digest
from warmstart.tokenizer import load_tokenizer, rank_tokens, token_ranks


def ranked(counts: NGramCounts, tokenizer: Tokenizer) -> tuple[NGramCounts, Tokenizer]:
    """Return a statistic and its tokenizer with frequency ranks as ids.

    Parameters
    ----------
    counts : NGramCounts
    tokenizer : Tokenizer
        With the ids of the statistic.

    Raises
    ------
    InputError
        The tokenizer has another number of tokens.
    """
    frequency = counts.levels[0].counts
    ids = load_tokenizer(rank_tokens(tokenizer, frequency))
    return renumbered(counts, token_ranks(frequency), ids.get_vocab()), ids


def renumbered(counts: NGramCounts, ranks: NDArray[np.int64], vocabulary: Mapping[str, int]) -> NGramCounts:
    """Return a statistic in which ``ranks[i]`` takes the place of id i, as if the text had been counted so.

    Time is that of sorting its n-grams.

    Parameters
    ----------
    counts : NGramCounts
    ranks : (V,) int64
        A permutation.
    vocabulary : mapping of str to int
        That of the tokenizer after the change.

    Examples
    --------
    >>> from warmstart.ngrams import count_ngrams
    >>> text, ranks = np.array([0, 1, 2, 1, 2, 0]), np.array([2, 0, 1])
    >>> before, after = (count_ngrams(ids, [0, 5], 3, order=3, vocabulary={}) for ids in (text, ranks[text]))
    >>> renumbered(before, ranks, {}).digest == after.digest
    True
    """
    separator = int(ranks[counts.separator])
    texts = (ranks[text] for text in counts.documents.all())
    tokens, borders = joined(texts, separator, counts.vocab_size)
    return replace(
        counts,
        separator=separator,
        levels=_renumbered(counts.levels, ranks),
        documents=Documents.of(tokens, borders, tokens.dtype),
        vocabulary=vocabulary_digest(vocabulary),
    )


def _renumbered(levels: Levels, ranks: NDArray[np.int64]) -> Levels:
    """Sort the n-grams of every level by the new numbers of the n-gram before the last token and of the last token."""
    out: list[Level] = []
    number: NDArray[Any] = ranks  # new number of every n-gram of a level
    order = np.argsort(ranks, kind="stable")
    for n, level in enumerate(levels):
        last = ranks[level.last].astype(level.last.dtype)
        if n:
            before = np.repeat(number, np.diff(levels[n - 1].offsets))
            order = np.argsort(before * ranks.size + last, kind="stable")
            number = np.empty(order.size, np.int64)
            number[order] = np.arange(order.size)
        offsets = level.offsets
        if offsets.size:
            offsets = np.concatenate([offsets[:1], np.cumsum(np.diff(offsets)[order], dtype=offsets.dtype)])
        out.append(Level(last[order], level.counts[order], offsets))
    return tuple(out)
