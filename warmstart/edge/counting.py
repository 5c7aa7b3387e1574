"""Count n-grams further and solve them by Kneser-Ney, with numpy alone.

Levels are those of `warmstart.ngrams`, the formula that of `warmstart.kneser_ney`. An n-gram is one number: V times the
place of its context in the level below, plus its last token. So a level is a sorted row of numbers, and levels of
two texts are merged, and suffixes found, by sorting and by binary search.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError

FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts of the counts 0, 1, 2, and 3 or more where they cannot be estimated

Array = NDArray[Any]


class Level(NamedTuple):
    """N-grams of one length: their numbers (m,) int64, ascending, and how often they occur (m,) int64."""

    keys: Array
    counts: Array


def count(documents: Sequence[Array], separator: int, vocab_size: int, order: int) -> list[Level]:
    """Count all n-grams of documents (without separators) up to an order.

    Examples
    --------
    >>> [level.counts.tolist() for level in count([np.array([1, 2, 1, 2])], 0, 3, 2)]
    [[1, 2, 2], [1, 2, 1, 1]]
    """
    if any((text == separator).any() for text in documents):
        raise InputError("expected documents without separators, got one with; cut it there")
    text = np.concatenate([[separator], *(np.append(tokens, separator) for tokens in documents)]).astype(np.int64)
    begins = np.flatnonzero(text[:-1] == separator)
    before = np.arange(1, text.size) - np.repeat(begins, np.diff(np.append(begins, text.size - 1)))  # tokens of history
    levels = [Level(np.arange(vocab_size), np.bincount(text[1:], minlength=vocab_size))]
    numbers = text
    for n in range(1, order):
        ends = np.flatnonzero(before >= n) + 1
        keys, places, counts = np.unique(
            numbers[ends - 1] * vocab_size + text[ends], return_inverse=True, return_counts=True
        )
        levels.append(Level(keys, counts))
        numbers = np.zeros(text.size, np.int64)
        numbers[ends] = places
    return levels


def add(a: list[Level], b: list[Level]) -> list[Level]:
    """Return the levels of both texts.

    Examples
    --------
    >>> one, two = count([np.array([1, 2])], 0, 3, 2), count([np.array([1, 1])], 0, 3, 2)
    >>> [level.keys.tolist() for level in add(one, two)], [level.counts.tolist() for level in add(one, two)]
    ([[0, 1, 2], [1, 3, 4, 5, 6]], [[2, 3, 1], [2, 1, 1, 1, 1]])
    """
    vocab_size = a[0].keys.size
    out = [Level(a[0].keys, a[0].counts + b[0].counts)]
    places = [level.keys for level in (a[0], b[0])]  # of the n-grams of both in the merged level
    for n in range(1, len(a)):
        keys = [place[own[n].keys // vocab_size] * vocab_size + own[n].keys % vocab_size
                for place, own in zip(places, (a, b), strict=True)]  # fmt: skip
        at = keys[0].searchsorted(keys[1])
        new = np.append(keys[0], -1)[at] != keys[1]
        merged = np.insert(keys[0], at[new], keys[1][new])
        places = [merged.searchsorted(own) for own in keys]
        counts = np.zeros(merged.size, np.int64)
        for place, own in zip(places, (a, b), strict=True):
            counts[place] += own[n].counts
        out.append(Level(merged, counts))
    return out


def solve(
    levels: list[Level], separator: int, order: int, most: int | None, prune: Sequence[int]
) -> tuple[dict[str, Array], list[int]]:
    """Solve levels.

    Parameters
    ----------
    levels : list of Level
    separator, order : int
        Order 0 for a model without n-grams.
    most, prune
        As ``max_ngrams`` and ``prune`` of `warmstart.solving.Recipe`.

    Returns
    -------
    arrays : dict
        ``prior``, and ``ngrams.*`` as in `warmstart.edge.tables`.
    sizes : list of int
        Number of n-grams of every length in the tables.
    """
    prior = np.maximum(levels[0].counts, 0.5)
    arrays: dict[str, Array] = {"prior": (prior / prior.sum()).astype(np.float32)}
    if not order:
        return arrays, []
    vocab_size = levels[0].keys.size
    kept = _kept(levels, vocab_size, most, prune)
    adjusted = _adjusted(levels, separator, vocab_size)
    total = adjusted[0].sum()
    discounts = _discounts(adjusted[0])
    own = np.maximum(adjusted[0] - discounts[np.minimum(adjusted[0], 3)], 0.0) / max(total, 1)
    parts = [own + (1.0 - own.sum()) / vocab_size]
    counted = []
    for n in range(1, order):
        context, counts = levels[n].keys // vocab_size, adjusted[n]
        totals = np.bincount(context, counts, minlength=levels[n - 1].keys.size)
        parts.append((counts - _discounts(counts)[np.minimum(counts, 3)]) / totals[context])
        counted.append(totals > 0)
    arrays |= _tables(levels, kept, parts, counted, vocab_size)
    return arrays, [int(keep.sum()) for keep in kept]


def _kept(levels: list[Level], vocab_size: int, most: int | None, prune: Sequence[int]) -> list[Array]:
    """Return which n-grams of every length stay in the tables."""
    limits = [0] * len(levels)
    if prune:
        limits = [*prune, *[prune[-1]] * (len(levels) - len(prune))]
    elif most is not None:
        longer, room = np.concatenate([[0], *(level.counts for level in levels[1:])])[1:], most - vocab_size
        if longer.size > room:
            place = longer.size - room - 1
            limits[1:] = [int(np.partition(longer, place)[place])] * (len(levels) - 1)
    kept = [level.counts > limit for level, limit in zip(levels, limits, strict=True)]
    return [np.ones(vocab_size, np.bool_), *kept[1:]]


def _adjusted(levels: list[Level], separator: int, vocab_size: int) -> list[Array]:
    """Return the counts of Kneser-Ney: different tokens before an n-gram, except on the top and after a separator."""
    out = [level.counts for level in levels]
    suffix = np.zeros(0, np.int64)
    first = levels[0].keys == separator  # whether an n-gram begins with the separator
    for n in range(1, len(levels)):
        context, last = levels[n].keys // vocab_size, levels[n].keys % vocab_size
        suffix = last if n == 1 else levels[n - 1].keys.searchsorted(suffix[context] * vocab_size + last)
        different = np.bincount(suffix, minlength=levels[n - 1].keys.size)
        out[n - 1] = np.where(first, levels[n - 1].counts, different) if n > 1 else different
        first = first[context]
    return out


def _discounts(counts: Array) -> Array:
    """Return the discounts of the counts 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    if not min(n1, n2, n3):
        return np.array(FALLBACK)
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.array(FALLBACK) if (found[1:] <= 0).any() or (found > np.arange(4)).any() else found


