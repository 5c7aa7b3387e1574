"""Levels of n-grams counted, and solved by Kneser-Ney, by PyTorch on a device such as "cuda".

Counts are sums over sorted keys, all integers. So they are the same, to the bit, as those of the compiled loops of
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


def suffixes(
    offsets: Ints,
    last: Ints,
    parent_suffixes: Ints,
    suffix_offsets: Ints,
    suffix_last: Ints,
    vocab_size: int,
    device: str,
) -> Ints:
    """Return what `_ngram_kernels.suffixes` does, by a search in all n-grams of the level of the suffixes."""
    keys = _prefixes(suffix_offsets, device) * vocab_size + _moved(suffix_last, device)
    wanted = _moved(parent_suffixes, device)[_prefixes(offsets, device)] * vocab_size + _moved(last, device)
    found: Ints = torch.searchsorted(keys, wanted, out_int32=True).cpu().numpy()
    return found


def solve_level(
    offsets: Ints, counts: Ints, kept: Ints, suffix: Ints, discounts: Ints, lower: Ints, device: str
) -> tuple[Ints, Ints, Ints]:
    """Return what `_ngram_kernels.solve_level` writes: probabilities, weights of the level below, and sizes.

    The sums are integers; then come single operations in float64, in the order of the compiled loops. Each of them is
    rounded as IEEE 754 has it, so the results have the same bits.
    """
    ends, count, keep = _moved(offsets, device), _moved(counts, device), torch.from_numpy(kept).to(device)

    def total_of(values: torch.Tensor) -> torch.Tensor:
        sums = torch.cat([ends.new_zeros(1), torch.cumsum(values, 0)])
        return sums[ends[1:]] - sums[ends[:-1]]

    discount = torch.tensor(discounts, device=device)
    kind, total = count.clamp(max=3), total_of(count)
    kinds = [discount[i] * total_of(keep & (kind == i)).double() for i in (1, 2, 3)]
    left = kinds[0] + kinds[1] + kinds[2] + total_of(torch.where(keep, 0, count)).double()
    gammas = torch.where(total > 0, left / total.double(), 1.0)
    sizes = torch.searchsorted(torch.tensor([1 << i for i in range(63)], device=device), total, right=True)
    prefixes = _prefixes(offsets, device)
    seen = (count.double() - discount[kind]) / total[prefixes].double()
    seen = torch.where(total[prefixes] > 0, seen, 0.0)
    probs = seen + gammas[prefixes] * torch.tensor(lower, device=device)[_moved(suffix, device)]
    found, weights, bits = (array.cpu().numpy() for array in (probs, gammas, sizes.to(torch.uint8)))
    return found, weights, bits


def _moved(array: Ints, device: str) -> torch.Tensor:
    return torch.from_numpy(array.astype("int64")).to(device)


def _prefixes(offsets: Ints, device: str) -> torch.Tensor:
    """Return the number of the n-gram that each extension extends."""
    return torch.repeat_interleave(_moved(offsets, device).diff())
