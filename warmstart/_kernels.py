"""Compiled inner loops, mainly those that count. Each public one has a readable twin in `tests/reference.py`.

Every kernel adds to a cell in the order of the examples, whatever the chunk size, and only one thread writes to a
cell. So float sums have the same bits for any chunk size and any number of threads. Sparse rows are three arrays in CSR
format: ``indptr``, ``indices`` and ``values``. A window (B, n) holds token ids, newest first, and -1 where it is empty.
"""

import numba as nb
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Words = NDArray[np.uint64]


PAIRS = 2048  # pairs whose cells are found at once, see `add_pairs`


@nb.njit(cache=True, nogil=True)
def add_pairs(inputs: Ints, targets: Ints, indptr: Ints, indices: Ints, units: Ints, sums: Ints) -> None:
    """Add ``units[s]`` to ``sums[y, d]`` for every pair of a token s and a class y, and every bit d of s.

    inputs, targets (n,); indptr, indices: bits of each token; units (V,); sums (C, D) int64, contiguous.

    First the cells of some pairs are found, then they are added to: so many cells are on their way from memory at the
    same time. Every code is read with the length of the longest, and the next pair overwrites what is too much: there
    is no branch to guess. Indices are unsigned, because numba tests signed ones for being negative.
    """
    flat, bits = sums.reshape(-1), np.uint64(sums.shape[1])
    longest = 0
    for token in range(units.size):
        longest = max(longest, indptr[token + 1] - indptr[token])
    width, last, one = np.uint64(longest), np.uint64(max(indices.size, 1) - 1), np.uint64(1)
    cells = np.empty(PAIRS * longest, np.uint64)
    values = np.empty(PAIRS * longest, np.int64)
    for first in range(0, inputs.size, PAIRS):
        m = np.uint64(0)
        for n in range(first, min(first + PAIRS, inputs.size)):
            s = np.uint64(inputs[n])
            row, start = np.uint64(targets[n]) * bits, np.uint64(indptr[s])
            for j in range(width):
                cells[m + j] = row + np.uint64(indices[min(start + j, last)])
                values[m + j] = units[s]
            m += np.uint64(indptr[s + one]) - start
        for i in range(m):
            flat[cells[i]] += values[i]


@nb.njit(cache=True, nogil=True)
def add_dense(
    X: Floats, indptr: Ints, indices: Ints, values: Floats, rows: Ints, sums: Floats, thread: int, threads: int
) -> None:
    """Add ``y_c * x`` to row c of ``sums`` for every example and every class c of its target.

    X (n, D); indptr, indices, values: targets as sparse rows; rows (n,): the row of each example's target;
    sums (C, D) float64. Only classes with ``c % threads == thread`` are written.
    """
    for n in range(X.shape[0]):
        row = rows[n]
        for j in range(indptr[row], indptr[row + 1]):
            c = indices[j]
            if c % threads == thread:
                value = values[j]
                for d in range(X.shape[1]):
                    sums[c, d] += value * X[n, d]


@nb.njit(cache=True, nogil=True)
def add_sparse(
    x_indptr: Ints, x_indices: Ints, x_values: Floats,
    indptr: Ints, indices: Ints, values: Floats, rows: Ints,
    sums: Floats, thread: int, threads: int,
) -> None:  # fmt: skip
    """Add ``y_c * x_d`` to ``sums[c, d]`` for inputs that are sparse rows; otherwise as `add_dense`."""
    for n in range(x_indptr.size - 1):
        row = rows[n]
        for j in range(indptr[row], indptr[row + 1]):
            c = indices[j]
            if c % threads == thread:
                for i in range(x_indptr[n], x_indptr[n + 1]):
                    sums[c, x_indices[i]] += values[j] * x_values[i]


@nb.njit(cache=True, nogil=True)
def compare(window: Ints, indptr: Ints, indices: Ints, values: Floats, q: Floats) -> None:
    """Write ``q[n, i] = <x_i, x_0>``, the comparisons of a window with its newest vector; 0 where a position is empty.

    window (B, n); vectors as sparse rows with ascending indices; q (n, B).
    """
    for n in range(window.shape[1]):
        pivot = window[0, n]
        for i in range(window.shape[0]):
            s = window[i, n]
            total = 0.0
            if s >= 0:
                a = indptr[pivot]
                b = indptr[s]
                while a < indptr[pivot + 1] and b < indptr[s + 1]:
                    if indices[a] == indices[b]:
                        total += values[a] * values[b]
                        a += 1
                        b += 1
                    elif indices[a] < indices[b]:
                        a += 1
                    else:
                        b += 1
            q[n, i] = total


@nb.njit(cache=True, nogil=True)
def superpose(window: Ints, A: Floats, G: Floats, out: Floats) -> None:
    """Write ``out[n] = sum_i A[n, i] * G[window[i, n]]``. window (B, n); A (n, B); G (V, m); out (n, m)."""
    for n in range(window.shape[1]):
        out[n] = 0.0
        for i in range(window.shape[0]):
            s = window[i, n]
            if s >= 0:
                a = A[n, i]
                for j in range(G.shape[1]):
                    out[n, j] += a * G[s, j]