def _tables(
    levels: list[Level], kept: list[Array], parts: list[Array], counted: list[Array], vocab_size: int
) -> dict[str, Array]:
    """Return the tables of the n-grams that are kept."""
    ids = np.uint16 if vocab_size <= 2**16 else np.uint32
    lasts, owns, offsets, flags, base = [], [], [], [], 0
    for n, (level, keep, part) in enumerate(zip(levels, kept, parts, strict=True)):
        lasts.append((level.keys[keep] % vocab_size).astype(ids))
        owns.append(part[keep].astype(np.float32))
        if n + 1 < len(levels):
            base += int(keep.sum())
            context = levels[n + 1].keys[kept[n + 1]] // vocab_size
            extensions = np.bincount(context, minlength=keep.size)[keep]
            offsets.append(base + np.cumsum(extensions) - extensions)
            flags.append(counted[n][keep].astype(np.uint8))
    tables = {"last": np.concatenate(lasts), "own": np.concatenate(owns)}
    tables["offsets"] = np.concatenate([*offsets, [tables["last"].size]]).astype(np.uint32)
    tables["counted"] = np.concatenate([np.zeros(0, np.uint8), *flags])
    return {f"ngrams.{name}": array for name, array in tables.items()}


def arrays_of(levels: list[Level]) -> dict[str, Array]:
    """Return levels as arrays to be written: last tokens, counts, and where the extensions of each n-gram are.

    Raises
    ------
    InputError
        A count does not fit into 32 bits.
    """
    vocab_size, out = levels[0].keys.size, {}
    if max(int(level.counts.max(initial=0)) for level in levels) >= 2**32:
        raise InputError(f"expected counts below {2**32}, got a larger one; count less text")
    ids = np.uint16 if vocab_size <= 2**16 else np.uint32
    for n, level in enumerate(levels, start=1):
        out[f"{n}.last"] = (level.keys % vocab_size).astype(ids)
        out[f"{n}.counts"] = level.counts.astype(np.uint32)
        if n > 1:
            sizes = np.bincount(level.keys // vocab_size, minlength=levels[n - 2].keys.size)
            out[f"{n}.extensions"] = sizes.astype(np.uint16 if vocab_size < 2**16 else np.uint32)
    return out


def load(arrays: dict[str, Array]) -> list[Level]:
    """Return the levels of which `arrays_of` made arrays."""
    vocab_size = arrays["1.last"].size
    levels = [Level(np.arange(vocab_size), arrays["1.counts"].astype(np.int64))]
    while (n := len(levels) + 1) and f"{n}.last" in arrays:
        context = np.repeat(np.arange(levels[-1].keys.size), arrays[f"{n}.extensions"])
        levels.append(Level(context * vocab_size + arrays[f"{n}.last"], arrays[f"{n}.counts"].astype(np.int64)))
    return levels
