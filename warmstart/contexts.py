"""Contexts: the parts of a history that predict the next token.

A corpus is one array of token ids, ``SEP d1 SEP d2 SEP ... dn SEP``. Every token but the first separator is a target.
Its history starts at the separator in front of its document and ends just before it. There are five contexts:

- **radial**: the last r vectors, position by position. A position before the document holds the separator.
- **attended**: the last r vectors, superposed by self-attention.
- **block**: the vectors since the last multiple of the block size, superposed by self-attention. Blocks are counted
  from the separator, so every document starts a new block.
- **document**: the mean of all vectors since the document began.
- **memory**: what followed the newest token earlier in the document. A memory ``S`` (m, b) is empty when a document
  begins. For every pair of neighbours it is written by the delta rule, ``S += 0.15 (value - S key) key^T``: the key is
  the vector of the first token at Euclidean length 1, the value is the label embedding of the second. ``S key`` reads
  it. Nothing in it is trained. The code stores ``S^T``.

Windows are ordered by age: position 0 is the newest vector, which is the pivot of the attention. So a shorter context
of length L uses ``W[:L, :L]``, and a weight learned for "the token before" holds at every length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart._threads import blocks, run_parts, shares

CONTEXTS = ("radial", "attended", "block", "document", "memory")
WRITE_STRENGTH = 0.15  # of the delta rule
EMPTY_MASS = 0.05  # added to a read, spread over its features, so that an empty memory gives the uniform distribution
TARGETS_PER_CHUNK = 65_536

Ids = NDArray[Any]


@dataclass(frozen=True)
class Chunk:
    """Consecutive targets and their histories.

    Attributes
    ----------
    first : int
        Index of the first target in the corpus.
    targets : (n,) int32
        Token ids.
    position : (n,) int64
        Place of the newest token of the history in its document; the separator has place 0.
    window : (size, n) int32
        The last tokens, newest first; -1 before the document.
    """

    first: int
    targets: Ids
    position: NDArray[np.int64]
    window: Ids

    def radial(self, radius: int, separator: int) -> Ids:
        """Return the last tokens (radius, n), with the separator in the positions before the document."""
        return np.where(self.window[:radius] < 0, separator, self.window[:radius])

    def block(self, block_size: int) -> Ids:
        """Return the tokens of the current block (block_size, n), newest first; -1 outside it."""
        inside = np.arange(block_size)[:, None] <= self.position % block_size
        return np.where(inside, self.window[:block_size], -1)


def read(tokens: NDArray[np.integer], documents: NDArray[np.integer], size: int, start: int, stop: int) -> Chunk:
    """Return the targets ``start ... stop - 1`` with windows of ``size`` tokens; the first target of a corpus is 1.

    Examples
    --------
    Two documents, "1 2" and "3", separator 0:

    >>> chunk = read(np.array([0, 1, 2, 0, 3, 0]), np.array([0, 3, 5]), size=2, start=1, stop=6)
    >>> chunk.targets.tolist(), chunk.position.tolist()
    ([1, 2, 0, 3, 0], [0, 1, 2, 0, 1])
    >>> chunk.window.tolist()
    [[0, 1, 2, 0, 3], [-1, 0, 1, -1, 0]]
    """
    index = np.arange(start, stop)
    position = index - 1 - documents[np.searchsorted(documents, index, side="left") - 1]
    low = max(0, start - size)
    near = np.asarray(tokens[low:stop]).astype(np.int32)
    window = np.full((size, index.size), -1, np.int32)
    for age in range(size):
        filled = np.flatnonzero(position >= age)
        window[age, filled] = near[index[filled] - 1 - age - low]
    return Chunk(start, near[start - low :], position, window)


def read_all(
    tokens: NDArray[np.integer], documents: NDArray[np.integer], size: int, chunk_size: int = TARGETS_PER_CHUNK
) -> Iterator[Chunk]:
    """Yield every target of a corpus in order, with windows of ``size`` tokens."""
    for chunk in blocks(tokens.size - 1, chunk_size):
        yield read(tokens, documents, size, chunk.start + 1, chunk.stop + 1)


def attend(window: Ids, W: NDArray[np.floating], vectors: sparse.csr_array) -> NDArray[np.float32]:
    """Return the attention ``softmax(q W)`` with ``q_i = <x_i, x_0>``; it is 0 at empty positions.

    Parameters
    ----------
    window : (B, n) int
        Token ids, newest first; -1 is empty.
    W : (B, B)
    vectors : (V, b) csr_array
        Rows of the embedding, indices ascending.

    Returns
    -------
    (n, B) float32
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    A = np.empty((window.shape[1], window.shape[0]), dtype=np.float32)
    W = np.ascontiguousarray(W, dtype=np.float64)
    _kernels.attend(window, vectors.indptr, vectors.indices, vectors.data, W, A)
    return A


