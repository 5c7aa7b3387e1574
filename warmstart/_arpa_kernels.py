"""Compiled loops over the lines of ARPA files. `warmstart.arpa` explains the format.

A vocabulary is three arrays, see `word_slots`: ``slots``, the hash table; ``letters``, the bytes of all words one after
the other; and ``starts`` (words + 1,), where each word begins.
"""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from warmstart._ngram_kernels import find

Ints = NDArray[Any]
Floats = NDArray[Any]

NEWLINE, SPACE, TAB, RETURN, POINT, MINUS, PLUS, ZERO, BACKSLASH = (ord(sign) for sign in "\n \t\r.-+0\\")
HASH, MULTIPLIER, MASK = 0x11C9DC5, 0x1000193, 0x7FFFFFFF  # FNV-1a, cut to 31 bits
DECIMALS = 9
UNIT = 10**DECIMALS
LARGEST = 99.0  # logarithm of a weight
POWERS = 10.0 ** np.arange(23)  # the exact ones
NO_NUMBER, POSITIVE, NO_WORD, UNKNOWN_WORD, NO_WEIGHT, NO_END = range(1, 7)  # what is wrong with a line


@nb.njit(cache=True, nogil=True)
def word_slots(letters: Ints, starts: Ints, size: int) -> Ints:
    """Return a hash table of words (size,) int32: the number of a word, -1 where none is. ``size`` is a power of 2."""
    slots = np.full(size, -1, np.int32)
    for word in range(starts.size - 1):
        code: Any = HASH
        for i in range(starts[word], starts[word + 1]):
            code = ((code ^ int(letters[i])) * MULTIPLIER) & MASK
        place = code & (size - 1)
        while slots[place] >= 0:
            place = (place + 1) & (size - 1)
        slots[place] = word
    return slots


@nb.njit(cache=True, nogil=True)
def find_word(text: Ints, start: Any, stop: Any, slots: Ints, letters: Ints, starts: Ints) -> Any:
    """Return the number of the word ``text[start:stop]``, -1 if it is none."""
    code: Any = HASH
    for i in range(start, stop):
        code = ((code ^ int(text[i])) * MULTIPLIER) & MASK
    place = code & (slots.size - 1)
    while slots[place] >= 0:
        word = slots[place]
        first = starts[word]
        if starts[word + 1] - first == stop - start:
            same = True
            for i in range(start, stop):
                same = same and letters[first + i - start] == text[i]
            if same:
                return np.int64(word)
        place = (place + 1) & (slots.size - 1)
    return np.int64(-1)


@nb.njit(cache=True, nogil=True)
def field(text: Ints, i: Any) -> tuple[Any, Any]:
    """Return start and stop of the next field of a line; both are the end of the line if there is none."""
    while text[i] == SPACE or text[i] == TAB or text[i] == RETURN:
        i += 1
    start = i
    while not (text[i] == SPACE or text[i] == TAB or text[i] == RETURN or text[i] == NEWLINE):
        i += 1
    return start, i


@nb.njit(cache=True, nogil=True)
def number(text: Ints, start: Any, stop: Any) -> float:
    """Return the decimal number ``text[start:stop]``, with or without an exponent; NaN if it is none."""
    i = start + (text[start] == MINUS or text[start] == PLUS)
    value, digits, exponent, point = np.int64(0), 0, np.int64(0), False
    while i < stop:
        digit = int(text[i]) - ZERO
        if 0 <= digit <= 9:
            digits += 1
            if value < 10**17:
                value = value * 10 + digit
                exponent -= point
            else:
                exponent += not point
        elif text[i] == POINT and not point:
            point = True
        else:
            break
        i += 1
    if digits > 0 and i + 1 < stop and (int(text[i]) | 32) == 101:  # an e
        sign = -1 if text[i + 1] == MINUS else 1
        i += 1 + (text[i + 1] == MINUS or text[i + 1] == PLUS)
        power: Any = np.int64(0)
        digits = 0
        while i < stop and 0 <= int(text[i]) - ZERO <= 9:
            power = min(power * 10 + int(text[i]) - ZERO, 1000)
            digits += 1
            i += 1
        exponent += sign * power
    if digits == 0 or i < stop:
        return float(np.nan)
    out = float(value)
    if -22 <= exponent < 0:
        out = out / POWERS[-exponent]
    elif exponent != 0:
        out = out * 10.0 ** float(exponent)
    return -out if text[start] == MINUS else out


