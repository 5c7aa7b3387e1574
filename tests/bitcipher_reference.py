"""Readable versions of the compiled kernels, for tests: slow and exact. They share no code with the kernels."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray


def assign_codes(vocab_size: int, bits: int) -> NDArray[np.uint64]:
    """Return the codes (V, words) of `bitcipher.codes.assign_codes`, made with Python sets."""
    words = -(-bits // 64)
    packed = [sum(2**bit for bit in code).to_bytes(8 * words, "little") for code in islice(_in_order(bits), vocab_size)]
    return np.frombuffer(b"".join(packed), "<u8").reshape(-1, words).astype(np.uint64)


def _in_order(bits: int) -> Iterator[frozenset[int]]:
    previous = [frozenset([bit]) for bit in range(bits)]
    seen = set(previous)
    yield from previous
    while previous:
        current = []
        for parent in reversed(previous):
            for bit in range(bits):
                code = parent | {bit}
                if code not in seen:
                    seen.add(code)
                    current.append(code)
                    yield code
        previous = current


def decode(vectors: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]) -> list[int]:
    """Return the ranks of `bitcipher.codes.decode` for integer vectors, in exact arithmetic.

    A code is the list of its bits here. ``log w + 1/w log P`` is compared with ``log z + 1/z log Q`` as
    ``(w^w P)^z`` with ``(z^z Q)^w``.
    """
    ranks = []
    for vector in vectors:
        best, best_weight, best_mass = -1, 1, Fraction(0)
        for rank, code in enumerate(codes):
            weight, mass = len(code), Fraction(len(code)) ** len(code)
            for bit in code:
                mass *= vector[bit]
            if mass**best_weight > best_mass**weight:
                best, best_weight, best_mass = rank, weight, mass
        ranks.append(best)
    return ranks


def neighbour_sums(
    sentences: Sequence[Sequence[int | None]],
    codes: Sequence[Sequence[int]],
    bits: int,
    radii: Sequence[int],
    harmonic: bool = False,
) -> list[list[list[list[Fraction]]]]:
    """Return the exact sums of the codes of the neighbours of each token: [token][radius][left, right][bit].

    A code is the list of its bits here, and None is a token without a row. Every radius is counted separately.
    """
    sums = [[[[Fraction(0)] * bits for _ in range(2)] for _ in radii] for _ in codes]
    for sentence in sentences:
        for i, token in enumerate(sentence):
            for j, neighbour in enumerate(sentence):
                distance = abs(i - j)
                if token is None or neighbour is None or i == j:
                    continue
                for block, radius in enumerate(radii):
                    for bit in codes[neighbour]:
                        if distance <= radius:
                            share = Fraction(1, len(codes[neighbour])) / (distance if harmonic else 1)
                            sums[token][block][int(j > i)][bit] += share
    return sums
