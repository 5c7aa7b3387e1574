"""Interpolated modified Kneser-Ney: counts -> probabilities, and those of counted text with its document left out.

| symbol | meaning |
|---|---|
| ``c(hy)`` | count of an n-gram: on the top level how often it occurs, below how many different tokens come before it |
| ``c(h)`` | sum of the counts of all extensions of h |
| ``D_1, D_2, D_3`` | discounts of a level, for counts 1, 2, and 3 or more |
| ``N_i(h)`` | number of extensions of h with count 1, 2, and 3 or more |

    P_n(y | h) = max(c(hy) - D(c(hy)), 0) / c(h) + gamma(h) P_{n-1}(y | h'),   gamma(h) = sum_i D_i N_i(h) / c(h)

with h' = h without its first token and P_0 = 1 / V; an h without counts has gamma 1. An n-gram of two or more tokens
that begins with the separator has nothing before it and keeps its raw count on every level. Source: Chen and Goodman
1999 (Computer Speech and Language 13), section 3.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import run_parts
from warmstart.backoff import BackoffModel, Ids, Scores
from warmstart.device import check_device, if_it_fits
from warmstart.errors import InputError
from warmstart.ids import as_array
from warmstart.levels import Levels, id_type, number_ngrams, suffix_numbers
from warmstart.ngrams import Documents, NGramCounts

Array = NDArray[Any]

FALLBACK = (0.5, 1.0, 1.5)
TARGETS_PER_BATCH = 1 << 17  # parts of so many targets are left out together
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
    device : str, optional
        Device of PyTorch, such as "cuda", that solves the levels that its memory holds; the compiled loops solve the
        others. The result does not depend on it, to the bit.

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

    def __init__(self, counts: NGramCounts, prune: Sequence[int] = (), device: str | None = None) -> None:
        check_device(device)
        self.counts = counts
        self.thresholds = thresholds_by_length(prune, counts.order)
        suffixes = suffix_numbers(counts.levels, device)
        self.adjusted = adjusted_counts(counts, suffixes)
        discounts = [level_discounts(counts) for counts in self.adjusted]
        self.discounts = np.array([values for values, _ in discounts])
        self.fallbacks = [n for n, (_, fallback) in enumerate(discounts, start=1) if fallback]
        super().__init__(counts.vocab_size, counts.separator, counts.order, *self._solved(suffixes, device))

    def _solved(self, suffixes: list[Array], device: str | None) -> tuple[Array, ...]:
        """Return the tables: bases, last, offsets, probs, gammas and sizes. The suffixes are used up."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        levels, size = self.counts.levels, self.counts.vocab_size
        kept = [level.counts > limit for level, limit in zip(levels, self.thresholds, strict=True)]
        kept[0][:] = True
        bases = np.cumsum([0, *(level.last.size for level in levels)])
        offsets = np.empty(bases[-2] + 1, np.int32 if bases[-1] < 2**31 else np.int64)
        probs, gammas, sizes = np.empty(bases[-1]), np.empty(bases[-2]), np.empty(bases[-2], np.uint8)
        lower, root = np.full(1, 1.0 / size), (np.empty(1), np.empty(1, np.uint8))
        rule = self.adjusted[0], kept[0], np.zeros(size, np.int32), self.discounts[0], lower
        kernels.solve_level(np.array([0, size]), *rule, probs[:size], *root)
        offsets[0] = size
        for n in range(1, self.counts.order):
            below, here = (slice(*bases[i : i + 2]) for i in (n - 1, n))
            extensions = levels[n - 1].offsets, self.adjusted[n], kept[n], suffixes.pop(0)
            _solve_level(
                (*extensions, self.discounts[n], probs[below]), (probs[here], gammas[below], sizes[below]), device
            )
            np.add(levels[n - 1].offsets[1:], bases[n], out=offsets[below.start + 1 : below.stop + 1])
        tables = bases, np.concatenate([level.last for level in levels]), offsets, probs, gammas, sizes
        return _pruned(kept, *tables) if any(self.thresholds) else tables

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
            A document was never counted.
        """
        tokens, documents = self._checked(tokens, documents), as_array("documents", documents)
        check_counted(self.counts, tokens, documents)
        spans = parts(documents, self.counts.n_tokens)
        ends = np.flatnonzero(tokens == self.separator)
        scores = run_parts(lambda batch: self._without(tokens, ends, batch), batches(spans), workers)
        return Scores(*(np.concatenate(arrays) for arrays in zip(*scores, strict=True)))

    def _without(self, tokens: Ids, ends: Ids, spans: list[slice]) -> Scores:
        """Score the targets of some parts, each without its own; ends: positions of the separators of the text."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        levels, size = self.counts.levels, self.vocab_size
        part, here, types, local, ids, places, raw, reduced = own_ngrams(
            tokens, ends, spans, self.counts, self.adjusted
        )
        scores = Scores(np.full(here.size, 1.0 / size), np.zeros(here.size, np.int8), np.zeros(here.size, np.uint8))
        root = np.searchsorted(types, np.arange(len(spans) + 1) * size)
        before, whole, always = part[here], np.array([0, size]), np.ones(types.size, np.bool_)
        extensions, parents, kept = root, np.zeros(len(spans), np.int64), always
        for k in range(self.order):
            rule = self.discounts[k], self.thresholds[k]
            counts = self.adjusted[k], levels[k].counts
            contexts, groups = np.unique(parents, return_inverse=True)  # many parts have the frequent ones
            sums = kernels.tallies(contexts, whole, *counts, self.thresholds[k])
            totals, left = kernels.context_sums(
                extensions, groups, sums, kept, places[k], reduced[k], raw[k], *counts, *rule
            )
            kernels.interpolate(ids[k][here], before, reduced[k], raw[k], totals, left, *rule, k + 1, *scores)
            before, whole = ids[k][here - 1], levels[k].offsets
            extensions, parents, kept = local[k].offsets, places[k], raw[k] > self.thresholds[k] if k else always
        return scores


