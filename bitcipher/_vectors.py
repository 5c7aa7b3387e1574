"""From sums to vectors: shares, transforms, compression. Chunks of rows, in any number of threads the same bytes.

========= ============ ===================================================================
code      symbol       meaning
========= ============ ===================================================================
blocks    (n, B, b)    co-occurrences of n tokens with the bits of B blocks
expected  q, (B, b)    the shares of each block over all tokens
wide      M, (V, D)    transformed shares of all blocks, ``D = B b``
counts    (V,)         how often a token occurs, non-increasing
========= ============ ===================================================================
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

ROWS = 1 << 8  # rows of a chunk that is transformed: it stays in the cache
PRODUCTS = 1 << 12  # rows of a chunk of products; fixed, for the order of float sums
FREQUENT = 10_000  # tokens that decide the directions of compression
SMOOTHING = 1.0  # co-occurrences of the expected distribution added to a token's own
_NOISE = 1e-6  # eigenvalues below this share of the largest are rounding: their products are float32

Floats = NDArray[np.floating[Any]]


def transformed(blocks: Floats, transform: str | None, expected: Floats) -> Floats:
    """Return transformed shares (n, B, b) of co-occurrences, non-negative.

    Examples
    --------
    >>> transformed(np.array([[[1.0, 3.0]]]), "sqrt", np.array([[0.5, 0.5]])) ** 2
    array([[[0.25, 0.75]]])
    """
    if transform == "log_ratio":
        inverse = np.divide(1.0, expected, out=np.zeros_like(expected), where=expected > 0)
        ratio = blocks + SMOOTHING * expected
        ratio *= inverse
        ratio /= blocks.sum(axis=-1, keepdims=True) + SMOOTHING
        positive: Floats = np.log(np.maximum(ratio, 1.0, dtype=np.float32))
        return positive
    return np.sqrt(unit(blocks)) if transform == "sqrt" else unit(blocks)


def unit(x: Floats) -> Floats:
    """Divide by the L1 norm over the last axis; zero stays zero. ``x`` is non-negative.

    Examples
    --------
    >>> unit(np.array([[1.0, 3.0], [0.0, 0.0]]))
    array([[0.25, 0.75],
           [0.  , 0.  ]])
    """
    norm = x.sum(axis=-1, keepdims=True)
    shares: Floats = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return shares


def compress(wide: NDArray[np.float32], counts: NDArray[np.int64], size: int, workers: int) -> NDArray[np.float32]:
    """Return the best ``size`` directions of the rows: ``U sqrt(S)`` of a truncated singular value decomposition.

    The 10,000 most frequent tokens decide the directions, with weights ``counts ** 0.25``: between all tokens alike,
    where the rare ones, which are noise, prevail, and all occurrences alike, where a handful of words is all. The
    directions Q are eigenvectors of ``M' D M``, D the squared weights; rows are ``M Q / S ** 0.5``, S the square roots
    of the eigenvalues. The sign of a direction makes its largest entry positive.

    Parameters
    ----------
    wide : (V, D) float32
    counts : (V,) int64
        Non-increasing.
    size : int
        At most D.
    workers : int
        Threads; the result does not depend on them.

    Returns
    -------
    (V, size) float32
        Falling in length by column; zero in the columns beyond the rank of ``wide``.

    References
    ----------
    Levy, Goldberg and Dagan 2015, Improving distributional similarity with lessons learned from word embeddings (the
    exponent of S).
    """
    from scipy.linalg import eigh

    weights = (counts / counts.max()) ** 0.25

    def product(rows: slice) -> NDArray[np.float32]:
        weighted = wide[rows] * weights[rows, None].astype(np.float32)
        part: NDArray[np.float32] = weighted.T @ weighted
        return part

    columns = wide.shape[1]
    gram = np.zeros((columns, columns))
    for part in in_chunks(product, min(len(wide), FREQUENT), PRODUCTS, workers):
        gram += part
    with threadpool_limits(1):
        values, vectors = eigh(gram, subset_by_index=[columns - size, columns - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    real = values > _NOISE * max(values[0], 0)
    largest = np.abs(vectors).argmax(axis=0)
    scale = np.sign(vectors[largest, np.arange(size)]) * np.where(real, values, np.inf) ** -0.25
    directions = (vectors * scale).astype(np.float32)
    return np.concatenate([*in_chunks(lambda rows: wide[rows] @ directions, len(wide), PRODUCTS, workers)])


def in_chunks(work: Callable[[slice], Any], n_rows: int, size: int, workers: int) -> Iterable[Any]:
    """Yield ``work(rows)`` of chunks of rows in their order; BLAS keeps to one thread, as its threads round."""
    chunks = [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chunks), workers):  # few results wait at a time
            yield from pool.map(work, chunks[start : start + workers])
