"""Loops compiled with numba: assign codes, decode vectors, sum the codes of neighbours.

Readable versions of these loops are in `tests/bitcipher_reference.py`. ``fastmath`` is off, because the logarithm of
zero has to stay ``-inf``.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def fill_codes(codes: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> None:
    """Fill ``codes`` (V, words) with the first V codes in the order of assignment.

    A hash table with open addressing finds the codes that were assigned before. The hash of a code is the XOR of the
    ``keys`` (bits,) of its bits, so that switching on a bit costs one XOR. Equal hashes are followed by a comparison of
    all words: the keys change the speed and never the result.
    """
    vocab_size = codes.shape[0]
    slots = 16
    while slots < 2 * vocab_size:
        slots *= 2
    mask = np.uint64(slots - 1)
    table = np.full(slots, -1, np.int64)  # slot -> rank
    hashes = np.empty(vocab_size, np.uint64)

    filled = min(bits, vocab_size)
    for bit in range(filled):
        codes[bit] = 0
        codes[bit, bit // 64] = np.uint64(1) << np.uint64(bit % 64)
        hashes[bit] = keys[bit]

    start, stop = 0, filled  # ranks of the codes of the previous weight
    while filled < vocab_size:
        for parent in range(stop - 1, start - 1, -1):
            for bit in range(bits):
                flag = np.uint64(1) << np.uint64(bit % 64)
                if codes[parent, bit // 64] & flag:
                    continue
                codes[filled] = codes[parent]  # a candidate; the next one overwrites it unless it is new
                codes[filled, bit // 64] |= flag
                hashes[filled] = hashes[parent] ^ keys[bit]
                slot = hashes[filled] & mask
                while table[slot] >= 0 and not _same(codes, hashes, table[slot], filled):
                    slot = (slot + np.uint64(1)) & mask
                if table[slot] < 0:
                    table[slot] = filled
                    filled += 1
                    if filled == vocab_size:
                        return
        start, stop = stop, filled


@njit(cache=True, nogil=True)
def _same(codes: NDArray[np.uint64], hashes: NDArray[np.uint64], a: int, b: int) -> bool:
    return hashes[a] == hashes[b] and np.array_equal(codes[a], codes[b])


@njit(cache=True, nogil=True)
def best_ranks(
    logs: NDArray[np.float64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    log_weights: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.int64]:
    """Return for n vectors the rank u with the largest ``log|u| + mean_{d in u} log v_d``, or -1 if all are -inf.

    ``logs`` (bits, n) has one column for each vector, so that the inner loop reads contiguous memory. A higher rank
    wins only if its score is larger by more than ``tolerance``.
    """
    n = logs.shape[1]
    best = np.full(n, -np.inf)
    ranks = np.full(n, -1, np.int64)
    total = np.empty(n)
    for rank in range(len(indptr) - 1):
        start, stop = indptr[rank], indptr[rank + 1]
        for i in range(n):
            total[i] = logs[indices[start], i]
        for at in range(start + 1, stop):
            bit = indices[at]
            for i in range(n):
                total[i] += logs[bit, i]
        for i in range(n):
            score = log_weights[rank] + total[i] / (stop - start)
            if score > best[i] + tolerance:
                best[i] = score
                ranks[i] = rank
    return ranks


@njit(cache=True, nogil=True)
def add_neighbours(
    ids: NDArray[np.int32],
    first: int,
    last: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    units: NDArray[np.int64],
    distance_units: NDArray[np.int64],
    rings: NDArray[np.int64],
    sums: NDArray[np.int64],
    part: int,
    parts: int,
) -> None:
    """Add the codes of all neighbours of the tokens at the positions ``first`` to ``last`` to ``sums``.

    Parameters: ids (n,) has the row of each token, -1 between sentences, -2 for a token without a row. indptr, indices:
    bits of each row in CSR format. units (V,): what a row adds to each of its bits. distance_units, rings, both of
    length (largest radius + 1): factor and ring of each distance. sums (V, rings, 1 or 2, bits): a second side, if
    there is one, is for the neighbours after the token. Only rows with ``row % parts == part`` are written. They are
    visited row by row, because the sums of one row fit into the cache.
    """
    for n in _by_row(ids, first, last, len(sums), part, parts):
        row = ids[n]
        for side in range(2):
            for distance in range(1, len(rings)):
                at = n + distance if side else n - distance
                if at < 0 or at >= len(ids) or ids[at] == -1:
                    break
                neighbour = ids[at]
                if neighbour >= 0:
                    value = units[neighbour] * distance_units[distance]
                    for j in range(indptr[neighbour], indptr[neighbour + 1]):
                        sums[row, rings[distance], side % sums.shape[2], indices[j]] += value


@njit(cache=True, nogil=True)
def _by_row(ids: NDArray[np.int32], first: int, last: int, n_rows: int, part: int, parts: int) -> NDArray[np.int64]:
    """Return the positions of the rows with ``row % parts == part``, sorted by row."""
    starts = np.zeros(n_rows + 1, np.int64)
    for n in range(first, last):
        if ids[n] >= 0 and ids[n] % parts == part:
            starts[ids[n] + 1] += 1
    starts = np.cumsum(starts)
    positions = np.empty(starts[-1], np.int64)
    for n in range(first, last):
        if ids[n] >= 0 and ids[n] % parts == part:
            positions[starts[ids[n]]] = n
            starts[ids[n]] += 1
    return positions


@njit(cache=True, nogil=True)
def add_windows(
    ids: NDArray[np.int32],
    first: int,
    last: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    units: NDArray[np.int64],
    radii: NDArray[np.int64],
    sums: NDArray[np.int64],
    part: int,
    parts: int,
) -> None:
    """Do the same as `add_neighbours` without distance weights, faster for wide windows of short vectors.

    radii (rings,): the largest distance of each ring. Other parameters: see `add_neighbours`. The sums of the codes in
    all windows around a position are kept: from one position to the next, only the tokens that enter and leave a window
    change them. Then they are added to the row as a whole.
    """
    rings, sides, bits = sums.shape[1:]
    flat, width = sums.reshape(-1), np.uint64(rings * sides * bits)
    places, values, length = _of_one_length(indptr, indices, units)
    window = np.zeros(rings * sides * bits, np.int64)
    start = 0
    while start < len(ids):
        end = start
        while end < len(ids) and ids[end] != -1:
            end += 1
        window[:] = 0
        for n in range(start, end):
            for ring in range(rings):
                near = radii[ring - 1] if ring else 0
                left, right = np.uint64(ring * sides * bits), np.uint64((ring * sides + sides - 1) * bits)
                _step(window, left, right, ids, n, start, end, near, radii[ring], places, values, length)
            row = ids[n]
            if first <= n < last and row >= 0 and row % parts == part:
                base = np.uint64(row) * width
                for d in range(width):
                    flat[base + d] += window[d]
        start = end + 1


@njit(cache=True, nogil=True)
def _of_one_length(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], units: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], np.uint64]:
    """Return bits and values of all rows after a row of zeros, each filled up with zeros to the longest; its length."""
    length = 0
    for row in range(len(units)):
        length = max(length, indptr[row + 1] - indptr[row])
    places = np.zeros((len(units) + 1) * length, np.uint64)
    values = np.zeros(places.size, np.int64)
    for row in range(len(units)):
        for j in range(indptr[row + 1] - indptr[row]):
            at = (row + 1) * length + j
            places[at], values[at] = indices[indptr[row] + j], units[row]
    return places, values, np.uint64(length)


@njit(inline="always")
def _step(window, left, right, ids, n, start, end, near, far, places, values, length):  # type: ignore[no-untyped-def]
    """Move a ring of distances, beyond ``near`` up to ``far``, on to position n of the sentence ``start ... end``."""
    if n - near > start:
        _change(window, left, ids[n - near - 1], 1, places, values, length)
    if n - far > start:
        _change(window, left, ids[n - far - 1], -1, places, values, length)
    if n == start:
        for at in range(n + near + 1, min(n + far + 1, end)):
            _change(window, right, ids[at], 1, places, values, length)
    else:
        if n + near < end:
            _change(window, right, ids[n + near], -1, places, values, length)
        if n + far < end:
            _change(window, right, ids[n + far], 1, places, values, length)


@njit(inline="always")
def _change(window, base, row, sign, places, values, length):  # type: ignore[no-untyped-def]
    """Add the code of a row to a window, or take it out; a token without a row has the first one, which is zeros."""
    start = np.uint64(max(row, -1) + 1) * length
    for j in range(length):
        window[base + places[start + j]] += sign * values[start + j]