def _solve_level(rule: tuple[Array, ...], tables: tuple[Array, ...], device: str | None) -> None:
    """Write the tables of a level, on a device if its memory holds it; see `_ngram_kernels.solve_level`."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    found = None
    if device is not None:
        from warmstart import _ngram_torch  # torch is loaded here, not on import

        found = if_it_fits(_ngram_torch.solve_level, *rule, device)
    if found is None:
        kernels.solve_level(*rule, *tables)
    else:
        for table, values in zip(tables, found, strict=True):
            table[:] = values


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


def batches(spans: list[slice]) -> list[list[slice]]:
    """Group neighbouring parts."""
    out: list[list[slice]] = []
    size = TARGETS_PER_BATCH
    for span in spans:
        size += span.stop - span.start
        if size > TARGETS_PER_BATCH:
            out.append([])
            size = span.stop - span.start
        out[-1].append(span)
    return out


class Own(NamedTuple):
    """The n-grams of parts of a text, put together as one text in which no two parts share a token.

    Attributes
    ----------
    part : (n,) int32
        The part of every place of that text, which has the histories before the parts too.
    here : (targets,) int
        Places of the targets.
    types : (m,) int64
        The tokens of the parts, part * V + token in order. They are the tokens of that text.
    levels : tuple of Level
    ids : list of (n,) int32
        For every length: the n-gram that ends at each place, -1 where the history is too short.
    places : list of (m,) int64
        For every length: the numbers of the n-grams in the levels of the whole.
    raw, reduced : list of (m,) int
        For every length: how often the n-grams occur without the part, and their counts of Kneser-Ney without it.
    """

    part: Array
    here: Array
    types: Array
    levels: Levels
    ids: list[Array]
    places: list[Array]
    raw: list[Array]
    reduced: list[Array]


def own_ngrams(tokens: Ids, ends: Ids, spans: list[slice], counts: NGramCounts, adjusted: list[Array]) -> Own:
    """Return the n-grams of parts of a counted text; ends: positions of its separators; adjusted: `adjusted_counts`."""
    part, here, types, levels, ids = _numbered(tokens, ends, spans, counts)
    places = _places(types % counts.vocab_size, levels, counts.levels)
    raw = [level.counts[place] - own.counts for level, own, place in zip(counts.levels, levels, places, strict=True)]
    reduced = _reduced(counts.separator, adjusted, levels, places, raw)
    return Own(part, here, types, levels, ids, places, raw, reduced)


def check_counted(counts: NGramCounts, tokens: Ids, documents: Ids) -> None:
    """Refuse documents that were not counted.

    Raises
    ------
    InputError
        See above.
    """
    if not counts.documents.includes(Documents.of(tokens, documents, id_type(counts.vocab_size))):
        raise InputError("expected documents that were counted, got others; give documents of the counted text")


def _numbered(
    tokens: Ids, ends: Ids, spans: list[slice], counts: NGramCounts
) -> tuple[Array, Array, Array, Levels, list[Array]]:
    """Return parts, with the histories before them, as one text in which no two parts share a token, and its n-grams.

    They are: the part of every place of that text; the places of the targets; the tokens of the parts, part * V + token
    in order; and what `number_ngrams` returns, where a token is its place among these.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    starts, stops = (np.array([getattr(span, name) for span in spans]) for name in ("start", "stop"))
    lows = np.maximum(starts - counts.order + 1, ends[np.searchsorted(ends, starts) - 1])
    text = np.concatenate([tokens[low:stop] for low, stop in zip(lows.tolist(), stops.tolist(), strict=True)])
    lengths = stops - lows
    begins = np.cumsum(lengths) - lengths
    part = np.repeat(np.arange(len(spans), dtype=np.int32), lengths)
    counted = np.arange(text.size) >= (begins + starts - lows)[part]
    history = kernels.histories(text, counts.separator, counts.order - 1, begins)
    types, numbers = np.unique(part.astype(np.int64) * counts.vocab_size + text, return_inverse=True)
    return part, np.flatnonzero(counted), types, *number_ngrams(numbers, types.size, history, counted, counts.order)


