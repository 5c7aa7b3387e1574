"""Interpolated modified Kneser-Ney: counts -> probabilities, and those of counted text with its document left out.

| symbol | meaning |
|---|---|
| ``c(hy)`` | count of an n-gram: on the top level how often it occurs, below how many different tokens come before it |
| ``c(h)`` | sum of the counts of all extensions of h |
| ``D_1, D_2, D_3`` | discounts of a level, for counts 1, 2, and 3 or more |
| ``N_i(h)`` | number of extensions of h with count 1, 2, and 3 or more |

    P_n(y | h) = max(c(hy) - D(c(hy)), 0) / c(h) + gamma(h) P_{n-1}(y | h'),   gamma(h) = sum_i D_i N_i(h) / c(h)

with h' = h without its first token and P_0 = 1 / V. An n-gram that begins with the separator has nothing before it and
keeps its raw count on every level. Source: Chen and Goodman 1999 (Computer Speech and Language 13), section 3.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import run_parts
from warmstart.backoff import BackoffModel, Ids, Scores
from warmstart.errors import InputError
from warmstart.ngrams import Level, NGramCounts, check_text, number_ngrams

Array = NDArray[Any]

FALLBACK = (0.5, 1.0, 1.5)
PIECES = 8  # a document of more than an eighth of the text is left out piece by piece


class KneserNey(BackoffModel):
    """An n-gram model solved from counts.

    Parameters
    ----------
    counts : NGramCounts
    prune : sequence of int
        For every length, n-grams that occur at most so often are left out of the tables; the last number holds for all
        longer ones. They must not fall, and single tokens are never pruned. Discounts and totals are those of all
        n-grams; what the pruned ones had goes to shorter contexts.

    Attributes
    ----------
    discounts : (order, 4) float64
        Discounts of the counts 0, 1, 2, and 3 or more on every level.
    fallbacks : list of int
        Levels whose counts allow no estimate of the discounts; they have 0.5, 1 and 1.5.

    Others are those of `warmstart.backoff.BackoffModel`.

    Examples
    --------
    >>> from warmstart.ngrams import count_ngrams
    >>> tokens = np.array([0, 1, 2, 1, 2, 0])
    >>> model = KneserNey(count_ngrams(tokens, np.array([0, 5]), vocab_size=3, order=2))
    >>> model.row([0, 1]).round(3).tolist(), model.log_probs(tokens, np.array([0, 5])).round(3).tolist()
    ([0.146, 0.208, 0.646], [-0.345, -0.437, -0.78, -0.437, -0.927])
    """

    def __init__(self, counts: NGramCounts, prune: Sequence[int] = ()) -> None:
        self.counts = counts
        self.thresholds = _thresholds(prune, counts.order)
        suffixes = _suffixes(counts.levels)
        self.adjusted = _adjusted(counts, suffixes)
        discounts = [_discounts(counts) for counts in self.adjusted]
        self.discounts = np.array([values for values, _ in discounts])
        self.fallbacks = [n for n, (_, fallback) in enumerate(discounts, start=1) if fallback]
        super().__init__(counts.vocab_size, counts.separator, counts.order, *self._solved(suffixes))

    def _solved(self, suffixes: list[Array]) -> tuple[Array, ...]:
        """Return the tables: bases, last, offsets, probs, gammas and sizes."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        levels, size = self.counts.levels, self.counts.vocab_size
        kept = [level.counts > limit for level, limit in zip(levels, self.thresholds, strict=True)]
        kept[0][:] = True
        bases = np.cumsum([0, *map(np.count_nonzero, kept)])
        last = np.empty(bases[-1], levels[0].last.dtype)
        offsets = np.empty(bases[-2] + 1, np.int32 if bases[-1] < 2**31 else np.int64)
        probs, gammas, sizes = np.empty(bases[-1]), np.empty(bases[-2]), np.empty(bases[-2], np.uint8)
        last[:size], offsets[0] = levels[0].last, size
        level_probs = probs[:size]
        uniform, start = np.full(1, 1.0 / size), np.zeros(size, np.int32)
        kernels.solve_level(
            np.array([0, size]), self.adjusted[0], kept[0], start, self.discounts[0], uniform, level_probs
        )
        for n, suffix in enumerate(suffixes, start=1):
            lower, here = slice(*bases[n - 1 : n + 1]), slice(*bases[n : n + 2])
            below, level_probs = level_probs, probs[here] if kept[n].all() else np.zeros(kept[n].size)
            rule = self.adjusted[n], kept[n], suffix, self.discounts[n], below, level_probs
            gamma, totals = kernels.solve_level(levels[n - 1].offsets, *rule)
            ends = np.concatenate([np.zeros(1, np.int32), np.cumsum(kept[n], dtype=np.int32)])[
                levels[n - 1].offsets[1:]
            ]
            last[here], probs[here] = levels[n].last[kept[n]], level_probs[kept[n]]
            offsets[lower.start + 1 : lower.stop + 1] = ends[kept[n - 1]] + bases[n]
            gammas[lower], sizes[lower] = gamma[kept[n - 1]], _bits(totals[kept[n - 1]])
        return bases, last, offsets, probs, gammas, sizes

    def left_out(self, tokens: Ids, documents: Ids, workers: int = 1) -> Scores:
        """Score counted text, each target as if its part had not been counted.

        A part is a document, or an eighth of it if it is more than an eighth of the text that was counted. The counts
        are those of the rest of the text; the discounts are those of the whole.

        Parameters
        ----------
        tokens, documents
            Documents that were counted, as for `warmstart.ngrams.count_ngrams`.
        workers : int
            Number of threads. The result does not depend on it.

        Raises
        ------
        InputError
            A part was never counted.
        """
        if check_text(tokens, documents, self.vocab_size) != self.separator:
            raise InputError("expected documents that were counted, got another separator")
        spans = parts(documents, self.counts.n_tokens)
        scores = run_parts(lambda span: self._without(tokens, span), spans, workers)
        return Scores(*(np.concatenate(arrays) for arrays in zip(*scores, strict=True)))

    def _without(self, tokens: Ids, span: slice) -> Scores:
        """Score the targets of a part without it."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        levels, order = self.counts.levels, self.order
        low = max(0, span.start - order + 1)
        if (inside := np.flatnonzero(tokens[low : span.start] == self.separator)).size:
            low += int(inside[-1])
        local, ids = number_ngrams(
            np.asarray(tokens[low : span.stop]), self.vocab_size, order, self.separator, span.start - low
        )
        places = _places(local, levels)
        raw = [whole.counts[place] - part.counts for whole, part, place in zip(levels, local, places, strict=True)]
        if any((place < 0).any() or (left < 0).any() for place, left in zip(places, raw, strict=True)):
            raise InputError("expected documents that were counted, got n-grams that were not; give the counted text")
        reduced = self._reduced(local, places, raw)
        n = span.stop - span.start
        scores = Scores(np.full(n, 1.0 / self.vocab_size), np.zeros(n, np.int8), np.zeros(n, np.uint8))
        first = span.start - low
        before, offsets, parents = np.zeros(n, np.int32), np.array([0, self.vocab_size]), np.zeros(1, np.int64)
        for k in range(order):
            whole = np.array([0, self.vocab_size]) if k == 0 else levels[k - 1].offsets
            reduction = places[k], reduced[k], raw[k], whole, self.adjusted[k], levels[k].counts
            rule = self.discounts[k], self.thresholds[k]
            totals, left = kernels.context_sums(offsets, parents, *reduction, *rule)
            ends = ids[k][first:]
            kernels.interpolate(
                ends, before, reduced[k], raw[k], totals, left, *rule, k + 1, scores.probs, scores.known, scores.size
            )
            before, offsets, parents = ids[k][first - 1 : -1], local[k].offsets, places[k]
        return scores

    def _reduced(self, local: tuple[Level, ...], places: list[Array], raw: list[Array]) -> list[Array]:
        """Return the counts that the n-grams of a part have without it."""
        out = [raw[-1]]
        bounds = _of_separator(local, self.separator)
        for k, suffix in reversed(list(enumerate(_suffixes(local)))):
            gone = (raw[k + 1] == 0) & (local[k + 1].counts > 0)
            fewer = np.bincount(suffix[gone], minlength=local[k].last.size)
            counts = self.adjusted[k][places[k]] - fewer
            if k:
                counts[bounds[k]] = raw[k][bounds[k]]
            out.insert(0, counts)
        return out


def parts(documents: Ids, n_tokens: int) -> list[slice]:
    """Return the targets of every part of a text, in order, see `KneserNey.left_out`.

    Examples
    --------
    >>> parts(np.array([0, 2, 12]), n_tokens=80)
    [slice(1, 3, None), slice(3, 13, None)]
    >>> len(parts(np.array([0, 2, 12]), n_tokens=79))
    9
    """
    out = []
    for start, stop in zip((documents[:-1] + 1).tolist(), (documents[1:] + 1).tolist(), strict=True):
        size = stop - start
        pieces = min(PIECES, size) if PIECES * size > n_tokens else 1
        cuts = [start + size * i // pieces for i in range(pieces + 1)]
        out += [slice(a, b) for a, b in itertools.pairwise(cuts)]
    return out


def _thresholds(prune: Sequence[int], order: int) -> list[int]:
    values = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
    if len(values) > order or values[0] != 0 or values != sorted(values):
        raise InputError(
            f"prune: expected at most {order} whole numbers that begin with 0 and do not fall, got {list(prune)}"
        )
    return values


def _suffixes(levels: tuple[Level, ...]) -> list[Array]:
    """Return the number of every n-gram without its first token, for the levels above the first."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    root, out = np.array([0, levels[0].last.size]), [level.last.astype(np.int32) for level in levels[1:2]]
    for n in range(2, len(levels)):
        below, upper = (levels[n - 2].offsets if n > 1 else root), levels[n - 1]
        out.append(kernels.suffixes(upper.offsets, levels[n].last, out[-1], below, upper.last))
    return out


