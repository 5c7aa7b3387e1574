"""Bit codes of tokens: assign them by frequency rank, turn them into vectors, compare them, decode vectors.

Codes stay packed in 64-bit words; most functions never build a dense vector.

======== ============== =============================================================================
code     symbol         meaning
======== ============== =============================================================================
V        V              vocabulary size
rank                    row of ``codes``; rank 0 is the most frequent token
bits     b              dimension of a cipher vector
words    ceil(b / 64)   64-bit words of one code; bit i is bit ``i % 64`` of word ``i // 64``
codes    (V, words)     packed codes, uint64; every code has at least one bit on
weight   |u|            number of bits that are on in the code of token u
vectors  E, (V, b)      cipher vectors ``e_u``: the bits of u divided by ``|u|``, so that the L1 norm is 1
======== ============== =============================================================================

Source: Williams and Zhao 2023, arXiv 2311.11012.
"""

from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TIE = 1e-10  # nats: closer scores count as equal; far above rounding errors, far below the 1/|u| between codes
_UNPACKED_ROWS = 1 << 16  # codes unpacked at once
_DECODED_VECTORS = 64  # vectors decoded at once: their logarithms, (bits, 64), stay in the cache


class CapacityError(ValueError):
    """There are fewer codes than tokens. The message names the smallest number of bits that is enough."""


def capacity(bits: int) -> int:
    """Return ``2**bits - 1``, the number of codes: all sets of ``bits`` bits (at least 1) except the empty one.

    Examples
    --------
    >>> capacity(8)
    255
    """
    return (1 << _checked_int("bits", bits, 1)) - 1


def smallest_bits(vocab_size: int) -> int:
    """Return the smallest ``bits >= 1`` with a code for each of ``vocab_size`` tokens.

    Examples
    --------
    >>> smallest_bits(255), smallest_bits(256)
    (8, 9)
    """
    return max(1, _checked_int("vocab_size", vocab_size, 0).bit_length())


