"""Tries of n-grams: counting a text, merging and numbering. `warmstart.ngrams` explains the layout.

To count, the tokens after every place of a text are sorted, by compiled loops (`warmstart._sorting_kernels`) or by
PyTorch. An n-gram belongs to the place where it begins: so parts of a text can be counted apart and merged.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import run_parts
from warmstart.device import if_it_fits
from warmstart.errors import InputError

MOST = 2**31 - 1  # n-grams of a level, and occurrences of an n-gram
PARTS = 16  # of the sorting: small enough that threads end at the same time
DEVICE_PART = 1 << 24  # places that PyTorch counts at once: about 100 bytes each on the device

Ids = NDArray[Any]
NONE = np.zeros(0, np.int32)  # offsets of the longest n-grams


@dataclass(frozen=True, eq=False)
class Level:
    """All n-grams of one length, see the module. ``offsets`` of the longest n-grams is empty."""

    last: Ids
    counts: Ids
    offsets: Ids


Levels = tuple[Level, ...]


def count_levels(
    tokens: Ids,
    places: slice,
    separator: int,
    vocab_size: int,
    order: int,
    *,
    workers: int = 1,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Levels:
    """Count the n-grams that begin at some places of a text, and the single tokens one place further.

    Parameters
    ----------
    tokens : (n,) int
        A text that ends in a separator, as for `warmstart.ngrams.count_ngrams`.
    places : slice
        At most ``0 ... n - 2``.
    separator, vocab_size, order, workers, device
        See `warmstart.ngrams.count_ngrams`.
    progress : callable, optional
        Called with the number of places that are done.

    Raises
    ------
    InputError
        There are more n-grams than can be numbered, or no memory on the device.
    """
    text = np.asarray(tokens[places.start : places.stop + max(order - 1, 1)]).astype(id_type(vocab_size), copy=False)
    n = places.stop - places.start
    if order == 1:
        return (_singles(text, n, vocab_size),)
    if device is not None:
        return _on_device(device, text, n, separator, vocab_size, order, progress)
    return _sorted(text, n, separator, vocab_size, order, workers, progress)


def _sorted(
    text: Ids, n: int, separator: int, vocab_size: int, order: int, workers: int, progress: Callable[[int], None] | None
) -> Levels:
    """Return the levels of the n-grams that begin at the first n places of a text, counted by compiled loops."""
    from warmstart import _sorting_kernels as kernels  # numba is loaded here, not on import

    words, shifts, width, n_words = key_layout(vocab_size, order)
    single = _singles(text, n, vocab_size)
    places = single.counts.copy()  # of each token; the targets, which are counted, are one place further
    places[text[n]] -= 1
    places[text[0]] += 1
    borders = np.append(0, np.cumsum(places))
    keys, same = np.empty((n, n_words), np.uint64), np.empty(n, np.uint8)
    kernels.bucket(text, separator, words, shifts, width, borders, keys)
    cuts = np.searchsorted(borders, np.arange(1, PARTS) * n // PARTS, side="right") - 1
    parts = [slice(a, b) for a, b in pairwise([0, *np.unique(cuts[cuts > 0]).tolist(), vocab_size])]
    done, lock = 0, Lock()

    def sort(part: slice) -> Ids:
        nonlocal done
        sizes: Ids = kernels.sort_buckets(keys, borders[part.start : part.stop + 1], words, shifts, width, same)
        with lock:
            done += int(borders[part.stop] - borders[part.start])
            if progress:
                progress(done)
        return sizes

    sizes = np.array(run_parts(sort, parts, workers))
    levels = [replace(single, offsets=np.empty(vocab_size + 1, np.int32))]
    for length, size in enumerate(sizes.sum(axis=0).tolist(), start=2):
        check_numbers(length, size, 0)  # none occurs more often than its last token
        offsets = np.empty(size + 1 if length < order else 0, np.int32)
        levels.append(Level(np.empty(size, text.dtype), np.empty(size, np.int32), offsets))
    firsts = np.zeros((len(parts) + 1, order), np.int64)  # number of the first n-gram of every part and length
    firsts[1:, :-1] = np.cumsum(sizes, axis=0)
    for i, level in enumerate(levels[:-1]):
        level.offsets[-1] = firsts[-1, i]

    def write(i: int) -> None:
        part = parts[i]
        own = borders[part.start : part.stop + 1]
        for length, level in enumerate(levels[1:], start=2):
            arrays = level.last, level.counts, level.offsets, levels[0].offsets[part] if length == 2 else NONE
            kernels.write_level(
                keys, own, words, shifts, width, same, length, firsts[i, length - 2], firsts[i, length - 1], *arrays
            )

    run_parts(write, range(len(parts)), workers)
    return tuple(levels)


def key_layout(vocab_size: int, order: int) -> tuple[Ids, Ids, int, int]:
    """Return where the tokens after a place are in its key, see `warmstart._sorting_kernels`.

    Returns
    -------
    words, shifts : (order - 1,)
        Number of 64 bits that holds each token, and the bits that it is shifted by.
    width, n_words : int
        Bits of a token, and numbers of a key.

    Examples
    --------
    >>> words, shifts, width, n_words = key_layout(8192, 6)
    >>> words.tolist(), shifts.tolist(), width, n_words
    ([0, 0, 0, 0, 1], [42, 28, 14, 0, 42], 14, 2)
    """
    width = int(vocab_size).bit_length()
    in_word = min(64 // width, max(order - 1, 1))
    places = np.arange(order - 1)
    shifts = (in_word - 1 - places % in_word) * width
    return places // in_word, shifts.astype(np.uint64), width, -(-(order - 1) // in_word)


def _singles(text: Ids, n: int, vocab_size: int) -> Level:
    """Return level 1 of the n-grams that begin at the first n places, without offsets."""
    from warmstart import _sorting_kernels as kernels  # numba is loaded here, not on import

    counts = kernels.frequencies(text[1 : n + 1], vocab_size)
    check_numbers(1, vocab_size, int(counts.max()))
    return Level(np.arange(vocab_size, dtype=text.dtype), counts, NONE)


def _on_device(
    device: str, text: Ids, n: int, separator: int, vocab_size: int, order: int, progress: Callable[[int], None] | None
) -> Levels:
    """Return what `_sorted` does, counted by PyTorch; a part that its memory does not hold is halved."""
    from warmstart import _ngram_torch  # torch is loaded here, not on import

    def count(start: int, stop: int) -> Levels:
        part, found = text[start : stop + order - 1], None
        if stop - start <= DEVICE_PART:
            arguments = part, stop - start, separator, vocab_size, order, device
            found = if_it_fits(_ngram_torch.count_levels, *arguments)
        if found is None and stop - start > 1:
            middle = (start + stop) // 2
            return merge(count(start, middle), count(middle, stop), 1)
        if found is None:
            raise InputError(f"device: expected one with free memory, got {device} without; free some, or count on cpu")
        if progress:
            progress(stop)
        offsets = [below for _, _, below in found] + [NONE]
        single = replace(_singles(part, stop - start, vocab_size), offsets=offsets[0])
        return single, *(Level(last, counts, up) for (last, counts, _), up in zip(found, offsets[1:], strict=True))

    return count(0, n)


def number_ngrams(tokens: Ids, vocab_size: int, history: Ids, counted: Ids, order: int) -> tuple[Levels, list[Ids]]:
    """Count the n-grams of a text, and number the one that ends at each position.

    Parameters
    ----------
    tokens : (n,) int
    vocab_size : int
    history : (n,) int
        How many tokens before each one belong to its history.
    counted : (n,) bool
        N-grams that end elsewhere are numbered but not counted.
    order : int

    Returns
    -------
    levels : tuple of Level
    ids : list of (n,) int32
        For every length: the n-gram that ends at each position, -1 where the history is too short.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    tokens = tokens.astype(id_type(vocab_size), copy=False)
    by_token = kernels.token_order(tokens, vocab_size)
    ids = [tokens.astype(np.int32)]
    lasts: list[Ids] = [np.arange(vocab_size, dtype=tokens.dtype)]
    counts: list[Ids] = [np.bincount(tokens[counted], minlength=vocab_size)]
    offsets: list[Ids] = []
    for n in range(2, order + 1):
        number, last, count, extensions = kernels.count_level(
            tokens, history, by_token, ids[-1], lasts[-1].size, n, counted
        )
        ids.append(number)
        lasts.append(last)
        counts.append(count)
        offsets.append(extensions)
    offsets.append(np.zeros(0, np.int32))
    return tuple(map(Level, lasts, counts, offsets)), ids


