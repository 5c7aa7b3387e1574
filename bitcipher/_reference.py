"""Readable twins of the compiled kernels, for tests: slow, exact, and sharing no helper with them."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray


def assign_codes(vocab_size: int, bits: int) -> NDArray[np.uint64]:
    """Return the codes (V, words) of `bitcipher.codes.assign_codes`, from Python sets."""
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

    Here a code is the list of its bits. ``log w + 1/w log P`` is compared with ``log z + 1/z log Q`` as
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