@nb.njit(cache=True, nogil=True)
def running_mean(newest: Ints, position: Ints, G: Floats, state: Floats, out: Floats) -> None:
    """Write the mean of the rows of G over the tokens of the document so far.

    newest (n,): the newest token of each history; position (n,): its place in its document, from 0;
    G (V, m); state (m,) float64: the sum of the document so far, carried from chunk to chunk; out (n, m).
    """
    for n in range(newest.size):
        if position[n] == 0:
            state[:] = 0.0
        count = position[n] + 1
        s = newest[n]
        for j in range(G.shape[1]):
            state[j] += G[s, j]
            out[n, j] = state[j] / count


@nb.njit(cache=True, nogil=True)
def responsibilities(
    window: Ints, targets: Ints, A: Floats,
    indptr: Ints, indices: Ints, values: Floats, L: Floats, norm: Floats,
    R: Floats,
) -> float:  # fmt: skip
    """Write ``R[n, i] = A_i l_i / sum_j A_j l_j`` with ``l_i = P(y | x_i)``; return the sum of ``log sum_j A_j l_j``.

    window (B, n); targets (n,); A, R (n, B); vectors as sparse rows; L (D, C): weights that turn a vector into logits;
    norm (V,): log-normaliser of the logits of each token.
    """
    total = 0.0
    for n in range(targets.size):
        y = targets[n]
        mass = 0.0
        for i in range(window.shape[0]):
            s = window[i, n]
            R[n, i] = 0.0
            if s >= 0:
                score = -norm[s]
                for j in range(indptr[s], indptr[s + 1]):
                    score += values[j] * L[indices[j], y]
                R[n, i] = A[n, i] * np.exp(score)
                mass += R[n, i]
        for i in range(window.shape[0]):
            R[n, i] /= mass
        total += np.log(mass)
    return total


@nb.njit(cache=True, nogil=True)
def attend(window: Ints, indptr: Ints, indices: Ints, values: Floats, W: Floats, A: Floats) -> None:
    """Write the attention ``softmax(q W)`` of every window over its filled positions, 0 elsewhere.

    window (B, n); vectors as sparse rows; W (B, B) float64; A (n, B).
    """
    size = window.shape[0]
    q = np.empty((1, size))
    z = np.empty(size)
    for n in range(window.shape[1]):
        compare(window[:, n : n + 1], indptr, indices, values, q)
        top = -np.inf
        for j in range(size):
            z[j] = -np.inf
            if window[j, n] >= 0:
                z[j] = 0.0
                for i in range(size):
                    z[j] += q[0, i] * W[i, j]
                top = max(top, z[j])
        mass = 0.0
        for j in range(size):
            z[j] = np.exp(z[j] - top)
            mass += z[j]
        for j in range(size):
            A[n, j] = z[j] / mass


@nb.njit(cache=True, nogil=True)
def compare_codes(pivots: Ints, windows: Ints, codes: Words, inverse_weights: Floats, q: Floats) -> None:
    """Write ``q[n, i] = popcount(u & v) / (|u| |v|)`` for the codes u of ``pivots[n]`` and v of ``windows[n, i]``.

    pivots (n,); windows (n, B); codes (V, words) uint64; inverse_weights (V,): ``1 / |u|`` of each code; q (n, B).
    """
    one, two, four = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    for n in range(pivots.size):
        u = pivots[n]
        for i in range(windows.shape[1]):
            v = windows[n, i]
            shared = np.uint64(0)
            for word in range(codes.shape[1]):
                x = codes[u, word] & codes[v, word]
                x -= (x >> np.uint64(1)) & one  # counts the bits of every pair, every four, every eight
                x = (x & two) + ((x >> np.uint64(2)) & two)
                x = (x + (x >> np.uint64(4))) & four
                shared += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
            q[n, i] = shared * inverse_weights[u] * inverse_weights[v]


@nb.njit(cache=True, nogil=True)
def _forget(tokens: Ints, indptr: Ints, indices: Ints, memory: Floats) -> None:
    """Set to 0 the rows of a memory (b, width) that the keys of these tokens, as sparse rows, can have written."""
    for x in tokens:
        for e in range(indptr[x], indptr[x + 1]):
            memory[indices[e]] = 0.0


@nb.njit(cache=True, nogil=True)
def remember(
    newest: Ints, targets: Ints, position: Ints,
    key_indptr: Ints, key_indices: Ints, key_values: Floats,
    label_indptr: Ints, label_indices: Ints, label_values: Floats,
    strength: float, first: int, memory: Floats, out: Floats,
) -> None:  # fmt: skip
    """For every target read ``out[n] = S key`` and then write ``S += strength (label - S key) key^T``.

    S is empty where a document begins, at position 0. newest, targets, position (n,): the key is that of the newest
    token, the label that of the target. keys and labels as sparse rows. memory (b, width) is ``S^T`` and out is
    (n, width); both hold the columns ``first ... first + width - 1`` of the labels.
    """
    error = np.empty(memory.shape[1])
    began = -1  # the target at which the document began, -1 for one in an earlier chunk
    for n in range(newest.size):
        if position[n] == 0:
            if began < 0:
                memory[:] = 0.0
            else:
                _forget(newest[began:n], key_indptr, key_indices, memory)
            began = n
        key = range(key_indptr[newest[n]], key_indptr[newest[n] + 1])
        error[:] = 0.0
        for e in key:
            error -= key_values[e] * memory[key_indices[e]]
        out[n] = -error
        for e in range(label_indptr[targets[n]], label_indptr[targets[n] + 1]):
            c = label_indices[e] - first
            if 0 <= c < error.size:
                error[c] += label_values[e]
        for e in key:
            memory[key_indices[e]] += strength * key_values[e] * error
