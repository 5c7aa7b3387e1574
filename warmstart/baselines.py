"""The starts others would use, each in a few lines: what every bench sets a warm start beside.

Functions whose name ends in an underscore write into a module, after `torch.nn.init`; the others return arrays.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

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
    """Return logits (V, V) of the absolute-discounting bigram, a row for each token before.

    The table of modded-nanogpt's n-gram starts and of parameter-golf's CountInitBigram: V x V parameters.

    Examples
    --------
    >>> table = count_bigram(sparse.csr_array(np.array([[0, 3], [2, 1]])))
    >>> np.exp(table).round(2)
    array([[0.04, 0.96],
           [0.63, 0.37]], dtype=float32)
    """
    bigram = Bigram.of(pairs)
    table = bigram.left[:, None] * bigram.prior.astype(np.float32)
    kept = bigram.kept.tocoo()
    table[kept.coords] += kept.data
    out: Array = np.log(table, out=table)
    return out


def ppmi_svd(pairs: sparse.csr_array, width: int, shift: float = 1.0) -> Array:
    """Return word vectors (V, width), ``U sqrt(S)`` of the positive pointwise mutual information of neighbours.

    Both sides of a token are its context, as in Levy, Goldberg and Dagan 2015 (TACL 3), section 3.1; their
    smoothing exponent 0.75 is on the context. Rows of tokens without neighbours are 0.

    Examples
    --------
    >>> ppmi_svd(sparse.csr_array(np.array([[0, 8, 1], [8, 0, 1], [1, 1, 9]])), 2).shape
    (3, 2)
    """
    both = (pairs + pairs.T).tocoo().astype(np.float64)
    n = both.sum(axis=1)
    context = n**0.75 / (n**0.75).sum()
    rows, columns = both.coords
    data = np.log(both.data / (n[rows] * context[columns] * shift))
    positive = sparse.csr_array((np.maximum(data, 0.0), both.coords), shape=both.shape).astype(np.float32)
    positive.eliminate_zeros()
    U, S, _ = randomized_svd(positive, width, n_iter=4, power_iteration_normalizer="QR", random_state=0)
    return np.asarray(U * np.sqrt(S), dtype=np.float32)


def mimetic(
    width: int, n_heads: int, seed: int = 0, qk: tuple[float, float] = (0.7, 0.7), vo: tuple[float, float] = (0.4, 0.4)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W_q, W_k, W_v, W_o (width, width), applied as ``x W``, that look like those of trained models.

    For every head ``W_q W_k^T ~ a Z + b I`` and for all together ``W_v W_o ~ a Z - b I`` with Z normal of variance
    ``1 / width``, split by a singular value decomposition: Trockman and Kolter 2023, arXiv 2305.09828, section 3.

    Examples
    --------
    >>> q, k, v, o = mimetic(64, 2)
    >>> [bool(x.diagonal().mean() > 0.3) for x in (q[:, :32] @ k[:, :32].T, -(v @ o))]
    [True, True]
    """
    generator = torch.Generator().manual_seed(seed)
    size, eye = width // n_heads, torch.eye(width)

    def split(weights: tuple[float, float], rank: int) -> tuple[Tensor, Tensor]:
        Z = torch.randn(width, width, generator=generator) / width**0.5
        U, S, Vh = torch.linalg.svd(weights[0] * Z + weights[1] * eye)
        root = S[:rank].sqrt()
        return U[:, :rank] * root, Vh[:rank].T * root

    q, k = zip(*(split(qk, size) for _ in range(n_heads)), strict=True)
    v, o = split((vo[0], -vo[1]), width)
    return torch.cat(q, dim=1), torch.cat(k, dim=1), v, o.T.contiguous()


@torch.no_grad()
def lsuv_(model: nn.Module, batch: Tensor, tolerance: float = 0.05, rounds: int = 10) -> None:
    """Make every linear layer orthonormal, then of unit output variance on a batch, in the order of the forward pass.

    Mishkin and Matas 2016, arXiv 1511.06422, algorithm 1.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> lsuv_(model, torch.randn(256, 8, generator=torch.Generator().manual_seed(0)))
    >>> model[0](torch.randn(256, 8, generator=torch.Generator().manual_seed(0))).var().detach().numpy().round(1).item()
    1.0
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for layer in layers:
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda *arguments, seen=seen: seen.append(arguments[2]))
        try:
            for _ in range(rounds):
                seen.clear()
                model(batch)
                variance = float(seen[-1].var())
                if abs(variance - 1.0) < tolerance:
                    break
                layer.weight /= variance**0.5
        finally:
            hook.remove()


def least_squares_head(X: Array, targets: NDArray[np.integer], n_classes: int, ridge: float = 1.0) -> tuple[Any, Any]:
    """Return weights (D, C) and bias (C,) of the ridge regression of one-hot targets: one pass over outer products.

    Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, section 4.2.

    Examples
    --------
    >>> W, bias = least_squares_head(np.array([[0.0], [1.0]], np.float32), np.array([0, 1]), 2, ridge=1e-6)
    >>> (np.array([[0.0], [1.0]]) @ W + bias).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    Y = np.eye(n_classes)[targets]
    mean, target_mean = X.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    centred = X - mean
    W = linalg.solve(centred.T @ centred + ridge * np.eye(X.shape[1]), centred.T @ (Y - target_mean), assume_a="pos")
    return W, target_mean - mean @ W


def nearest_mean(X: Array, targets: NDArray[np.integer], n_classes: int) -> tuple[Any, Any]:
    """Return weights (D, C) and bias (C,) whose largest logit is the class with the nearest mean, ``-|x - m_c|^2 / 2``.

    Examples
    --------
    >>> W, bias = nearest_mean(np.array([[0.0], [2.0], [4.0]], np.float32), np.array([0, 1, 1]), 2)
    >>> W.tolist(), bias.tolist()
    ([[0.0, 3.0]], [-0.0, -4.5])
    """
    totals = np.zeros((n_classes, X.shape[1]))
    np.add.at(totals, targets, X)
    means = totals / np.maximum(np.bincount(targets, minlength=n_classes), 1)[:, None]
    return means.T, -0.5 * (means**2).sum(axis=1)


def xavier_(modules: Iterable[nn.Module]) -> None:
    """Fill linear layers with uniform weights of variance ``2 / (in + out)``: Glorot and Bengio 2010 (AISTATS)."""
    for layer in (module for module in modules if isinstance(module, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def he_(modules: Iterable[nn.Module]) -> None:
    """Fill linear layers with normal weights of variance ``2 / in``: He et al. 2015, arXiv 1502.01852."""
    for layer in (module for module in modules if isinstance(module, nn.Linear)):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