def superposed(window: Ids, A: NDArray[np.floating], vectors: sparse.csr_array) -> sparse.csr_array:
    """Return the attended context vectors ``A^T X`` as sparse rows (n, b)."""
    filled = window.T >= 0
    indptr = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    shape = (window.shape[1], vectors.shape[0])
    return sparse.csr_array((A[filled], window.T[filled], indptr), shape=shape) @ vectors


def superposed_rows(
    window: Ids, A: NDArray[np.floating], rows: NDArray[np.float32], workers: int = 1
) -> NDArray[np.float32]:
    """Return ``sum_i A[n, i] rows[window[i, n]]`` (n, m): the attended context after a linear map of every vector."""
    from warmstart import _kernels  # numba is loaded here, not on import

    out = np.empty((window.shape[1], rows.shape[1]), dtype=np.float32)
    run_parts(
        lambda targets: _kernels.superpose(window[:, targets], A[targets], rows, out[targets]),
        shares(len(out), workers),
        workers,
    )
    return out


def document_means(
    chunk: Chunk, rows: NDArray[np.float32], state: NDArray[np.float64], workers: int = 1
) -> NDArray[np.float32]:
    """Return the mean of ``rows[token]`` (n, m) over each document so far.

    ``state`` (m,) holds the sum over the document from chunk to chunk; it is changed.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    out = np.empty((chunk.targets.size, rows.shape[1]), dtype=np.float32)
    run_parts(
        lambda c: _kernels.running_mean(chunk.window[0], chunk.position, rows[:, c], state[c], out[:, c]),
        shares(out.shape[1], workers),
        workers,
    )
    return out


def remembered(
    chunk: Chunk, keys: sparse.csr_array, labels: sparse.csr_array, memory: NDArray[np.float64], workers: int = 1
) -> NDArray[np.float32]:
    """Return what the memory context reads for every target (n, m): non-negative rows of unit L1 norm.

    Parameters
    ----------
    chunk : Chunk
    keys : (V, b) csr_array
        Rows of Euclidean length 1.
    labels : (V, m) csr_array
        Label embeddings.
    memory : (b, m) float64
        ``S^T``. It holds what the document has written from chunk to chunk; it is changed.
    workers : int
        Number of threads, each for a part of the columns; the result does not depend on it.

    References
    ----------
    Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174 (delta rule).
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    out = np.empty((chunk.targets.size, memory.shape[1]), dtype=np.float32)
    pairs = (chunk.window[0], chunk.targets, chunk.position)
    sides = (keys.indptr, keys.indices, keys.data, labels.indptr, labels.indices, labels.data)
    run_parts(
        lambda c: _kernels.remember(*pairs, *sides, WRITE_STRENGTH, c.start, memory[:, c], out[:, c]),
        shares(out.shape[1], workers),
        workers,
    )
    np.maximum(out, 0.0, out=out)
    out += np.float32(EMPTY_MASS / out.shape[1])
    out /= out.sum(axis=1, keepdims=True)
    return out