@nb.njit(cache=True, nogil=True)
def parse(
    text: Ints, start: int, stop: int, slots: Ints, letters: Ints, starts: Ints, ids: Ints, values: Floats
) -> tuple[int, int, int]:
    """Read n-grams from ``text[start:stop]``, whole lines, up to a line that is empty or begins with a backslash.

    ids (lines, n) and values (lines, 2), the logarithms of probability and weight, are written.

    Returns the number of lines read, where the next one starts, and what is wrong with it (0 if nothing is).
    """
    line, n, place = 0, ids.shape[1], start
    while place < stop:
        first, last = field(text, place)
        if first == last or text[first] == BACKSLASH:
            return line, place, 0
        values[line, 0] = number(text, first, last)
        if not abs(values[line, 0]) < np.inf:
            return line, place, NO_NUMBER
        if values[line, 0] > 0:
            return line, place, POSITIVE
        for k in range(n):
            first, last = field(text, last)
            if first == last:
                return line, place, NO_WORD
            ids[line, k] = find_word(text, first, last, slots, letters, starts)
            if ids[line, k] < 0:
                return line, place, UNKNOWN_WORD
        first, last = field(text, last)
        values[line, 1] = number(text, first, last) if first < last else 0.0
        if not values[line, 1] <= LARGEST:
            return line, place, NO_WEIGHT
        first, last = field(text, last)
        if first < last:
            return line, place, NO_END
        place = last + 1
        line += 1
    return line, place, 0


@nb.njit(cache=True, nogil=True)
def prefixes(ids: Ints, offsets: Ints, last: Ints) -> Ints:
    """Return the numbers of n-grams without their last token (m,) int64, -1 where one is missing.

    ids (m, n); offsets, last: tables of the shorter n-grams, see `warmstart.backoff.BackoffModel`.
    """
    out = np.empty(ids.shape[0], np.int64)
    for i in range(out.size):
        node = np.int64(ids[i, 0])
        for k in range(1, ids.shape[1] - 1):
            if node >= 0:
                node = find(last, offsets[node], offsets[node + 1], ids[i, k])
        out[i] = node
    return out


@nb.njit(cache=True, nogil=True)
def check_rows(
    vocab_size: int, start: int, stop: int, last: Ints, offsets: Ints, probs: Floats, gammas: Floats, suffixes: Ints
) -> tuple[int, int, float]:
    """Sum the rows of contexts ``start ... stop`` of one length, and write the suffixes of their extensions.

    last, offsets, probs, gammas: tables up to the extensions. suffixes: the number of every n-gram without its first
    token, -1 where it is not in the tables; those of the contexts are given, those of n-grams beyond its end are not
    kept. A row is summed as if that of the shorter context summed to 1.

    Returns the first context with extensions of which a shorter one is missing, -1 for none; the context whose sum is
    farthest from 1, and that sum.
    """
    worst, total = start, 1.0
    for h in range(start, stop):
        seen, below = 0.0, 0.0
        shorter = suffixes[h] if h >= vocab_size else -1
        if offsets[h] < offsets[h + 1]:
            context = np.int64(h)
            while context >= vocab_size:
                context = np.int64(suffixes[context])
            if context < 0:
                return h, worst, total
        for i in range(offsets[h], offsets[h + 1]):
            token = last[i]
            node = np.int64(token) if shorter < 0 else find(last, offsets[shorter], offsets[shorter + 1], token)
            if i < suffixes.size:
                suffixes[i] = node
            weight, context = 1.0, np.int64(shorter)
            while node < 0:
                weight *= gammas[context]
                context = np.int64(suffixes[context]) if context >= vocab_size else np.int64(-1)
                node = np.int64(token) if context < 0 else find(last, offsets[context], offsets[context + 1], token)
            seen += probs[i]
            below += weight * probs[node]
        row = seen + gammas[h] * (1.0 - below)
        if not abs(row - 1.0) <= abs(total - 1.0):
            worst, total = h, row
    return -1, worst, total


@nb.njit(cache=True, nogil=True)
def write_number(value: Any, out: Ints, place: Any) -> Any:
    """Write ``value / UNIT`` without zeros at its end, and return the next place."""
    if value < 0:
        out[place] = MINUS
        place += 1
        value = -value
    whole, part = value // UNIT, value % UNIT
    digits = 1
    while whole >= 10**digits:
        digits += 1
    for k in range(digits):
        out[place + digits - 1 - k] = ZERO + whole % 10
        whole //= 10
    place += digits
    if part == 0:
        return place
    out[place] = POINT
    digits = DECIMALS
    while part % 10 == 0:
        part //= 10
        digits -= 1
    for k in range(digits):
        out[place + digits - k] = ZERO + part % 10
        part //= 10
    return place + 1 + digits


@nb.njit(cache=True, nogil=True)
def write_lines(ids: Ints, probs: Ints, weights: Ints, letters: Ints, starts: Ints, out: Ints) -> int:
    """Write n-grams as lines, and return the number of bytes.

    ids (m, n); probs, weights (m,): logarithms times `UNIT`; a weight of 0 is not written.
    """
    place: Any = np.int64(0)
    for i in range(ids.shape[0]):
        place = write_number(probs[i], out, place)
        for k in range(ids.shape[1]):
            out[place] = SPACE if k else TAB
            place += 1
            for letter in range(starts[ids[i, k]], starts[ids[i, k] + 1]):
                out[place] = letters[letter]
                place += 1
        if weights[i] != 0:
            out[place] = TAB
            place = write_number(weights[i], out, place + 1)
        out[place] = NEWLINE
        place += 1
    return int(place)