def assign_codes(vocab_size: int, bits: int) -> NDArray[np.uint64]:
    """Assign a code to every rank. The most frequent tokens get the codes with the fewest bits on.

    The first ``bits`` ranks get one bit each, in the order 0, 1, ..., bits - 1. Then the weight grows by one at a
    time. For each weight, the codes of the previous weight are visited in reverse order of assignment. In each of
    them, bit 0, 1, ..., bits - 1 is switched on in turn, and every new code is given to the next rank. The codes of a
    smaller vocabulary are a prefix of those of a larger one. With ``bits >= vocab_size`` the codes are one-hot.

    Takes at most O(V bits words) time and about ``V * (8 * words + 40)`` bytes.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V, at least 0.
    bits : int
        Number of bits, at least 1.

    Returns
    -------
    ndarray of shape (V, words), uint64
        Packed codes by rank: bit i is bit ``i % 64`` of word ``i // 64``, ``words = ceil(bits / 64)``.

    Raises
    ------
    CapacityError
        If there are fewer than ``vocab_size`` codes.
    TypeError, ValueError
        If an argument is not an integer or too small.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.11012.

    Examples
    --------
    >>> [f"{code:03b}" for code in assign_codes(7, bits=3)[:, 0]]
    ['001', '010', '100', '101', '110', '011', '111']
    """
    vocab_size = _checked_int("vocab_size", vocab_size, 0)
    if vocab_size > capacity(bits):
        raise CapacityError(
            f"vocab_size={vocab_size} needs bits >= {smallest_bits(vocab_size)}, got bits={bits}, "
            f"which has {capacity(bits)} codes"
        )
    from bitcipher._kernels import fill_codes  # imported late: it loads numba

    codes = np.empty((vocab_size, -(-bits // 64)), np.uint64)
    keys = np.random.default_rng(0).integers(2**64, size=bits, dtype=np.uint64)  # for hashing only
    fill_codes(codes, bits, keys)
    return codes


def code_weights(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits that are on in packed codes (..., words): int64 of shape (...).

    Examples
    --------
    >>> code_weights(assign_codes(7, bits=3))
    array([1, 1, 1, 2, 2, 2, 3])
    """
    weights: NDArray[np.int64] = np.bitwise_count(_checked_codes(codes)).sum(axis=-1, dtype=np.int64)
    return weights


def code_indices(codes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the bits that are on in every code, as the rows of a sparse matrix in CSR format.

    Parameters
    ----------
    codes : ndarray of shape (V, words), uint64
        Packed codes.

    Returns
    -------
    indptr : ndarray of shape (V + 1,), int64
        The bits of the code of rank u are ``indices[indptr[u]:indptr[u + 1]]``.
    indices : ndarray of shape (nnz,), int32
        Positions of the bits, ascending within a code.

    Examples
    --------
    >>> indptr, indices = code_indices(assign_codes(5, bits=3))
    >>> indptr
    array([0, 1, 2, 3, 5, 7])
    >>> indices
    array([0, 1, 2, 0, 2, 1, 2], dtype=int32)
    """
    indptr = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(code_weights(codes), out=indptr[1:])
    indices = np.empty(indptr[-1], np.int32)
    for start in range(0, len(codes), _UNPACKED_ROWS):
        chunk = codes[start : start + _UNPACKED_ROWS]
        rows, words = np.nonzero(chunk)  # most words are zero: unpack only the others
        octets = chunk[rows, words].astype("<u8").view(np.uint8).reshape(-1, 8)
        word, bit = np.nonzero(np.unpackbits(octets, axis=1, bitorder="little"))
        indices[indptr[start] : indptr[start + len(chunk)]] = 64 * words[word] + bit
    return indptr, indices


def code_vectors(codes: NDArray[np.uint64], bits: int) -> NDArray[np.float32]:
    """Unpack codes into cipher vectors with L1 norm 1; these take ``V * bits * 4`` bytes.

    Parameters
    ----------
    codes : ndarray of shape (V, words), uint64
        Packed codes, none of them empty.
    bits : int
        The number of bits that was given to `assign_codes`.

    Returns
    -------
    ndarray of shape (V, bits), float32
        Each bit that is on has the value 1 / weight.

    Raises
    ------
    ValueError
        If the codes do not fit ``bits``, or a code is empty.

    Examples
    --------
    >>> code_vectors(assign_codes(4, bits=3), bits=3)
    array([[1. , 0. , 0. ],
           [0. , 1. , 0. ],
           [0. , 0. , 1. ],
           [0.5, 0. , 0.5]], dtype=float32)
    """
    weights = _positive_weights(codes)
    indices = _indices_within(codes, bits)[1]
    vectors = np.zeros((len(codes), bits), np.float32)
    vectors[np.repeat(np.arange(len(codes)), weights), indices] = np.repeat(1 / weights, weights)
    return vectors


def similarity(codes_a: NDArray[np.uint64], codes_b: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the inner products of cipher vectors, computed from their codes without building the vectors.

    The inner product is ``<e_u, e_v> = popcount(u & v) / (|u| |v|)``. Leading axes broadcast.

    Parameters
    ----------
    codes_a, codes_b : ndarray of shapes (..., words), uint64
        Packed codes, none of them empty.

    Returns
    -------
    ndarray of shape (...), float64
        Inner products, between 0 and 1.

    Raises
    ------
    ValueError
        If a code is empty or the numbers of words differ.

    Examples
    --------
    >>> codes = assign_codes(7, bits=3)
    >>> similarity(codes[3], codes[[0, 1, 3]])  # 101 with 001, 010 and itself
    array([0.5, 0. , 0.5])
    """
    weights = _positive_weights(codes_a) * _positive_weights(codes_b)
    if codes_a.shape[-1] != codes_b.shape[-1]:
        raise ValueError(f"expected codes of equal numbers of words, got {codes_a.shape[-1]} and {codes_b.shape[-1]}")
    shared: NDArray[np.float64] = np.bitwise_count(codes_a & codes_b).sum(axis=-1, dtype=np.int64) / weights
    return shared


def decode(vectors: ArrayLike, codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the most probable rank of every vector.

    This is the rank u whose cipher vector has the smallest relative entropy (in nats). In a tie, which means a
    difference of at most 1e-10, the lower rank wins::

        KL(e_u || v) = -log|u| - mean_{d in u} log v_d

    Vectors need not be normalised: multiplying v by c subtracts log c from every divergence. The cipher vector of a
    code is always decoded to this code. Any other code of the same or a larger weight has a bit where v is zero, so
    its divergence is infinite. A code that is part of it is worse by ``log(|u| / weight)``.

    Takes O(n nnz) time and O(nnz + bits) memory besides the input, where nnz is the sum of all weights.

    Parameters
    ----------
    vectors : array-like of shape (n, bits)
        Non-negative and finite.
    codes : ndarray of shape (V, words), uint64
        Packed codes by rank, none of them empty.

    Returns
    -------
    ndarray of shape (n,), int64
        Ranks.

    Raises
    ------
    ValueError
        If a vector has a negative or non-finite value, if every code has a bit where the vector is zero, or if the
        number of bits does not match the codes.

    Examples
    --------
    >>> codes = assign_codes(7, bits=3)
    >>> decode([[0.9, 0.1, 0.0], [4.0, 0.5, 4.0], [2.0, 2.0, 2.0]], codes)
    array([0, 3, 6])
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2:
        raise ValueError(f"expected vectors of shape (n, bits), got shape {vectors.shape}")
    weights = _positive_weights(codes)
    indptr, indices = _indices_within(codes, vectors.shape[1])
    from bitcipher._kernels import best_ranks

    ranks = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _DECODED_VECTORS):
        chunk = vectors[start : start + _DECODED_VECTORS].astype(np.float64)
        if not (np.isfinite(chunk).all() and (chunk >= 0).all()):
            raise ValueError("expected vectors that are non-negative and finite, got NaN, infinite or negative values")
        with np.errstate(divide="ignore"):
            logs = np.ascontiguousarray(np.log(chunk).T)  # (bits, n)
        ranks[start : start + _DECODED_VECTORS] = best_ranks(logs, indptr, indices, np.log(weights), _TIE)
    if (ranks < 0).any():
        row = int(np.argmin(ranks))
        raise ValueError(f"vector {row} is zero on some bit of every code, so that it cannot be decoded")
    return ranks


def _checked_int(name: str, value: int, smallest: int) -> int:
    try:
        checked = index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an integer, got {value!r}") from None
    if isinstance(value, bool) or checked < smallest:
        raise ValueError(f"expected {name} to be an integer >= {smallest}, got {value!r}")
    return checked


def _checked_codes(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if codes.dtype != np.uint64 or codes.ndim == 0:
        raise ValueError(f"expected codes of shape (..., words) and dtype uint64, got {codes.shape} and {codes.dtype}")
    return codes


def _positive_weights(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    weights = code_weights(codes)
    if not weights.all():
        raise ValueError("expected codes with at least one bit, got an empty code")
    return weights


def _indices_within(codes: NDArray[np.uint64], bits: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    indptr, indices = code_indices(codes)
    highest = int(indices.max(initial=-1))
    if codes.shape[1] != -(-bits // 64) or highest >= bits:
        raise ValueError(f"expected codes of {bits} bits, got codes of {codes.shape[1]} words, highest bit {highest}")
    return indptr, indices
