"""The n-grams of a chunk of text, counted by PyTorch on a device such as "cuda": the levels of `warmstart.ngrams`.

The counts are sums over sorted keys, all integers. So they are the same, to the bit, as those of the compiled loops of
`_ngram_kernels`, on every device and in every run.
"""

from typing import Any

import torch
from numpy.typing import NDArray

from warmstart.errors import InputError

Ints = NDArray[Any]


def check_device(device: str) -> None:
    """Refuse a device that is not there, before a long computation."""
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise InputError(f"device: expected one that PyTorch can use, such as cuda, got {device!r}: {error}") from error


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
    text = torch.tensor(tokens.astype("int64"), device=device)
    lengths, flags = (torch.tensor(array.astype("int64"), device=device) for array in (history, counted))
    levels = []
    numbers, n_prefixes = text, vocab_size  # of the (n-1)-gram that ends at each position
    for n in range(2, order + 1):
        places = torch.nonzero(lengths >= n - 1)[:, 0]
        keys, by_key = torch.sort(numbers[places - 1] * vocab_size + text[places])
        places = places[by_key]
        distinct, groups, sizes = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        sums = torch.cat([flags.new_zeros(1), torch.cumsum(flags[places], 0)])  # over the sorted keys
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
