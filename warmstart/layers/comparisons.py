"""Comparisons of frozen vectors, looked up instead of computed: ``<x_u, x_v>`` is a property of two token types."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart import _kernels
from warmstart._threads import run_parts

TABLE = 4096  # ranks whose comparisons are kept: 64 MiB


class Comparisons:
    """Inner products of the rows of an embedding that does not change while they are used.

    The first of these that fits is chosen; all give the products to the rounding of float32.

    - "table": at most `TABLE` tokens, every product is stored.
    - "popcount": cipher vectors in main memory, ``popcount(u & v) / (|u| |v|)`` of their packed codes.
    - "bounded": the products of the `TABLE` most frequent tokens are stored (ids are ranks); those of rarer tokens are
      computed once a call for the token types that occur in it.

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
        self.state = _state(weight)
        codes = _codes(self.weight) if len(weight) > TABLE and weight.device.type == "cpu" else None
        self.codes = codes
        self.kind = "popcount" if codes is not None else "table" if len(weight) <= TABLE else "bounded"
        if codes is None:
            with torch.autocast(weight.device.type, enabled=False):
                self.table = self.weight[:TABLE] @ self.weight[:TABLE].T
        else:
            self.inverse_weights = 1.0 / np.bitwise_count(codes).sum(axis=1)  # (V,)

    def fits(self, weight: Tensor) -> bool:
        """Whether this is still the same storage, unchanged since."""
        return self.state == _state(weight)

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
        n, frequent = pivots.numel(), int((types < TABLE).sum())  # types ascend
        vectors = self.weight[types]
        local = vectors.new_empty(len(types), len(types))
        local[:frequent, :frequent] = self.table[types[:frequent, None], types[:frequent]]
        with torch.autocast(vectors.device.type, enabled=False):
            local[frequent:] = vectors[frequent:] @ vectors.T
        local[:frequent, frequent:] = local[frequent:, :frequent].T
        return local[index[:n].view(pivots.shape)[..., None], index[n:].view(windows.shape)]

    def _popcounts(self, codes: NDArray[np.uint64], pivots: Tensor, windows: Tensor) -> Tensor:
        flat, window = pivots.flatten().numpy(), windows.flatten(0, -2).numpy()
        q = np.empty(window.shape, dtype=np.float32)
        workers = torch.get_num_threads()
        cuts = np.linspace(0, flat.size, workers + 1).astype(int)

        def part(i: int) -> None:
            rows = slice(cuts[i], cuts[i + 1])
            _kernels.compare_codes(flat[rows], window[rows], codes, self.inverse_weights, q[rows])

        run_parts(part, range(workers), workers)
        return torch.from_numpy(q).view(windows.shape).to(self.weight.dtype)


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _codes(weight: Tensor) -> NDArray[np.uint64] | None:
    """Return the packed codes (V, words) of cipher vectors, None for vectors of any other kind."""
    there = (weight != 0).numpy()
    ones = there.sum(axis=1, keepdims=True)
    if not ones.all() or not np.array_equal(weight.numpy(), there * (1.0 / ones).astype(np.float32)):
        return None
    packed = np.packbits(there, axis=1, bitorder="little")
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return padded.view(np.uint64)
