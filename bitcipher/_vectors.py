"""Turn co-occurrence sums into vectors: shares, transforms, compression.

Rows are processed in chunks of fixed size, so that any number of threads gives the same bytes.

========= ============ ===================================================================
code      symbol       meaning
========= ============ ===================================================================
blocks    (n, B, b)    co-occurrences of n tokens with b bits, in B blocks (one for each radius and side)
expected  q, (B, b)    shares of the bits in each block, over all tokens
wide      M, (V, D)    transformed shares of all blocks, ``D = B b``
counts    (V,)         count of each token, in falling order
========= ============ ===================================================================
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

TRANSFORM_ROWS = 1 << 8  # rows transformed at once: they stay in the cache
PRODUCT_ROWS = 1 << 12  # rows of one matrix product; fixed, because it decides how float sums are rounded
FREQUENT = 10_000  # the number of most frequent tokens that decide the directions of the compression
SMOOTHING = 1.0  # co-occurrences, distributed as expected, that are added to those of each token
_NOISE = 1e-6  # smaller eigenvalues, relative to the largest, are rounding errors of the float32 products

Floats = NDArray[np.floating[Any]]


def from_sums(
    sums: NDArray[np.int64],
    unit: int,
    counts: NDArray[np.int64],
    mode: str,
    transform: str | None,
    size: int | None,
    workers: int,
) -> NDArray[np.float32]:
    """Return vectors (V, size) float32, or (V, B b) without compression, from the sums of an embedding.

    The parameters are attributes and parameters of `bitcipher.CooccurrenceEmbedding`; ``size`` is its ``components``.
    """

    def blocks(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Turn sums by ring into cumulative sums (rows, B, b) in co-occurrences."""
        cumulative: NDArray[np.float64] = np.cumsum(rows, axis=1) / unit
        if mode == "sum":
            cumulative = cumulative.sum(axis=(1, 2), keepdims=True)
        return cumulative.reshape(len(rows), -1, cumulative.shape[3])

    expected = shares(blocks(sums.sum(axis=0, keepdims=True)))[0]
    wide = np.empty((len(sums), expected.size), np.float32)

    def fill(rows: slice) -> None:
        joined = transformed(blocks(sums[rows]), transform, expected).reshape(-1, expected.size)
        wide[rows] = shares(joined) if size is None else joined

    list(in_chunks(fill, len(wide), TRANSFORM_ROWS, workers))
    return wide if size is None else compress(wide, counts, size, workers)


def transformed(blocks: Floats, transform: str | None, expected: Floats) -> Floats:
    """Return the transformed shares (n, B, b) of co-occurrences. They are non-negative.

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
    return np.sqrt(shares(blocks)) if transform == "sqrt" else shares(blocks)


def shares(x: Floats) -> Floats:
    """Divide non-negative rows by their L1 norm over the last axis. Rows of zeros stay zero.

    Examples
    --------
    >>> shares(np.array([[1.0, 3.0], [0.0, 0.0]]))
    array([[0.25, 0.75],
           [0.  , 0.  ]])
    """
    norm = x.sum(axis=-1, keepdims=True)
    divided: Floats = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return divided


def compress(wide: NDArray[np.float32], counts: NDArray[np.int64], size: int, workers: int) -> NDArray[np.float32]:
    """Compress the rows to ``size`` dimensions: ``U sqrt(S)`` of a truncated singular value decomposition.

    The 10,000 most frequent tokens decide the directions, with the weights ``counts ** 0.25``. This is a compromise:
    with equal weights for all tokens the rare ones, which are noisy, decide; with equal weights for all occurrences a
    few very frequent words decide. The directions Q are the eigenvectors of ``M' D M``, where D has the squared
    weights. The rows are ``M Q / S ** 0.5``, where S has the square roots of the eigenvalues. The sign of a direction
    makes its largest entry positive.

    Parameters
    ----------
    wide : (V, D) float32
    counts : (V,) int64
        In falling order.
    size : int
        At most D.
    workers : int
        Number of threads. The result does not depend on it.

    Returns
    -------
    (V, size) float32
        The norm of the columns falls. Columns beyond the rank of ``wide`` are zero.

    References
    ----------
    Levy, Goldberg and Dagan 2015, Improving distributional similarity with lessons learned from word embeddings (the
    exponent of S).
    """
    from scipy.linalg import eigh

    weights = (counts / counts.max()) ** 0.25

    def product(rows: slice) -> NDArray[np.float32]:
        weighted = wide[rows] * weights[rows, None].astype(np.float32)
        gram_of_rows: NDArray[np.float32] = weighted.T @ weighted
        return gram_of_rows

    columns = wide.shape[1]
    gram = np.zeros((columns, columns))
    for gram_of_rows in in_chunks(product, min(len(wide), FREQUENT), PRODUCT_ROWS, workers):
        gram += gram_of_rows
    with threadpool_limits(1):
        values, vectors = eigh(gram, subset_by_index=[columns - size, columns - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    above_noise = values > _NOISE * max(values[0], 0)
    largest = np.abs(vectors).argmax(axis=0)
    scale = np.sign(vectors[largest, np.arange(size)]) * np.where(above_noise, values, np.inf) ** -0.25
    directions = (vectors * scale).astype(np.float32)
    return np.concatenate([*in_chunks(lambda rows: wide[rows] @ directions, len(wide), PRODUCT_ROWS, workers)])


def in_chunks(work: Callable[[slice], Any], n_rows: int, size: int, workers: int) -> Iterable[Any]:
    """Yield ``work(rows)`` for each chunk of rows, in order. BLAS uses one thread: more could change the rounding."""
    chunks = [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chunks), workers):  # keeps few results in memory
            yield from pool.map(work, chunks[start : start + workers])
