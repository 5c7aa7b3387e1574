"""Starts that others use, a few lines each. The benches compare a warm start with them."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor

from warmstart.solution import class_prior
from warmstart.spectral import Bigram

Array = NDArray[np.float32]


def log_unigram(counts: NDArray[np.integer]) -> Array:
    """Return the bias (V,) of an output layer that predicts the unigram distribution: Meister et al. 2022, 2212.09686.

    Examples
    --------
    >>> np.exp(log_unigram(np.array([3, 1]))).tolist()
    [0.75, 0.25]
    """
    return np.log(class_prior(counts)).astype(np.float32)


def count_bigram(pairs: sparse.csr_array) -> Array:
    """Return logits (V, V) of the absolute-discounting bigram; row x is for the token after x.

    This is the table of modded-nanogpt's n-gram starts and of parameter-golf's CountInitBigram. It has V x V
    parameters.

    Examples
    --------
    >>> table = count_bigram(sparse.csr_array(np.array([[0, 3], [2, 1]])))
    >>> np.exp(table).round(2)
    array([[0.04, 0.96],
           [0.63, 0.37]], dtype=float32)
    """
    bigram = Bigram.of(pairs)
    table = bigram.backoff[:, None] * bigram.prior.astype(np.float32)
    seen = bigram.discounted.tocoo()
    table[seen.coords] += seen.data
    out: Array = np.log(table, out=table)
    return out


def ppmi_svd(pairs: sparse.csr_array, width: int) -> Array:
    """Return word vectors (V, width), ``U sqrt(S)`` of the positive pointwise mutual information of neighbours.

    The context of a token is both its sides. Context counts enter with the exponent 0.75. The source is Levy, Goldberg
    and Dagan 2015 (TACL 3), section 3.1. Tokens without neighbours get zero rows.

    Parameters
    ----------
    pairs : (V, V) csr_array
        Number of times that token y (column) follows token x (row), next to it or within a window.
    width : int
        Dimension of the vectors, below V.

    Examples
    --------
    >>> ppmi_svd(sparse.csr_array(np.array([[0, 8, 1], [8, 0, 1], [1, 1, 9]])), 2).shape
    (3, 2)
    """
    both = (pairs + pairs.T).tocoo().astype(np.float64)
    n = both.sum(axis=1)
    context = n**0.75 / (n**0.75).sum()
    rows, columns = both.coords
    ratio = np.log(both.data / (n[rows] * context[columns]))
    positive = sparse.csr_array((np.maximum(ratio, 0.0), both.coords), shape=both.shape).astype(np.float32)
    positive.eliminate_zeros()
    U, S, _ = svds(positive, width, v0=np.ones(len(n), np.float32))
    return np.ascontiguousarray(U * np.sqrt(S), np.float32)


def mimetic(
    width: int, n_heads: int, seed: int = 0, qk: tuple[float, float] = (0.7, 0.7), vo: tuple[float, float] = (0.4, 0.4)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return attention weights W_q, W_k, W_v, W_o (width, width), applied as ``x W``, that look like trained ones.

    Trockman and Kolter 2023, arXiv 2305.09828, section 3. For every head ``W_q W_k^T`` is ``a Z + b I`` cut to the rank
    of the head by a singular value decomposition, and ``W_v W_o`` is ``a Z - b I``. Z is normal with variance
    ``1 / width``.

    Parameters
    ----------
    width, n_heads : int
    seed : int
        Seed of Z.
    qk, vo : (float, float)
        The factors a and b of queries and keys, and of values and output.

    Examples
    --------
    >>> q, k, v, o = mimetic(64, 2)
    >>> [bool(x.diagonal().mean() > 0.3) for x in (q[:, :32] @ k[:, :32].T, -(v @ o))]
    [True, True]
    """
    generator = torch.Generator().manual_seed(seed)
    size, eye = width // n_heads, torch.eye(width)

    def split(factors: tuple[float, float], rank: int) -> tuple[Tensor, Tensor]:
        Z = torch.randn(width, width, generator=generator) / width**0.5
        U, S, Vh = torch.linalg.svd(factors[0] * Z + factors[1] * eye)
        root = S[:rank].sqrt()
        return U[:, :rank] * root, Vh[:rank].T * root

    q, k = zip(*(split(qk, size) for _ in range(n_heads)), strict=True)
    v, o = split((vo[0], -vo[1]), width)
    return torch.cat(q, dim=1), torch.cat(k, dim=1), v, o.T.contiguous()
