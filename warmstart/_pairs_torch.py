"""Sums of the codes of pairs, kept on a device of PyTorch, to the bit as `_kernels.add_pairs`."""

from typing import Any

import torch
from numpy.typing import NDArray

Ints = NDArray[Any]


class PairSums:
    """What pairs of a token and a class add to ``sums``, see `warmstart.accumulators.CodedPairs`.

    indptr, indices: bits of each token; units (V,); shape: (C, D) of the sums, which are 0 at first.
    """

    def __init__(self, indptr: Ints, indices: Ints, units: Ints, shape: tuple[int, int], device: str) -> None:
        self.classes, self.bits = shape
        self.indptr, self.indices, self.units = (_moved(array, device) for array in (indptr, indices, units))
        self.flat = torch.zeros(self.classes * self.bits, dtype=torch.int64, device=device)

    def add(self, inputs: Ints, targets: Ints) -> bool:
        """Add pairs (n,). They are sorted, so that equal ones are one with a count; then their cells are."""
        tokens, classes = (_moved(array, self.flat.device) for array in (inputs, targets))
        pairs, counts = torch.unique_consecutive(torch.sort(tokens * self.classes + classes)[0], return_counts=True)
        tokens, classes = pairs // self.classes, pairs % self.classes
        starts = self.indptr[tokens]
        lengths = self.indptr[tokens + 1] - starts
        pair = torch.repeat_interleave(lengths)  # of every bit
        firsts = torch.cumsum(lengths, 0) - lengths
        bits = self.indices[starts[pair] + torch.arange(pair.numel(), device=pair.device) - firsts[pair]]
        cells, by_cell = torch.sort(classes[pair] * self.bits + bits)
        values = (counts * self.units[tokens])[pair][by_cell]
        distinct, sizes = torch.unique_consecutive(cells, return_counts=True)
        ends = torch.cumsum(sizes, 0)
        sums = torch.cat([values.new_zeros(1), torch.cumsum(values, 0)])
        self.flat[distinct] += sums[ends] - sums[ends - sizes]
        return True

    def read(self) -> Ints:
        """Return the sums (C, D) int64."""
        found: Ints = self.flat.cpu().numpy().reshape(self.classes, self.bits)
        return found


def _moved(array: Ints, device: Any) -> torch.Tensor:
    return torch.from_numpy(array.astype("int64")).to(device)
