"""Compiled loops that count the n-grams of a text by sorting what follows each token.

The continuation of a place is the tokens after it, up to the end of its document. It is written as a key: one number of
64 bits, or several. Each token takes some bits of it, the first token the highest, as its id plus 1; so 0 means that
the document has ended. First the keys are put in buckets by the token at the place, then every bucket is sorted, digit
by digit. Then equal n-grams are neighbours, and a walk in order finds those of a length. All passes read and write in
order, or within a bucket. `warmstart.levels.key_layout` says where the tokens are in a key.
"""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
FEW = 48  # continuations that are sorted by insertion


@nb.njit(cache=True, nogil=True)
def frequencies(tokens: Ints, vocab_size: int) -> Ints:
    """Return how often each token occurs (V,) int64; unlike `numpy.bincount`, without a copy of the text."""
    out = np.zeros(vocab_size, np.int64)
    for token in tokens:
        out[token] += 1
    return out


@nb.njit(cache=True, nogil=True)
def bucket(tokens: Ints, separator: int, words: Ints, shifts: Ints, width: int, borders: Ints, keys: Ints) -> None:
    """Write the continuations of the first n places of a text by the token at the place.

    words, shifts, width: see `warmstart.levels.key_layout`; borders (V + 1,) int64: where the bucket of each token
    begins, and the end; keys (n, n_words) uint64. What comes after the first n + order - 1 tokens is not read.
    """
    n, n_words, size = keys.shape[0], keys.shape[1], words.size
    top, bits = shifts[0], np.uint64(width)
    low = (np.uint64(1) << bits) - np.uint64(1)
    used = np.zeros(n_words, np.uint64)  # bits of the tokens that count
    for i in range(size):
        used[words[i]] |= low << shifts[i]
    fill = borders[1:].copy()
    key = np.zeros(n_words, np.uint64)
    for place in range(min(n + size, tokens.size) - 2, -1, -1):
        token = tokens[place + 1]
        carry = np.uint64(token) + np.uint64(1)
        for word in range(n_words):
            old = np.uint64(0) if token == separator else key[word]
            key[word] = ((carry << top) | (old >> bits)) & used[word]
            carry = old & low
        if place < n:
            before = tokens[place]
            to = fill[before] - 1
            fill[before] = to
            for word in range(n_words):
                keys[to, word] = key[word]


@nb.njit(cache=True, nogil=True)
def sort_few(keys: Ints, low: int, high: int) -> None:
    """Sort rows ``low ... high - 1`` by insertion."""
    n_words = keys.shape[1]
    row = np.empty(n_words, np.uint64)
    for i in range(low + 1, high):
        for word in range(n_words):
            row[word] = keys[i, word]
        j = i
        while j > low:
            word = 0
            while word < n_words - 1 and row[word] == keys[j - 1, word]:
                word += 1
            if row[word] >= keys[j - 1, word]:
                break
            for word in range(n_words):
                keys[j, word] = keys[j - 1, word]
            j -= 1
        for word in range(n_words):
            keys[j, word] = row[word]


@nb.njit(cache=True, nogil=True)
def sort_many(keys: Ints, low: int, high: int, spare: Ints) -> None:
    """Sort rows ``low ... high - 1`` by digits of 8 bits, the last one first; spare (high - low or more, n_words)."""
    n_words, m = keys.shape[1], high - low
    source, target = keys[low:high], spare[:m]
    moved = False
    sizes = np.empty((8, 256), np.int64)
    for word in range(n_words - 1, -1, -1):
        sizes[:] = 0
        for i in range(m):
            key = source[i, word]
            for digit in range(8):
                sizes[digit, key & np.uint64(255)] += 1
                key >>= np.uint64(8)
        for digit in range(8):
            shift = np.uint64(8 * digit)
            if sizes[digit, (source[0, word] >> shift) & np.uint64(255)] == m:
                continue
            total = np.int64(0)
            for value in range(256):
                size = sizes[digit, value]
                sizes[digit, value] = total
                total += size
            for i in range(m):
                value = (source[i, word] >> shift) & np.uint64(255)
                to = sizes[digit, value]
                sizes[digit, value] = to + 1
                for w in range(n_words):
                    target[to, w] = source[i, w]
            source, target = target, source
            moved = not moved
    if moved:
        keys[low:high] = spare[:m]


@nb.njit(cache=True, nogil=True)
def sort_buckets(keys: Ints, borders: Ints, words: Ints, shifts: Ints, width: int, same: Ints) -> Ints:
    """Sort some buckets; return how many n-grams of 2, 3, ... tokens they have (order - 1,) int64.

    borders: of these buckets. Written is how many tokens each continuation has in common with the one before it in its
    bucket: same (rows of keys,) uint8, order - 1 if all.
    """
    sizes = np.zeros(words.size, np.int64)
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    largest = 0
    for b in range(borders.size - 1):
        largest = max(largest, borders[b + 1] - borders[b])
    spare = np.empty((largest if largest > FEW else 0, keys.shape[1]), np.uint64)
    for b in range(borders.size - 1):
        low, high = borders[b], borders[b + 1]
        if high - low > FEW:
            sort_many(keys, low, high, spare)
        else:
            sort_few(keys, low, high)
        for i in range(low, high):
            n = 0
            if i > low:
                while n < words.size and not (keys[i, words[n]] ^ keys[i - 1, words[n]]) >> shifts[n]:
                    n += 1
            same[i] = n
            while n < words.size and (keys[i, words[n]] >> shifts[n]) & mask:
                sizes[n] += 1
                n += 1
    return sizes


@nb.njit(cache=True, nogil=True)
def write_level(
    keys: Ints, borders: Ints, words: Ints, shifts: Ints, width: int, same: Ints, length: int, number: Any,
    extension: Any, last: Ints, counts: Ints, offsets: Ints, below: Ints,
) -> None:  # fmt: skip
    """Write the n-grams of ``length`` tokens of sorted buckets.

    borders, same: see `sort_buckets`; number, extension: of the first of these n-grams and of their first extension in
    the whole text; last, counts, offsets: the level, without offsets if it is the last. below: where the extensions of
    each bucket's token begin, empty if the length is not 2.
    """
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    n = length - 2
    word, shift = words[n], shifts[n]
    longer = min(n + 1, words.size - 1)
    next_word, next_shift, extended = words[longer], shifts[longer], longer > n
    began = np.int64(-1)  # row where the n-gram before `number` begins, -1 if it has ended
    for b in range(borders.size - 1):
        if below.size:
            below[b] = number
        for i in range(borders[b], borders[b + 1]):
            if same[i] <= n:
                if began >= 0:
                    counts[number - 1] = i - began
                    began = np.int64(-1)
                token = (keys[i, word] >> shift) & mask
                if token:
                    last[number] = token - np.uint64(1)
                    if extended:
                        offsets[number] = extension
                    number += 1
                    began = np.int64(i)
            if extended and same[i] <= n + 1 and (keys[i, next_word] >> next_shift) & mask:
                extension += 1
    if began >= 0:
        counts[number - 1] = borders[-1] - began
