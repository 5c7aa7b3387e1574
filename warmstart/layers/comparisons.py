"""A cache of comparisons ``<x_u, x_v>``. While the embedding is frozen they depend on the two token types only."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart import _kernels
from warmstart._threads import run_parts

TABLE_TOKENS = 4096  # the products of so many of the most frequent tokens are stored: 64 MiB


class Comparisons:
    """Inner products between the rows of an embedding that stays as it is.

    The first method that applies is used. All agree to the rounding of float32.

    - "table": the vocabulary has at most `TABLE_TOKENS` tokens, and all products are stored.
    - "popcount": the rows are cipher vectors in main memory. A product is ``popcount(u & v) / (|u| |v|)`` of the
      packed codes.
    - "bounded": the products of the `TABLE_TOKENS` most frequent tokens (the lowest ids) are stored. Those of the
      rarer tokens in a call are computed once for that call.

    Parameters
    ----------
    weight : (V, b)

    Examples
    --------
    >>> compare = Comparisons(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    >>> compare.kind, compare(torch.tensor([[2, 0]]), torch.tensor([[[2, 1], [0, 1]]])).tolist()
    ('table', [[[0.5, 0.5], [1.0, 0.0]]])
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.version = _version(weight)
        codes = _codes(self.weight) if len(weight) > TABLE_TOKENS and weight.device.type == "cpu" else None
        self.codes = codes
        self.kind = "popcount" if codes is not None else "table" if len(weight) <= TABLE_TOKENS else "bounded"
        if codes is None:
            with torch.autocast(weight.device.type, enabled=False):
                self.table = self.weight[:TABLE_TOKENS] @ self.weight[:TABLE_TOKENS].T
        else:
            self.inverse_weights = 1.0 / np.bitwise_count(codes).sum(axis=1)  # (V,)

    def fits(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the tensor of this cache and has not been written to since."""
        return self.version == _version(weight)

    def __call__(self, pivots: Tensor, windows: Tensor) -> Tensor:
        """Compare each token with the tokens of its window.

        Parameters
        ----------
        pivots : (...,) int64
        windows : (..., B) int64

        Returns
        -------
        (..., B)
        """
        if self.codes is not None:
            return self._popcounts(self.codes, pivots, windows)
        if self.kind == "table":
            return self.table[pivots[..., None], windows]
        types, index = torch.unique(torch.cat([pivots.flatten(), windows.flatten()]), return_inverse=True)
        n, frequent = pivots.numel(), int((types < TABLE_TOKENS).sum())  # types ascend
        vectors = self.weight[types]
        products = vectors.new_empty(len(types), len(types))
        products[:frequent, :frequent] = self.table[types[:frequent, None], types[:frequent]]
        with torch.autocast(vectors.device.type, enabled=False):
            products[frequent:] = vectors[frequent:] @ vectors.T
        products[:frequent, frequent:] = products[frequent:, :frequent].T
        return products[index[:n].view(pivots.shape)[..., None], index[n:].view(windows.shape)]

    def _popcounts(self, codes: NDArray[np.uint64], pivots: Tensor, windows: Tensor) -> Tensor:
        pivot, window = pivots.flatten().numpy(), windows.flatten(0, -2).numpy()
        q = np.empty(window.shape, dtype=np.float32)
        workers = torch.get_num_threads()
        cuts = np.linspace(0, pivot.size, workers + 1).astype(int)

        def compare(i: int) -> None:
            rows = slice(cuts[i], cuts[i + 1])
            _kernels.compare_codes(pivot[rows], window[rows], codes, self.inverse_weights, q[rows])

        run_parts(compare, range(workers), workers)
        return torch.from_numpy(q).view(windows.shape).to(self.weight.dtype)


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _codes(weight: Tensor) -> NDArray[np.uint64] | None:
    """Return the packed codes (V, words) of cipher vectors, None if the rows are not cipher vectors."""
    bits = (weight != 0).numpy()
    ones = bits.sum(axis=1, keepdims=True)
    if not ones.all() or not np.array_equal(weight.numpy(), bits * (1.0 / ones).astype(np.float32)):
        return None
    packed = np.packbits(bits, axis=1, bitorder="little")
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return padded.view(np.uint64)
