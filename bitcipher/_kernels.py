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
