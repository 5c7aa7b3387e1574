"""The n-grams of a chunk of text, counted by PyTorch on a device such as "cuda": the levels of `warmstart.ngrams`.

The counts are sums over sorted keys, all integers. So they are the same, to the bit, as those of the compiled loops of
`_ngram_kernels`, on every device and in every run.
"""

from typing import Any

import torch
from numpy.typing import NDArray

Ints = NDArray[Any]


def count_levels(
    tokens: Ints, n: int, separator: int, vocab_size: int, order: int, device: str
) -> list[tuple[Ints, Ints, Ints]]:
    """Count the n-grams of 2, 3, ... tokens that begin at the first n places of a text.

    Returns
    -------
    list of (last, counts, offsets)
        For every length: the last tokens (m,) and counts (m,) int32 of the n-grams, and the offsets (m' + 1,) int32 of
        these among the m' n-grams that are one token shorter.
    """
    text = torch.from_numpy(tokens.astype("int64")).to(device)
    places = torch.arange(n, device=device)
    ends = torch.nonzero(text == separator)[:, 0]
    ends = torch.cat([ends, ends.new_tensor([text.numel() - 1])])  # the last is that of a text that is cut off
    room = ends[torch.searchsorted(ends, places, right=True)] - places
    levels = []
    numbers, n_prefixes = text[:n], vocab_size  # of the (n-1)-gram that begins at each place
    for length in range(2, order + 1):
        places, room = places[room >= length - 1], room[room >= length - 1]
        keys, by_key = torch.sort(numbers[places] * vocab_size + text[places + length - 1])
        distinct, groups, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        offsets = torch.searchsorted(distinct, vocab_size * torch.arange(n_prefixes + 1, device=device))
        found = distinct % vocab_size, counts.int(), offsets.int()
        last, count, extensions = (array.cpu().numpy() for array in found)
        levels.append((last.astype(tokens.dtype), count, extensions))
        numbers = torch.full_like(text[:n], -1)
        numbers[places[by_key]] = groups
        n_prefixes = distinct.numel()
    return levels