def suffix_numbers(levels: Levels, device: str | None = None) -> list[Ids]:
    """Return the number of every n-gram without its first token, for the levels above the first.

    With a device of PyTorch, levels that its memory holds are searched there. The result does not depend on it.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    out = [level.last.astype(np.int32) for level in levels[1:2]]
    for below, upper, level in zip(levels, levels[1:], levels[2:], strict=False):
        arrays = upper.offsets, level.last, out[-1], below.offsets, upper.last
        found = None
        if device is not None:
            from warmstart import _ngram_torch  # torch is loaded here, not on import

            found = if_it_fits(_ngram_torch.suffixes, *arrays, levels[0].last.size, device)
        out.append(kernels.suffixes(*arrays) if found is None else found)
    return out


def merge(a: Levels, b: Levels, sign: int) -> Levels:
    """Return ``a + sign * b`` without n-grams that no longer occur."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    a_ids = b_ids = np.arange(a[0].last.size, dtype=np.int32)
    levels = [Level(a[0].last, a[0].counts + sign * b[0].counts, a[0].offsets)]
    for n in range(1, len(a)):
        most = a[n].last.size + b[n].last.size
        last, counts = np.empty(most, a[n].last.dtype), np.empty(most, np.int32)
        a_next, b_next = (np.empty(most if n + 1 < len(a) else 0, np.int32) for _ in range(2))
        offsets, size, largest = kernels.merge_level(
            a_ids, a[n - 1].offsets, a[n].last, a[n].counts, b_ids, b[n - 1].offsets, b[n].last, b[n].counts, sign,
            last, counts, a_next, b_next,
        )  # fmt: skip
        check_numbers(n + 1, size, largest)
        last.resize(size, refcheck=False)  # shrinks in place, without a copy
        counts.resize(size, refcheck=False)
        a_ids, b_ids = a_next[:size], b_next[:size]
        levels[-1] = replace(levels[-1], offsets=offsets)
        levels.append(Level(last, counts, np.zeros(0, np.int32)))
    return tuple(levels) if sign > 0 else without_zeros(tuple(levels))


def without_zeros(levels: Levels) -> Levels:
    """Drop n-grams above level 1 that have no count and no extension with one."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    if all(level.counts.all() for level in levels[1:]):
        return levels
    out = [levels[-1]]
    alive = levels[-1].counts != 0
    for n in range(len(levels) - 1, 0, -1):
        upper, lower = levels[n], levels[n - 1]
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(alive, dtype=np.int32)])
        offsets = before[lower.offsets]
        out[0] = Level(upper.last[alive], upper.counts[alive], out[0].offsets)
        alive = kernels.live(lower.counts, lower.offsets, alive) if n > 1 else np.ones(lower.last.size, np.bool_)
        out.insert(0, replace(lower, offsets=np.append(offsets[:-1][alive], offsets[-1])))
    return tuple(out)


def check_numbers(n: int, size: int, largest: int) -> None:
    """Refuse more n-grams of n tokens, or a larger count, than are numbered.

    Raises
    ------
    InputError
        See above.
    """
    if max(size, largest) > MOST:
        raise InputError(f"expected at most {MOST} n-grams of {n} tokens and occurrences of each, got more")


def id_type(vocab_size: int) -> np.dtype[Any]:
    """Return the integer type of token ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