def _of_separator(levels: tuple[Level, ...], separator: int) -> list[slice]:
    """Return the n-grams of every level that begin with the separator."""
    out = [slice(separator, separator + 1)]
    for level in levels[:-1]:
        out.append(slice(int(level.offsets[out[-1].start]), int(level.offsets[out[-1].stop])))
    return out


def _adjusted(counts: NGramCounts, suffixes: list[Array]) -> list[Array]:
    """Return the counts of Kneser-Ney for every level."""
    levels = counts.levels
    out = [
        np.bincount(suffix, minlength=level.last.size).astype(np.int32)
        for level, suffix in zip(levels[:-1], suffixes, strict=True)
    ]
    for level, adjusted, bound in zip(levels[1:], out[1:], _of_separator(levels, counts.separator)[1:], strict=False):
        adjusted[bound] = level.counts[bound]
    return [*out, levels[-1].counts.astype(np.int32, copy=False)]


def _discounts(counts: Array) -> tuple[NDArray[np.float64], bool]:
    """Return the discounts of the counts 0, 1, 2, and 3 or more, and whether they are the fallback."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    if min(n1, n2, n3) == 0:
        return np.array([0.0, *FALLBACK]), True
    y = n1 / (n1 + 2 * n2)
    values = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    fallback = bool((values < 0).any() or (values > np.arange(4)).any())
    return (np.array([0.0, *FALLBACK]), True) if fallback else (values, False)


def _places(local: tuple[Level, ...], levels: tuple[Level, ...]) -> list[Array]:
    """Return the numbers of the n-grams of a part in the levels of the whole, -1 where one is missing."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    out = [np.arange(levels[0].last.size)]
    for n in range(1, len(levels)):
        part, whole = (kind[n - 1].offsets for kind in (local, levels))
        out.append(kernels.locate(part, local[n].last, out[-1], whole, levels[n].last))
    return out


def _bits(totals: Array) -> NDArray[np.uint8]:
    """Return the number of bits of whole numbers."""
    return np.frexp(totals.astype(np.float64))[1].astype(np.uint8)
