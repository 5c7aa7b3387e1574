"""Codes: which bits stand for which rank, packed in words, and what can be computed from the words alone.

======== ============== =============================================================================
code     symbol         meaning
======== ============== =============================================================================
V        V              vocabulary size; a row of ``codes`` is a rank, 0 is the most frequent token
bits     b              dimension of a cipher vector
words    ceil(b / 64)   64-bit words of one code; bit i is bit ``i % 64`` of word ``i // 64``
codes    (V, words)     packed codes, uint64; no code is empty
weight   |u|            number of bits that are on in the code of token u
vectors  E, (V, b)      cipher vectors ``e_u``: the bits of u divided by ``|u|``, so unit L1 norm
======== ============== =============================================================================

Source: Williams and Zhao 2023, arXiv 2311.11012.
"""

from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TIE = 1e-10  # nats: scores closer than this count as equal, far above rounding, far below the 1/|u| between codes
_CHUNK = 1 << 16  # rows unpacked at once
_VECTORS = 64  # vectors decoded at once: their log evidence, (bits, 64), stays in the cache


class CapacityError(ValueError):
    """Raised when there are fewer codes than tokens; the message names the smallest number of bits that fits."""


def capacity(bits: int) -> int:
    """Return how many codes ``bits`` bits hold: every set of bits but the empty one.

    Parameters
    ----------
    bits : int
        Number of bits, at least 1.

    Returns
    -------
    int
        ``2**bits - 1``.

    Examples
    --------
    >>> capacity(8)
    255
    """
    return (1 << _checked_int("bits", bits, 1)) - 1


def smallest_bits(vocab_size: int) -> int:
    """Return the smallest number of bits whose capacity holds ``vocab_size`` tokens.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V, at least 0.

    Returns
    -------
    int
        The smallest ``bits >= 1`` with ``2**bits - 1 >= vocab_size``.

    Examples
    --------
    >>> smallest_bits(255), smallest_bits(256)
    (8, 9)
    """
    return max(1, _checked_int("vocab_size", vocab_size, 0).bit_length())


def assign_codes(vocab_size: int, bits: int) -> NDArray[np.uint64]:
    """Assign a code to every rank, the fewest bits to the most frequent tokens.

    The first ``bits`` ranks get one bit each, 0, 1, ..., bits - 1. Then weight by weight: walk the codes of the
    previous weight in reverse order of assignment; for each, switch on bit 0, 1, ..., bits - 1 in turn; keep every
    code not seen before. The codes of a smaller vocabulary are a prefix of those of a larger one, and
    ``bits >= vocab_size`` is plain one-hot.

    Takes O(V bits words) time at worst and about ``V * (8 * words + 40)`` bytes.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V, at least 0.
    bits : int
        Number of bits, at least 1.

    Returns
    -------
    ndarray of shape (V, words), uint64
        Packed codes in the order of rank: bit i is bit ``i % 64`` of word ``i // 64``, ``words = ceil(bits / 64)``.

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
    from bitcipher._kernels import fill_codes  # numba is loaded when there is something to compile, not before

    codes = np.empty((vocab_size, -(-bits // 64)), np.uint64)
    keys = np.random.default_rng(0).integers(2**64, size=bits, dtype=np.uint64)  # of the hash table, not of the codes
    fill_codes(codes, bits, keys)
    return codes


def code_weights(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits of every code.

    Parameters
    ----------
    codes : ndarray of shape (..., words), uint64
        Packed codes.

    Returns
    -------
    ndarray of shape (...), int64
        Number of bits that are on.

    Examples
    --------
    >>> code_weights(assign_codes(7, bits=3))
    array([1, 1, 1, 2, 2, 2, 3])
    """
    weights: NDArray[np.int64] = np.bitwise_count(_checked_codes(codes)).sum(axis=-1, dtype=np.int64)
    return weights


def code_indices(codes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the bits of every code, as the rows of a sparse matrix in CSR form.

    Parameters
    ----------
    codes : ndarray of shape (V, words), uint64
        Packed codes.

    Returns
    -------
    indptr : ndarray of shape (V + 1,), int64
        The bits of rank u are ``indices[indptr[u]:indptr[u + 1]]``.
    indices : ndarray of shape (nnz,), int32
        Bits that are on, ascending within a rank.

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
    for start in range(0, len(codes), _CHUNK):
        chunk = codes[start : start + _CHUNK]
        rows, words = np.nonzero(chunk)  # few: unpack these words, not the whole chunk
        octets = chunk[rows, words].astype("<u8").view(np.uint8).reshape(-1, 8)
        which, bit = np.nonzero(np.unpackbits(octets, axis=1, bitorder="little"))
        indices[indptr[start] : indptr[start + len(chunk)]] = 64 * words[which] + bit
    return indptr, indices


def code_vectors(codes: NDArray[np.uint64], bits: int) -> NDArray[np.float32]:
    """Unpack codes into cipher vectors of unit L1 norm.

    Takes ``V * bits * 4`` bytes.

    Parameters
    ----------
    codes : ndarray of shape (V, words), uint64
        Packed codes, none of them empty.
    bits : int
        Number of bits the codes were assigned with.

    Returns
    -------
    ndarray of shape (V, bits), float32
        The bits of each code divided by their number.

    Raises
    ------
    ValueError
        If the codes do not fit ``bits`` or one of them is empty.

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
    """Return the inner products of cipher vectors, from their codes alone.

    ``<e_u, e_v> = popcount(u & v) / (|u| |v|)``: no vector and no matrix is built. Leading axes broadcast.

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
        raise ValueError(f"expected codes of equally many words, got {codes_a.shape[-1]} and {codes_b.shape[-1]}")
    shared: NDArray[np.float64] = np.bitwise_count(codes_a & codes_b).sum(axis=-1, dtype=np.int64) / weights
    return shared


def decode(vectors: ArrayLike, codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the most probable rank of every vector.

    That is the rank u whose cipher vector is nearest in relative entropy (in nats), the lower rank winning ties
    (differences up to 1e-10)::

        KL(e_u || v) = -log|u| - mean_{d in u} log v_d

    Vectors need not be normalised: multiplying v by c subtracts log c from every divergence alike, since it enters
    as a mean over the bits of u, however many these are. The vector of a code gives back this code: other codes of
    at least its weight have a bit where v is zero, an infinite divergence, and sub-codes lose ``log(|u| / weight)``.

    Takes O(n nnz) time, nnz being the bits of all codes together, and O(nnz + bits) memory beside the input.

    Parameters
    ----------
    vectors : array-like of shape (n, bits)
        Non-negative and finite.
    codes : ndarray of shape (V, words), uint64
        Packed codes in the order of rank, none of them empty.

    Returns
    -------
    ndarray of shape (n,), int64
        Ranks.

    Raises
    ------
    ValueError
        If a vector is negative, not finite or zero on some bit of every code; if it has another number of bits.

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
    for start in range(0, len(vectors), _VECTORS):
        chunk = vectors[start : start + _VECTORS].astype(np.float64)
        if not (np.isfinite(chunk).all() and (chunk >= 0).all()):
            raise ValueError("expected vectors that are non-negative and finite, got NaN, infinite or negative values")
        with np.errstate(divide="ignore"):
            logs = np.ascontiguousarray(np.log(chunk).T)  # (bits, n)
        ranks[start : start + _VECTORS] = best_ranks(logs, indptr, indices, np.log(weights), _TIE)
    if (ranks < 0).any():
        row = int(np.argmin(ranks))
        raise ValueError(f"vector {row} is zero on some bit of every code: no token has finite divergence from it")
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