def thresholds_by_length(prune: Sequence[int], order: int) -> list[int]:
    """Return up to which count n-grams of every length are pruned, see `KneserNey`.

    Raises
    ------
    InputError
        There are more numbers than lengths, or they are not whole, do not begin with 0, or fall.

    Examples
    --------
    >>> thresholds_by_length((0, 1), order=4)
    [0, 1, 1, 1]
    """
    values = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
    whole = all(isinstance(value, int | np.integer) for value in values)
    if not whole or len(values) > order or values[0] != 0 or values != sorted(values):
        raise InputError(
            f"prune: expected at most {order} whole numbers that begin with 0 and do not fall, got {list(prune)}"
        )
    return values


def adjusted_counts(counts: NGramCounts, suffixes: list[Array]) -> list[Array]:
    """Return the counts of Kneser-Ney for every level."""
    levels = counts.levels
    out = [
        np.bincount(suffix, minlength=level.last.size).astype(np.int32)
        for level, suffix in zip(levels[:-1], suffixes, strict=True)
    ]
    first = slice(counts.separator, counts.separator + 1)  # the n-grams that begin with the separator
    for below, level, adjusted in zip(levels[:-2], levels[1:-1], out[1:], strict=True):
        first = slice(int(below.offsets[first.start]), int(below.offsets[first.stop]))
        adjusted[first] = level.counts[first]
    return [*out, levels[-1].counts]


def level_discounts(counts: Array) -> tuple[NDArray[np.float64], bool]:
    """Return the discounts of the counts 0, 1, 2, and 3 or more, and whether they are the fallback."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    if min(n1, n2, n3) == 0:
        return np.array([0.0, *FALLBACK]), True
    y = n1 / (n1 + 2 * n2)
    values = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    fallback = bool((values[1:] <= 0).any() or (values > np.arange(4)).any())  # 0 would allow a probability of 0
    return (np.array([0.0, *FALLBACK]), True) if fallback else (values, False)


def _places(first: Array, local: Levels, levels: Levels) -> list[Array]:
    """Return the numbers of the n-grams of a part in the levels of the whole; first: those of its tokens."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    out = [first]
    for part, whole, extensions, level in zip(local, levels, local[1:], levels[1:], strict=False):
        last = first[extensions.last]
        out.append(kernels.locate(part.offsets, last, out[-1], whole.offsets, level.last))
    return out


def _reduced(
    separator: int, adjusted: list[Array], local: Levels, places: list[Array], raw: list[Array]
) -> list[Array]:
    """Return the counts that the n-grams of a part have without it."""
    out = [raw[-1]]
    first = [places[0] == separator]  # whether an n-gram begins with the separator
    for level in local[:-1]:
        first.append(np.repeat(first[-1], np.diff(level.offsets)))
    for k, suffix in reversed(list(enumerate(suffix_numbers(local)))):
        fewer = adjusted[k][places[k]] - np.bincount(suffix[raw[k + 1] == 0], minlength=local[k].last.size)
        out.insert(0, np.where(first[k], raw[k], fewer) if k else fewer)
    return out


def _pruned(
    kept: list[Array], bases: Array, last: Array, offsets: Array, probs: Array, gammas: Array, sizes: Array
) -> tuple[Array, ...]:
    """Return tables with the n-grams of every level that are kept."""
    chosen = np.concatenate(kept)
    contexts = chosen[: gammas.size]
    numbers = np.append(0, np.cumsum(chosen)).astype(offsets.dtype)
    offsets = numbers[offsets[np.append(contexts, True)]]
    return numbers[bases].astype(np.int64), last[chosen], offsets, probs[chosen], gammas[contexts], sizes[contexts]
