"""The n-grams of a chunk of text, counted by PyTorch on a device such as "cuda": the levels of `warmstart.ngrams`.

The counts are sums over sorted keys, all integers. So they are the same, to the bit, as those of the compiled loops of
`_ngram_kernels`, on every device and in every run.
"""

from typing import Any

import torch
from numpy.typing import NDArray

Ints = NDArray[Any]


def count_levels(
    tokens: Ints, vocab_size: int, history: Ints, counted: Ints, order: int, device: str
) -> list[tuple[Ints, Ints, Ints]]:
    """Count the n-grams of 2, 3, ... tokens of one text. Parameters are those of `warmstart.ngrams.number_ngrams`.

    Returns
    -------
    list of (last, counts, offsets)
        For every length: the last tokens (m,) and counts (m,) int32 of the n-grams, and the offsets (m' + 1,) int32 of
        these among the m' n-grams that are one token shorter.
    """
    text, lengths, flags = (
        torch.from_numpy(array.astype(kind)).to(device)
        for array, kind in ((tokens, "int64"), (history, "int8"), (counted, "bool"))
    )
    levels = []
    numbers, n_prefixes = text, vocab_size  # of the (n-1)-gram that ends at each position
    for n in range(2, order + 1):
        places = torch.nonzero(lengths >= n - 1)[:, 0]
        keys, by_key = torch.sort(numbers[places - 1] * vocab_size + text[places])
        places = places[by_key]
        distinct, groups, sizes = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        sums = torch.cat([text.new_zeros(1), torch.cumsum(flags[places], 0)])  # over the sorted keys
        ends = torch.cumsum(sizes, 0)
        counts = sums[ends] - sums[ends - sizes]
        offsets = torch.searchsorted(distinct, vocab_size * torch.arange(n_prefixes + 1, device=device))
        found = distinct % vocab_size, counts.int(), offsets.int()
        last, count, extensions = (array.cpu().numpy() for array in found)
        levels.append((last.astype(tokens.dtype), count, extensions))
        numbers = torch.full_like(text, -1)
        numbers[places] = groups
        n_prefixes = distinct.numel()
    return levels
